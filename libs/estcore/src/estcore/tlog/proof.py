"""Proofs about one log, each a file of its own (pure).

- Inclusion of one record: C2SP tlog-proof. Its ``extra`` data is the record's leaf, so the file
  holds what it proves:

      c2sp.org/tlog-proof@v1
      extra <base64 of the leaf>
      index 4711
      <base64 of a hash, one a line, from the leaf's sibling up>

      <checkpoint, a signed note>

- Consistency of an older checkpoint with a newer one: the body of a request to a witness (C2SP
  tlog-witness, ``cosignature.WitnessRequest``). It has the newer checkpoint; the older one is the
  verifier's own.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from estcore.errors import AuditChainBroken, MalformedRequest
from estcore.tlog import export
from estcore.tlog.checkpoint import (
    SignedCheckpoint,
    VerifierKey,
    canonical_base64,
    parse_signed,
)
from estcore.tlog.cosignature import MAX_PROOF, WitnessRequest
from estcore.tlog.tree import HASH_BYTES, Tree, leaf_hash, verify_consistency, verify_inclusion

MAGIC = "c2sp.org/tlog-proof@v1"
_MALFORMED = "proof.malformed"
_INDEX = re.compile(r"index (0|[1-9][0-9]{0,18})")
_EXTRA = "extra "


@dataclass(frozen=True)
class InclusionProof:
    """One record of a log: its leaf, its place, and the way to a signed root."""

    index: int
    leaf: bytes
    hashes: tuple[bytes, ...]
    signed: SignedCheckpoint

    def encode(self) -> bytes:
        """Return the proof as a file."""
        lines = [
            MAGIC,
            _EXTRA + base64.b64encode(self.leaf).decode(),
            f"index {self.index}",
            *(base64.b64encode(node).decode() for node in self.hashes),
        ]
        return ("\n".join(lines) + "\n\n" + self.signed.note).encode()

    @classmethod
    def parse(cls, octets: bytes) -> Self:
        """Return the proof in a file; nothing is verified.

        Raises:
            MalformedRequest: anything that ``encode`` would have written differently.
        """
        try:
            head, separator, note = octets.decode("utf-8").partition("\n\n")
        except UnicodeDecodeError as exc:
            raise _malformed("a proof is UTF-8") from exc
        lines = head.split("\n")
        if not separator or lines[0] != MAGIC:
            raise _malformed(f"a proof of a record begins with {MAGIC}")
        index = _INDEX.fullmatch(lines[2]) if len(lines) > 2 else None  # noqa: PLR2004
        if not lines[1].startswith(_EXTRA) or index is None:
            raise _malformed("a proof has the record as extra data, then its index")
        hashes = tuple(canonical_base64(line, code=_MALFORMED) for line in lines[3:])
        if len(hashes) > MAX_PROOF or any(len(node) != HASH_BYTES for node in hashes):
            raise _malformed("the hashes are not those of a proof")
        leaf = canonical_base64(lines[1].removeprefix(_EXTRA), code=_MALFORMED)
        return cls(int(index[1]), leaf, hashes, parse_signed(note))

    def verify(self, key: VerifierKey) -> None:
        """Check that the checkpoint is of the log of ``key``, and that the leaf is in it.

        Raises:
            AuditChainBroken: it is not.
        """
        check_signed(self.signed, key)
        point = self.signed.checkpoint
        verify_inclusion(leaf_hash(self.leaf), self.index, point.size, self.hashes, point.root)


def verify_consistent(request: WitnessRequest, old: SignedCheckpoint, key: VerifierKey) -> None:
    """Check that the newer checkpoint continues an older one of the same log.

    Raises:
        AuditChainBroken: it does not, or the proof is not from that size.
    """
    for signed in (old, request.signed):
        check_signed(signed, key)
    before, after = old.checkpoint, request.signed.checkpoint
    if before.size != request.old:
        raise AuditChainBroken(
            f"the proof begins at {request.old} records, the checkpoint has {before.size}"
        )
    verify_consistency(before.size, after.size, request.proof, before.root, after.root)


class ExportedTree:
    """The tree of an exported log, for proofs without the database. It is not verified here."""

    def __init__(self, lines: Iterable[bytes], wanted: int | None = None) -> None:
        """Read a whole export; ``wanted`` is the record to keep.

        Raises:
            MalformedRequest: not an export, or one of a part of the log.
        """
        self._tree = Tree()
        self._wanted = wanted
        self._leaf: bytes | None = None
        self._note: str | None = None
        for line in lines:
            self._read(export.read_line(line.removesuffix(b"\n")))
        if self._note is None:
            raise MalformedRequest("the export has no checkpoint", code="proof.unsealed")
        self.signed: SignedCheckpoint = parse_signed(self._note)

    def _read(self, value: dict[str, Any]) -> None:
        kind = value["type"]
        if kind == "archive" or (kind == "log" and value["correlation_id"] is not None):
            raise _malformed("this is a part of the log: export the whole log")
        if kind == "record":
            leaf = value["leaf"].encode()
            if self._tree.size == self._wanted:
                self._leaf = leaf
            self._tree.append(leaf_hash(leaf))
        if kind == "purged":
            for hashed in export.read_hashes(value["leaf_hashes"]):
                self._tree.append(hashed)
        if kind == "checkpoint":
            self._note = value["note"]

    def inclusion(self, index: int) -> InclusionProof:
        """Return the proof for the wanted record.

        Raises:
            MalformedRequest: the newest checkpoint does not cover it.
        """
        size = self.signed.checkpoint.size
        if self._leaf is None or index >= min(size, self._tree.size):
            raise MalformedRequest(
                f"the newest checkpoint covers {size} records, this one is not among them",
                code="proof.unsealed",
            )
        hashes = self._tree.inclusion(index, size)
        return InclusionProof(index, self._leaf, tuple(hashes), self.signed)

    def consistency(self, old_size: int) -> WitnessRequest:
        """Return the proof that the newest checkpoint continues one of ``old_size`` records.

        Raises:
            AuditChainBroken: there is none from that size.
        """
        hashes = self._tree.consistency(old_size, self.signed.checkpoint.size)
        return WitnessRequest(old_size, tuple(hashes), self.signed)


def check_signed(signed: SignedCheckpoint, key: VerifierKey) -> None:
    """Check that a checkpoint is signed by the key and of the log that it names.

    Raises:
        AuditChainBroken: it is not.
    """
    if signed.checkpoint.origin != key.name:
        raise AuditChainBroken(
            f"the checkpoint is of {signed.checkpoint.origin}", code="checkpoint.origin"
        )
    signed.verify(key)


def _malformed(reason: str) -> MalformedRequest:
    return MalformedRequest(reason, code=_MALFORMED)
