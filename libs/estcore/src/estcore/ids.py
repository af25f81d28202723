"""Identifiers: what is unique, what is derived, and what a topic token may look like."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Callable, Iterable

from estcore.clock import unix_ms

TOKEN = re.compile(r"[a-z0-9-]{1,63}")
"""One topic token: tenant, service, group, issuer, instance."""

SLOT_NAMESPACE = uuid.UUID("8b0f7b64-7f0a-5e0c-9d5f-0a8f6c1d2e30")
ROTATION_NAMESPACE = uuid.UUID("3f5d6b0e-5a43-5a52-8f1c-7e9b1f0c4d21")
RECORD_NAMESPACE = uuid.UUID("c9d4b0aa-2f57-5c7e-b6ff-0d1be3a5f7c4")

_SERIAL_OCTETS = 18
_TIMED = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[78][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
"""A UUID whose first 48 bits are a time."""

RandomBytes = Callable[[int], bytes]


def is_token(text: str) -> bool:
    """Return whether ``text`` may stand as one token of a topic."""
    return TOKEN.fullmatch(text) is not None


def uuid7(random_bytes: RandomBytes = os.urandom, *, now_ms: int | None = None) -> str:
    """Return a new UUIDv7 (RFC 9562 section 5.7): sorts by time, unique for ever."""
    ms = unix_ms() if now_ms is None else now_ms
    tail = int.from_bytes(random_bytes(10), "big")
    value = (ms & (1 << 48) - 1) << 80 | 7 << 76 | (tail >> 62 & 0xFFF) << 64 | 2 << 62
    value |= tail & (1 << 62) - 1
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def digest(parts: Iterable[bytes]) -> bytes:
    """Return SHA-256 over the parts, each prefixed with its length, so no two lists collide."""
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(len(part).to_bytes(4, "big"))
        hasher.update(part)
    return hasher.digest()


def new_serial_number(random_bytes: RandomBytes = os.urandom, *, now_ms: int | None = None) -> int:
    """Return octet 0x01, six octets of Unix milliseconds, 11 random octets.

    Positive, 18 octets, 88 random bits where the CA/Browser Forum asks for 64. It begins with the
    time, so that an index over serial numbers grows at its end; shards go by its last octet.
    """
    ms = unix_ms() if now_ms is None else now_ms
    time = (ms & (1 << 48) - 1).to_bytes(6, "big")
    return int.from_bytes(b"\x01" + time + random_bytes(11), "big")


def issued_at_ms(serial_number: int) -> int | None:
    """Return the Unix milliseconds in one of our serial numbers; None where it is not one."""
    octets = serial_number.to_bytes((serial_number.bit_length() + 7) // 8, "big")
    if len(octets) != _SERIAL_OCTETS or octets[0] != 1:
        return None
    return int.from_bytes(octets[1:7], "big")


def serial_hex(serial_number: int) -> str:
    """Return the serial number as lower-case hexadecimal octets, for edges and people."""
    text = f"{serial_number:x}"
    return text if len(text) % 2 == 0 else "0" + text


def slot_id(
    tenant: str, service: str, issuer: str, profile: str, subject: str, san: Iterable[str]
) -> str:
    """Return the id of one logical identity across its generations of certificates."""
    parts = [tenant, service, issuer, profile, subject, *sorted(san)]
    return str(uuid.uuid5(SLOT_NAMESPACE, digest(p.encode() for p in parts).hex()))


def rotation_id(slot: str, generation: int) -> str:
    """Return the id of the rotation that leads to ``generation``; the same after any crash."""
    return str(uuid.uuid5(ROTATION_NAMESPACE, f"{slot}/{generation}"))


def record_id(*parts: str) -> str:
    """Return the id of an audit record derived from a row, the same however often it is sent.

    A UUIDv8 (RFC 9562 section 5.8): 48 bits of time from the first part that is a UUIDv7 or such
    an id, then 74 bits of SHA-256 over all parts. So the ids of one hour are beside one another in
    an index. Without such a part it is a UUIDv5.
    """
    name = "/".join(parts)
    for part in parts:
        if _TIMED.fullmatch(part):
            break
    else:
        return str(uuid.uuid5(RECORD_NAMESPACE, name))
    value = int.from_bytes(
        hashlib.sha256(RECORD_NAMESPACE.bytes + name.encode()).digest()[:10], "big"
    )
    text = f"{8 << 76 | (value >> 62 & 0xFFF) << 64 | 2 << 62 | value & (1 << 62) - 1:020x}"
    return f"{part[:13]}-{text[:4]}-{text[4:8]}-{text[8:]}"
