"""The few DER octets we read and write ourselves (X.690, definite lengths only)."""

from __future__ import annotations

from estcore.errors import MalformedRequest

SEQUENCE, SET, BIT_STRING, NULL = 0x30, 0x31, 0x03, 0x05


def length(size: int) -> bytes:
    """Return the length octets for a content of ``size`` octets."""
    if size < 0x80:
        return bytes((size,))
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((0x80 | len(octets),)) + octets


def tlv(tag: int, *contents: bytes) -> bytes:
    """Return one element with a single-octet tag."""
    body = b"".join(contents)
    return bytes((tag,)) + length(len(body)) + body


def header(data: bytes, offset: int) -> tuple[int, int, int]:
    """Return (tag, content start, content end) of the element at ``offset``.

    Raises:
        MalformedRequest: truncated, indefinite or non-minimal length, multi-octet tag.
    """
    try:
        tag, first = data[offset], data[offset + 1]
    except IndexError as exc:
        raise MalformedRequest("truncated DER", code="der.malformed") from exc
    if tag & 0x1F == 0x1F:
        raise MalformedRequest("multi-octet tag", code="der.malformed")
    start = offset + 2
    size = first
    if first >= 0x80:
        count = first & 0x7F
        octets = data[start : start + count]
        if not 1 <= count <= 4 or len(octets) != count:
            raise MalformedRequest("indefinite or oversized length", code="der.malformed")
        size = int.from_bytes(octets, "big")
        if size < 0x80 or octets[0] == 0:
            raise MalformedRequest("length is not minimal", code="der.malformed")
        start += count
    end = start + size
    if end > len(data):
        raise MalformedRequest("truncated DER", code="der.malformed")
    return tag, start, end


def elements(data: bytes, start: int, end: int) -> list[tuple[int, int, int, int]]:
    """Return (tag, element start, content start, element end) of each element in a range."""
    found = []
    while start < end:
        tag, content, stop = header(data, start)
        if stop > end:
            raise MalformedRequest("element runs past its parent", code="der.malformed")
        found.append((tag, start, content, stop))
        start = stop
    return found


def children(data: bytes) -> list[bytes]:
    """Return the elements inside the single constructed element ``data``.

    Raises:
        MalformedRequest: not exactly one element, or one that is malformed.
    """
    _, start, end = header(data, 0)
    if end != len(data):
        raise MalformedRequest("trailing data after the DER", code="der.malformed")
    return [data[a:d] for _, a, _, d in elements(data, start, end)]
