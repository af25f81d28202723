"""Protocol between the signer and the worker process of a token (pure, strict).

A frame is ``length (4) | kind (1) | number (4) | body``, big endian; the length counts what
follows it. Requests are numbered by the signer. The worker answers every request once, in order,
with the request's number, so many may be under way at once. Bodies are JSON objects with exactly
the fields below, except SIGN (``key (1) | mechanism (1) | data``) and SIGNED (the raw octets). A
frame of any other form ends the process: there is no resynchronisation.

The PIN travels in OPEN only. Errors travel as names of PKCS#11 codes.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass, field, fields
from enum import IntEnum
from typing import Any, TypeVar

MAX_FRAME = 1 << 20
_HEADER = struct.Struct(">IBI")
_PREFIX = struct.Struct(">I")
_SIGN = struct.Struct(">BB")
T = TypeVar("T", bound="_Body")


class ProtocolBroken(Exception):
    """The other end wrote something that is not of the protocol."""


class Kind(IntEnum):
    """What a frame is: a request, or the answer to one."""

    OPEN = 1
    FIND = 2
    SIGN = 3
    LIST = 4
    GENERATE = 5
    OPENED = 17
    KEY = 18
    SIGNED = 19
    KEYS = 20
    FAILED = 31


class Mechanism(IntEnum):
    """How to sign; the data are what the mechanism takes."""

    ECDSA = 1  # a digest; r and s of equal length come back
    RSA_PKCS = 2  # a DigestInfo (RFC 8017 section 9.2)
    EDDSA = 3  # the message itself


@dataclass(frozen=True)
class Frame:
    """One frame."""

    kind: Kind
    number: int
    body: bytes = b""

    def encode(self) -> bytes:
        """Return the frame's octets."""
        return _HEADER.pack(len(self.body) + 5, self.kind, self.number) + self.body


class FrameReader:
    """Cuts a stream of octets into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that are complete with ``data``.

        Raises:
            ProtocolBroken: a length or a kind that does not exist.
        """
        self._buffer += data
        frames = []
        while len(self._buffer) >= _PREFIX.size:
            (length,) = _PREFIX.unpack_from(self._buffer)
            if not _HEADER.size - _PREFIX.size <= length <= MAX_FRAME:
                raise ProtocolBroken("a frame of an impossible length")
            end = _PREFIX.size + length
            if len(self._buffer) < end:
                break
            frames.append(_frame(bytes(self._buffer[:end])))
            del self._buffer[:end]
        return frames


def _frame(octets: bytes) -> Frame:
    _, kind, number = _HEADER.unpack_from(octets)
    try:
        return Frame(Kind(kind), number, octets[_HEADER.size :])
    except ValueError as exc:
        raise ProtocolBroken("a frame of an unknown kind") from exc


@dataclass(frozen=True)
class _Body:
    """A JSON body: texts and true or false, every field present, no other."""

    def encode(self) -> bytes:
        """Return the body's octets."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls: type[T], body: bytes) -> T:
        """Return the body in ``body``.

        Raises:
            ProtocolBroken: not exactly the fields, or of other types.
        """
        return cls._checked(_json(body))

    @classmethod
    def _checked(cls: type[T], raw: Any) -> T:
        types = {
            member.name: {"str": str, "bool": bool}[str(member.type)] for member in fields(cls)
        }
        if not isinstance(raw, dict) or raw.keys() != types.keys():
            raise ProtocolBroken(f"not the fields of {cls.__name__}")
        if any(type(raw[name]) is not expected for name, expected in types.items()):
            raise ProtocolBroken(f"not the types of {cls.__name__}")
        return cls(**raw)


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError as exc:
        raise ProtocolBroken("not JSON") from exc


@dataclass(frozen=True)
class Open(_Body):
    """Load the module, log in to the one token of that label or serial; "" is not given."""

    module: str
    label: str
    serial: str
    pin: str = field(repr=False)
    write: bool


@dataclass(frozen=True)
class Find(_Body):
    """Find the one private key with this CKA_ID (hex) and label ("" is any).

    The n-th key that was found is key n of SIGN, counted from 0.
    """

    key_id: str
    label: str


@dataclass(frozen=True)
class Generate(_Body):
    """Make a key that never leaves the token; ``algorithm`` as in profiles (``ec-p256``)."""

    key_id: str
    label: str
    algorithm: str


@dataclass(frozen=True)
class Key(_Body):
    """A key's attributes in the token, in hex; "" where it has none.

    ``kind`` is the name of CKA_KEY_TYPE: EC, RSA, EC_EDWARDS or another.
    """

    key_id: str
    label: str
    kind: str
    ec_params: str
    ec_point: str
    modulus: str
    exponent: str
    sensitive: bool
    extractable: bool


@dataclass(frozen=True)
class Failed(_Body):
    """Why a request failed: where it stood, the name of the PKCS#11 code, a word for people."""

    phase: str
    error: str
    text: str


def encode_keys(keys: list[Key]) -> bytes:
    """Return the body of KEYS."""
    return json.dumps([asdict(key) for key in keys]).encode()


def decode_keys(body: bytes) -> list[Key]:
    """Return the keys in the body of KEYS.

    Raises:
        ProtocolBroken: not a list of keys.
    """
    raw = _json(body)
    if not isinstance(raw, list):
        raise ProtocolBroken("not a list of keys")
    return [Key._checked(item) for item in raw]  # noqa: SLF001 - a class of this module


def encode_sign(key: int, mechanism: Mechanism, data: bytes) -> bytes:
    """Return the body of SIGN."""
    return _SIGN.pack(key, mechanism) + data


def decode_sign(body: bytes) -> tuple[int, Mechanism, bytes]:
    """Return (key, mechanism, data) of the body of SIGN.

    Raises:
        ProtocolBroken: too short, or an unknown mechanism.
    """
    try:
        key, mechanism = _SIGN.unpack_from(body)
        return key, Mechanism(mechanism), body[_SIGN.size :]
    except (struct.error, ValueError) as exc:
        raise ProtocolBroken("not a request to sign") from exc
