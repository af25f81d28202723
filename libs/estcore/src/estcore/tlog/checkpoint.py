"""Checkpoints (C2SP tlog-checkpoint) as signed notes (C2SP signed-note), Ed25519 (pure).

A checkpoint is text: origin, size, base64 root, extension lines; an empty line; one line for
each signature: ``— <key name> <base64 of key hash and signature>``. A verifier key travels as
``<name>+<key hash>+<base64 of 0x01 and public key>``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass
from typing import ClassVar, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from typing_extensions import override

from estcore.errors import AuditChainBroken, MalformedRequest
from estcore.tlog.tree import HASH_BYTES

_KEY_HASH_BYTES = 4
_NAME = re.compile(r"[^\s+]+")
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_BODY_LINES = 3


@dataclass(frozen=True)
class Checkpoint:
    """What is signed: the first ``size`` leaves of ``origin`` have this root."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def text(self) -> str:
        """Return the text of the note, every line ended."""
        root = base64.b64encode(self.root).decode()
        return "".join(f"{line}\n" for line in (self.origin, self.size, root, *self.extensions))


@dataclass(frozen=True)
class NoteKey:
    """An Ed25519 key of signed notes and the name it signs under, with one of their algorithms."""

    name: str
    public_key: Ed25519PublicKey

    algorithm: ClassVar[bytes]
    """One octet: the type of signature (C2SP signed-note)."""
    malformed: ClassVar[str]
    """Error code of text that is no such key."""

    @property
    def key_hash(self) -> bytes:
        """SHA-256(name || 0x0A || algorithm || public key), the first four octets."""
        octets = self.name.encode() + b"\n" + self.algorithm + self.public_key.public_bytes_raw()
        return hashlib.sha256(octets).digest()[:_KEY_HASH_BYTES]

    @override
    def __str__(self) -> str:
        key = base64.b64encode(self.algorithm + self.public_key.public_bytes_raw()).decode()
        return f"{self.name}+{self.key_hash.hex()}+{key}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the key in a vkey string.

        Raises:
            MalformedRequest: not a vkey of this kind, or its hash is not that of its key.
        """
        parts = text.strip().split("+", 2)
        if len(parts) != 3 or not _NAME.fullmatch(parts[0]):  # noqa: PLR2004 - name, hash, key
            raise MalformedRequest("a verifier key is name+hash+key", code=cls.malformed)
        octets = canonical_base64(parts[2], code=cls.malformed)
        if len(octets) != 1 + HASH_BYTES or octets[:1] != cls.algorithm:
            raise MalformedRequest("the verifier key is of a different kind", code=cls.malformed)
        key = cls(parts[0], Ed25519PublicKey.from_public_bytes(octets[1:]))
        if str(key) != text.strip():
            raise MalformedRequest(
                "the hash in the verifier key is not that of the key", code=cls.malformed
            )
        return key


class VerifierKey(NoteKey):
    """The key of a log."""

    algorithm = b"\x01"
    malformed = "checkpoint.malformed"


@dataclass(frozen=True)
class SignedCheckpoint:
    """A checkpoint with its signatures as (name, key hash, signature), not yet verified."""

    checkpoint: Checkpoint
    signatures: tuple[tuple[str, bytes, bytes], ...]

    @property
    def note(self) -> str:
        """The signed note that it was parsed from."""
        lines = (
            f"— {name} {base64.b64encode(key_hash + signature).decode()}\n"
            for name, key_hash, signature in self.signatures
        )
        return f"{self.checkpoint.text()}\n{''.join(lines)}"

    def verify(self, key: VerifierKey) -> None:
        """Check that ``key`` signed it; signatures of other keys are not looked at.

        Raises:
            AuditChainBroken: no signature of this key, or a wrong one.
        """
        what = f"checkpoint {self.checkpoint.size}"
        _verify(what, self.checkpoint.text(), self.signatures, key)


def sign(checkpoint: Checkpoint, name: str, private_key: Ed25519PrivateKey) -> str:
    """Return the signed note."""
    return sign_text(checkpoint.text(), name, private_key)


def sign_text(text: str, name: str, private_key: Ed25519PrivateKey) -> str:
    """Return a text, every line ended, as a signed note.

    A text that is no checkpoint must not be readable as one: a blank in its first line, which
    no origin has, is enough.
    """
    key = VerifierKey(name, private_key.public_key())
    signature = base64.b64encode(key.key_hash + private_key.sign(text.encode())).decode()
    return f"{text}\n— {name} {signature}\n"


def verified_text(note: str, key: VerifierKey) -> str:
    """Return the text of a signed note that ``key`` signed.

    Raises:
        MalformedRequest: not a signed note.
        AuditChainBroken: no signature of this key, or a wrong one.
    """
    text, signatures = _parts(note)
    _verify("the note", text, signatures, key)
    return text


def _parts(note: str) -> tuple[str, tuple[tuple[str, bytes, bytes], ...]]:
    text, separator, tail = note.partition("\n\n")
    if not separator or not tail.endswith("\n"):
        raise _malformed("a signed note is text, an empty line and signature lines")
    return text + "\n", tuple(_parse_signature(line) for line in tail[:-1].split("\n"))


def _verify(
    what: str, text: str, signatures: tuple[tuple[str, bytes, bytes], ...], key: VerifierKey
) -> None:
    mine = [s for n, h, s in signatures if n == key.name and h == key.key_hash]
    if not mine:
        raise AuditChainBroken(f"{what} is not signed by {key.name}")
    for signature in mine:
        try:
            key.public_key.verify(signature, text.encode())
        except InvalidSignature as exc:
            raise AuditChainBroken(f"{what} has a wrong signature") from exc


def parse_signed(note: str) -> SignedCheckpoint:
    """Return the checkpoint in a signed note; signatures are parsed, not verified.

    Raises:
        MalformedRequest: anything that ``sign`` would have written differently.
    """
    text, signatures = _parts(note)
    return SignedCheckpoint(_parse_text(text), signatures)


def kept_note(text: str) -> str:
    """Return the note in a kept file: as it is, or inside JSON.

    JSON is a checkpoint's line of an export, or the message that a SIEM received. What is
    neither is returned as it is; ``parse_signed`` refuses it.
    """
    if not text.lstrip("\ufeff").startswith("{"):
        return text
    try:
        value = json.loads(text.lstrip("\ufeff"))
    except (ValueError, RecursionError):
        return text
    notes = [value[name] for name in ("note", "checkpoint") if isinstance(value.get(name), str)]
    return notes[0] if notes else text


def check_name(name: str) -> str:
    """Return ``name`` if it may be an origin and a key name.

    Raises:
        MalformedRequest: empty, or with white space or a plus sign.
    """
    if not _NAME.fullmatch(name) or not name.isprintable():
        raise _malformed("an origin has no white space and no plus sign")
    return name


def _parse_text(text: str) -> Checkpoint:
    lines = text[:-1].split("\n")
    if len(lines) < _BODY_LINES or not all(line and line.isprintable() for line in lines):
        raise _malformed("a checkpoint is origin, size, root and extension lines")
    if not _SIZE.fullmatch(lines[1]):
        raise _malformed("the size is not a decimal number")
    root = canonical_base64(lines[2])
    if len(root) != HASH_BYTES:
        raise _malformed("the root is not a SHA-256")
    return Checkpoint(lines[0], int(lines[1]), root, tuple(lines[_BODY_LINES:]))


def _parse_signature(line: str) -> tuple[str, bytes, bytes]:
    parts = line.split(" ")
    if len(parts) != 3 or parts[0] != "—" or not _NAME.fullmatch(parts[1]):  # noqa: PLR2004
        raise _malformed("a signature line is an em dash, a key name and base64")
    octets = canonical_base64(parts[2])
    if len(octets) < _KEY_HASH_BYTES + 1:
        raise _malformed("a signature is too short")
    return parts[1], octets[:_KEY_HASH_BYTES], octets[_KEY_HASH_BYTES:]


def canonical_base64(text: str, *, code: str = "checkpoint.malformed") -> bytes:
    """Return the octets in base64, of which there is one spelling.

    Raises:
        MalformedRequest: with ``code``; not base64, or not that spelling.
    """
    try:
        octets = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise MalformedRequest("not base64", code=code) from exc
    if base64.b64encode(octets).decode() != text:
        raise MalformedRequest("base64 that is not canonical", code=code)
    return octets


def _malformed(reason: str) -> MalformedRequest:
    return MalformedRequest(reason, code="checkpoint.malformed")
