"""The export of a log: JSON lines that verify without the database (pure).

Line 1 is a header, then one line for each record in log order, then one for each checkpoint by
size. Every line is canonical JSON, so there is one spelling of each export:

    {"checkpoints":1,"correlation_id":null,"origin":"…","records":2,"type":"log","version":1,"vkey":"…"}
    {"leaf":"…","leaf_hash":"…","log_index":0,"prev_hash":"…","type":"record"}
    {"note":"…","size":2,"type":"checkpoint"}

Records that were purged are there as hashes of their leaves, one line for 256 or fewer:

    {"leaf_hashes":"…","log_index":256,"type":"purged"}

An archive of a month has another header, then the edge of the tree before its first record, the
records, the hashes of the leaves behind them up to a checkpoint, and that checkpoint:

    {"checkpoints":1,"first":512,"month":"2026-01","origin":"…","records":2,"type":"archive",…}
    {"hashes":["…"],"type":"edge"}

An export of one correlation id is partial: its records carry an inclusion ``proof`` under the
newest checkpoint (absent for a record no checkpoint covers yet) and the chain is not checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from estcore.errors import MalformedRequest
from estcore.tlog import canonical
from estcore.tlog.tree import HASH_BYTES, Frontier

VERSION = 1
PURGED_HASHES = 256
HEADERS = {"log", "archive"}
GENESIS = bytes(32)
"""``prev_hash`` of the first record."""

_MEMBERS = {
    "log": {"checkpoints", "correlation_id", "origin", "records", "type", "version", "vkey"},
    "archive": {
        *("checkpoints", "first", "month", "origin", "records", "type", "version", "vkey"),
    },
    "edge": {"hashes", "type"},
    "purged": {"leaf_hashes", "log_index", "type"},
    "record": {"leaf", "leaf_hash", "log_index", "prev_hash", "type"},
    "checkpoint": {"note", "size", "type"},
}
_KINDS: dict[str, type | tuple[type, ...]] = {
    "checkpoints": int,
    "correlation_id": (str, type(None)),
    "first": int,
    "hashes": list,
    "leaf": str,
    "leaf_hashes": str,
    "leaf_hash": str,
    "log_index": int,
    "month": str,
    "note": str,
    "origin": str,
    "prev_hash": str,
    "proof": list,
    "records": int,
    "size": int,
    "type": str,
    "version": int,
    "vkey": str,
}


def chain_hash(prev_hash: bytes, leaf_hash: bytes) -> bytes:
    """Return the ``prev_hash`` of the record after the one with these hashes."""
    return hashlib.sha256(prev_hash + leaf_hash).digest()


@dataclass(frozen=True)
class Header:
    """The first line. ``correlation_id`` is None for a whole log."""

    origin: str
    vkey: str
    records: int
    checkpoints: int
    correlation_id: str | None = None

    def line(self) -> bytes:
        """Return the line without its end."""
        return canonical.encode({"type": "log", "version": VERSION, **vars(self)})


@dataclass(frozen=True)
class ArchiveHeader:
    """The first line of an archive. ``first`` is the log index of its first record."""

    origin: str
    vkey: str
    records: int
    checkpoints: int
    first: int
    month: str

    def line(self) -> bytes:
        """Return the line without its end."""
        return canonical.encode({"type": "archive", "version": VERSION, **vars(self)})


def edge_line(edge: Frontier) -> bytes:
    """Return the line with the right edge of the tree before an archive's first record."""
    return canonical.encode({"type": "edge", "hashes": [node.hex() for node in edge.hashes]})


def purged_lines(log_index: int, hashes: Sequence[bytes]) -> Iterator[bytes]:
    """Yield the lines of records whose content is not here, from ``log_index`` on."""
    for start in range(0, len(hashes), PURGED_HASHES):
        part = b"".join(hashes[start : start + PURGED_HASHES]).hex()
        yield canonical.encode(
            {"type": "purged", "log_index": log_index + start, "leaf_hashes": part}
        )


def unhex(text: str) -> bytes:
    """Return octets from hexadecimal text, in the one spelling that an export has: lower case.

    Raises:
        ValueError: another spelling, or not hexadecimal.
    """
    octets = bytes.fromhex(text)
    if octets.hex() != text:
        raise ValueError("not in lower case")
    return octets


def read_hashes(text: str) -> list[bytes]:
    """Return the hashes in hexadecimal text.

    Raises:
        MalformedRequest: it is not that, or none or too many.
    """
    try:
        octets = unhex(text)
    except ValueError as exc:
        raise _malformed("hashes are hexadecimal") from exc
    count, rest = divmod(len(octets), HASH_BYTES)
    if rest or not 0 < count <= PURGED_HASHES:
        raise _malformed("leaf_hashes are 1 to 256 hashes of 32 octets")
    return [octets[i : i + HASH_BYTES] for i in range(0, len(octets), HASH_BYTES)]


def record_line(
    log_index: int,
    leaf: str,
    leaf_hash: bytes,
    prev_hash: bytes,
    proof: list[bytes] | None = None,
) -> bytes:
    """Return the line of one record."""
    line: dict[str, Any] = {
        "type": "record",
        "log_index": log_index,
        "leaf": leaf,
        "leaf_hash": leaf_hash.hex(),
        "prev_hash": prev_hash.hex(),
    }
    if proof is not None:
        line["proof"] = [node.hex() for node in proof]
    return canonical.encode(line)


def checkpoint_line(size: int, note: str) -> bytes:
    """Return the line of one checkpoint."""
    return canonical.encode({"type": "checkpoint", "size": size, "note": note})


def read_line(line: bytes) -> dict[str, Any]:
    """Return one line of an export, strictly: this spelling and these members only.

    Raises:
        MalformedRequest: not a line an export has.
    """
    value = canonical.parse(line)
    if not isinstance(value, dict) or not canonical.is_canonical(value, bytes(line)):
        raise _malformed("not a canonical JSON object")
    members = _MEMBERS.get(str(value.get("type")))
    if members is None or set(value) - {"proof"} != members:
        raise _malformed("not a line of an export")
    if "proof" in value and value["type"] != "record":
        raise _malformed("only records have proofs")
    for name, member in value.items():
        if not isinstance(member, _KINDS[name]) or isinstance(member, bool):
            raise _malformed(f"{name} has the wrong kind")
    if value["type"] in HEADERS and value["version"] != VERSION:
        raise _malformed(f"version {value['version']} is not known")
    return value


def _malformed(reason: str) -> MalformedRequest:
    return MalformedRequest(reason, code="export.malformed")
