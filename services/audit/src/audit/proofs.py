"""Proofs for auditors: one record is in the log, and the log continues an older checkpoint."""

from __future__ import annotations

from audit import store
from audit.packed_leaf import LEAF, unpack
from audit.tiles import TreeReader
from estcore.errors import Conflict
from estcore.runtime.database import Connection
from estcore.tlog.checkpoint import SignedCheckpoint, parse_signed
from estcore.tlog.cosignature import WitnessRequest
from estcore.tlog.proof import InclusionProof
from estcore.tlog.tree import leaf_hash, verify_inclusion


async def inclusion(connection: Connection, index: int) -> InclusionProof:
    """Return the proof that a record is in the log of the newest checkpoint.

    Raises:
        Conflict: no checkpoint covers the record yet, or it was purged.
        AuditChainBroken: the database has changed what was signed.
    """
    signed = await _newest(connection)
    point = signed.checkpoint
    if index >= point.size:
        raise Conflict(
            f"the newest checkpoint covers {point.size} records, this one is not among them",
            code="proof.unsealed",
        )
    query = f"select {LEAF} from record where log_index = $1"  # noqa: S608 - our own expression
    leaf = await connection.fetchval(query, index)
    if leaf is None:
        raise Conflict(f"record {index} was purged", code="record.purged")
    octets = unpack(leaf).encode()
    hashes = await TreeReader(connection).inclusion(index, point.size)
    verify_inclusion(leaf_hash(octets), index, point.size, hashes, point.root)
    return InclusionProof(index, octets, tuple(hashes), signed)


async def consistency(connection: Connection, old_size: int) -> WitnessRequest:
    """Return the proof that the newest checkpoint continues the one of ``old_size`` records.

    Raises:
        Conflict: the newest checkpoint covers fewer records.
        AuditChainBroken: the database has changed what was signed.
    """
    signed = await _newest(connection)
    size = signed.checkpoint.size
    if old_size > size:
        raise Conflict(f"the newest checkpoint covers {size} records", code="proof.unsealed")
    hashes = await TreeReader(connection).consistency(old_size, size)
    return WitnessRequest(old_size, tuple(hashes), signed)


async def _newest(connection: Connection) -> SignedCheckpoint:
    note = await store.newest_cosigned_note(connection)
    if note is None:
        raise Conflict("the log has no checkpoint yet", code="proof.unsealed")
    return parse_signed(note)
