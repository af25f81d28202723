"""Records of TLS on the wire (RFC 8446 section 5.1), by their headers alone."""

from __future__ import annotations

RECORD_HEADER = 5
_RECORD_TYPES = range(20, 25)


def first_record(data: bytes) -> tuple[bytes, bytes]:
    """Return the first complete TLS record and the rest; b"" when it is not complete.

    What cannot be TLS is returned whole, so that OpenSSL refuses it at once.
    """
    if data and (data[0] not in _RECORD_TYPES or data[1:2] not in {b"", b"\x03"}):
        return data, b""
    if len(data) < RECORD_HEADER:
        return b"", data
    size = RECORD_HEADER + int.from_bytes(data[3:5], "big")
    if len(data) < size:
        return b"", data
    return data[:size], data[size:]


def whole_records(data: bytes) -> int | None:
    """Return how many TLS records the octets are exactly; None when they end inside one."""
    place = count = 0
    while place < len(data):
        if place + RECORD_HEADER > len(data):
            return None
        place += RECORD_HEADER + int.from_bytes(data[place + 3 : place + 5], "big")
        count += 1
    return count if place == len(data) else None
