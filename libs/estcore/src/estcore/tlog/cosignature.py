"""Cosignatures of witnesses: C2SP tlog-cosignature and tlog-witness, Ed25519 (pure).

A witness signs that it saw a checkpoint, at a time, and that it continues what it saw before:

    cosignature/v1
    time 1764417600
    <text of the checkpoint>

The line has the time in the signature: key hash, eight octets of Unix seconds, Ed25519. A request
to a witness is the size it knows, a consistency proof from there, and the signed checkpoint.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from estcore.errors import AuditChainBroken, MalformedRequest
from estcore.tlog.checkpoint import (
    Checkpoint,
    NoteKey,
    SignedCheckpoint,
    canonical_base64,
    parse_signed,
)
from estcore.tlog.tree import HASH_BYTES, Frontier, node_hash

CONTENT_TYPE_SIZE = "text/x.tlog.size"
"""Of an answer 409: the size that the witness knows."""
MAX_PROOF = 63
_TIME_BYTES, _SIGNATURE_BYTES = 8, 64
_LAST_SECOND = 253_402_300_799
"""The end of the year 9999."""
_OLD = re.compile(r"old (0|[1-9][0-9]{0,18})")
_NAME = re.compile(r"[^\s+]+")


class CosignerKey(NoteKey):
    """The key of a witness."""

    algorithm = b"\x04"
    malformed = "witness.malformed"


@dataclass(frozen=True)
class WitnessRequest:
    """A request for a cosignature: the size the witness knows, a proof from there, a checkpoint."""

    old: int
    proof: tuple[bytes, ...]
    signed: SignedCheckpoint

    def encode(self) -> bytes:
        """Return the body of the request."""
        lines = [f"old {self.old}", *(base64.b64encode(h).decode() for h in self.proof)]
        return ("\n".join(lines) + "\n\n" + self.signed.note).encode()

    @classmethod
    def parse(cls, body: bytes) -> WitnessRequest:
        """Return the request in a body; nothing is verified.

        Raises:
            MalformedRequest: not such a request.
        """
        try:
            text = body.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise _malformed("the request is not UTF-8") from exc
        head, separator, note = text.partition("\n\n")
        lines = head.split("\n")
        match = _OLD.fullmatch(lines[0])
        if not separator or match is None:
            raise _malformed("a request is old SIZE, a proof, an empty line and a checkpoint")
        if len(lines) - 1 > MAX_PROOF:
            raise _malformed("the proof is too long")
        proof = tuple(canonical_base64(line, code=CosignerKey.malformed) for line in lines[1:])
        if any(len(one) != HASH_BYTES for one in proof):
            raise _malformed("a hash of the proof is not a SHA-256")
        return cls(int(match[1]), proof, parse_signed(note))


def cosign(checkpoint: Checkpoint, name: str, private_key: Ed25519PrivateKey, seconds: int) -> str:
    """Return the signature line of a witness, ended; ``seconds`` is Unix time."""
    key = CosignerKey(name, private_key.public_key())
    signature = private_key.sign(_message(checkpoint, seconds))
    octets = key.key_hash + seconds.to_bytes(_TIME_BYTES, "big") + signature
    return f"— {name} {base64.b64encode(octets).decode()}\n"


def verify_cosignature(signed: SignedCheckpoint, key: CosignerKey) -> int:
    """Return when a witness cosigned a checkpoint, in Unix seconds.

    Raises:
        AuditChainBroken: it did not, or its signature is wrong.
    """
    size = signed.checkpoint.size
    mine = [s for n, h, s in signed.signatures if n == key.name and h == key.key_hash]
    if not mine:
        raise AuditChainBroken(
            f"checkpoint {size} is not cosigned by {key.name}", code="witness.missing"
        )
    times = []
    for signature in mine:
        if len(signature) != _TIME_BYTES + _SIGNATURE_BYTES:
            raise _wrong(size, key)
        seconds = int.from_bytes(signature[:_TIME_BYTES], "big")
        if seconds > _LAST_SECOND:
            raise _wrong(size, key)
        try:
            key.public_key.verify(signature[_TIME_BYTES:], _message(signed.checkpoint, seconds))
        except InvalidSignature as exc:
            raise _wrong(size, key) from exc
        times.append(seconds)
    return min(times)


def with_cosignatures(note: str, lines: Sequence[str]) -> str:
    """Return a signed note with the lines of witnesses at its end, each once."""
    present = set(note.splitlines(keepends=True))
    return note + "".join(line for line in dict.fromkeys(lines) if line not in present)


def consistency_from(old: Frontier, leaves: Sequence[bytes]) -> list[bytes]:
    """Return the proof (RFC 9162 section 2.1.4.1) from a tree to one with more leaves.

    The frontier of the older tree and the hashes of the leaves after it are enough: what the
    proof needs of the older tree are complete subtrees, which its frontier has.

    Raises:
        AuditChainBroken: the older tree is empty.
    """
    if old.size == 0:
        raise AuditChainBroken("no consistency proof from an empty tree")
    proof = _Proof(old, leaves)
    return proof.subproof(old.size, 0, old.size + len(leaves), complete=True)


class _Proof:
    """Subtrees by range: of the older tree from its frontier, of the newer from its leaves."""

    def __init__(self, old: Frontier, leaves: Sequence[bytes]) -> None:
        self._size, self._leaves = old.size, leaves
        self._old: dict[tuple[int, int], bytes] = {}
        data, start = old.to_bytes(), 0
        for number in range(len(data) // HASH_BYTES):
            width = 1 << ((old.size - start).bit_length() - 1)
            octets = data[number * HASH_BYTES : (number + 1) * HASH_BYTES]
            self._old[start, start + width] = octets
            start += width

    def subproof(self, old: int, start: int, end: int, *, complete: bool) -> list[bytes]:
        if start + old == end:
            return [] if complete else [self._subtree(start, end)]
        middle = start + (1 << ((end - start - 1).bit_length() - 1))
        if start + old <= middle:
            proof = self.subproof(old, start, middle, complete=complete)
            return [*proof, self._subtree(middle, end)]
        proof = self.subproof(start + old - middle, middle, end, complete=False)
        return [*proof, self._subtree(start, middle)]

    def _subtree(self, start: int, end: int) -> bytes:
        known = self._old.get((start, end))
        if known is not None:
            return known
        if end - start == 1:
            return self._leaves[start - self._size]
        middle = start + (1 << ((end - start - 1).bit_length() - 1))
        return node_hash(self._subtree(start, middle), self._subtree(middle, end))


def _message(checkpoint: Checkpoint, seconds: int) -> bytes:
    return f"cosignature/v1\ntime {seconds}\n{checkpoint.text()}".encode()


def _wrong(size: int, key: CosignerKey) -> AuditChainBroken:
    return AuditChainBroken(
        f"checkpoint {size} has a wrong cosignature of {key.name}", code="witness.signature"
    )


def _malformed(reason: str) -> MalformedRequest:
    return MalformedRequest(reason, code="witness.malformed")
