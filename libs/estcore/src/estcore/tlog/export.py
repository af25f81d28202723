"""The export of a log: JSON lines that verify without the database (pure).

Line 1 is a header, then one line for each record in log order, then one for each checkpoint by
size. Every line is canonical JSON, so there is one spelling of each export:

    {"checkpoints":1,"correlation_id":null,"origin":"…","records":2,"type":"log","version":1,"vkey":"…"}
    {"leaf":"…","leaf_hash":"…","log_index":0,"prev_hash":"…","type":"record"}
    {"note":"…","size":2,"type":"checkpoint"}

An export of one correlation id is partial: its records carry an inclusion ``proof`` under the
newest checkpoint (absent for a record no checkpoint covers yet) and the chain is not checked.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from estcore.errors import MalformedRequest
from estcore.tlog import canonical

VERSION = 1
GENESIS = bytes(32)
"""``prev_hash`` of the first record."""

_MEMBERS = {
    "log": {"checkpoints", "correlation_id", "origin", "records", "type", "version", "vkey"},
    "record": {"leaf", "leaf_hash", "log_index", "prev_hash", "type"},
    "checkpoint": {"note", "size", "type"},
}
_KINDS: dict[str, type | tuple[type, ...]] = {
    "checkpoints": int,
    "correlation_id": (str, type(None)),
    "leaf": str,
    "leaf_hash": str,
    "log_index": int,
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
    if not isinstance(value, dict) or canonical.encode(value) != line:
        raise _malformed("not a canonical JSON object")
    members = _MEMBERS.get(str(value.get("type")))
    if members is None or set(value) - {"proof"} != members:
        raise _malformed("not a line of an export")
    if "proof" in value and value["type"] != "record":
        raise _malformed("only records have proofs")
    for name, member in value.items():
        if not isinstance(member, _KINDS[name]) or isinstance(member, bool):
            raise _malformed(f"{name} has the wrong kind")
    if value["type"] == "log" and value["version"] != VERSION:
        raise _malformed(f"version {value['version']} is not known")
    return value


def _malformed(reason: str) -> MalformedRequest:
    return MalformedRequest(reason, code="export.malformed")
