"""A strict reader and writer of DER elements (X.690, definite lengths only).

Why not a library: docs/adr/0043-der-reader-of-our-own.md.
"""

from __future__ import annotations

from estcore.errors import MalformedRequest

SEQUENCE, SET, BIT_STRING, NULL = 0x30, 0x31, 0x03, 0x05
BOOLEAN, INTEGER, OCTET_STRING, OBJECT_IDENTIFIER = 0x01, 0x02, 0x04, 0x06


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
    spans = []
    size = len(data)
    while start < end:
        # Most elements have one octet of tag and one of length; the others take the long way.
        content = start + 2
        if content <= size and data[start + 1] < 0x80 and data[start] & 0x1F != 0x1F:
            tag, stop = data[start], content + data[start + 1]
            if stop > size:
                raise MalformedRequest("truncated DER", code="der.malformed")
        else:
            tag, content, stop = header(data, start)
        if stop > end:
            raise MalformedRequest("element runs past its parent", code="der.malformed")
        spans.append((tag, start, content, stop))
        start = stop
    return spans


def children(data: bytes) -> list[bytes]:
    """Return the elements inside the single constructed element ``data``.

    Raises:
        MalformedRequest: not exactly one element, or one that is malformed.
    """
    _, start, end = header(data, 0)
    if end != len(data):
        raise MalformedRequest("trailing data after the DER", code="der.malformed")
    return [data[a:d] for _, a, _, d in elements(data, start, end)]


def inside(element: bytes, tag: int) -> list[bytes]:
    """Return the elements inside one whole constructed element that must have ``tag``.

    Raises:
        MalformedRequest: another tag, trailing data, or malformed.
    """
    if element[:1] != bytes((tag,)):
        raise MalformedRequest(f"expected DER tag {tag:#04x}", code="der.malformed")
    return children(element)


def content(element: bytes, tag: int) -> bytes:
    """Return the content octets of one whole element that must have ``tag``.

    Raises:
        MalformedRequest: another tag, trailing data, or malformed.
    """
    actual, start, end = header(element, 0)
    if actual != tag or end != len(element):
        raise MalformedRequest(f"expected one DER element {tag:#04x}", code="der.malformed")
    return element[start:end]


def oid(dotted: str) -> bytes:
    """Return the OBJECT IDENTIFIER element for an identifier in dotted form."""
    first, second, *rest = (int(part) for part in dotted.split("."))
    octets = bytearray()
    for arc in (first * 40 + second, *rest):
        piece = [arc & 0x7F]
        while arc := arc >> 7:
            piece.append(0x80 | arc & 0x7F)
        octets += bytes(reversed(piece))
    return tlv(OBJECT_IDENTIFIER, bytes(octets))


def oid_text(element: bytes) -> str:
    """Return the dotted form of one OBJECT IDENTIFIER element of at most 64 octets.

    Raises:
        MalformedRequest: not one, too long, or an arc that is not minimal or not complete.
    """
    octets = content(element, OBJECT_IDENTIFIER)
    if not 1 <= len(octets) <= 64 or octets[-1] & 0x80:
        raise MalformedRequest("not an object identifier", code="der.malformed")
    arcs, arc = [], 0
    for octet in octets:
        if arc == 0 and octet == 0x80:
            raise MalformedRequest("object identifier is not minimal", code="der.malformed")
        arc = arc << 7 | octet & 0x7F
        if not octet & 0x80:
            arcs.append(arc)
            arc = 0
    first = min(arcs[0] // 40, 2)
    return ".".join(str(n) for n in (first, arcs[0] - 40 * first, *arcs[1:]))


def integer(number: int) -> bytes:
    """Return the INTEGER element of a number that is not negative."""
    return tlv(INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def integer_value(element: bytes) -> int:
    """Return the value of one INTEGER element that is not negative.

    Raises:
        MalformedRequest: not one, negative, or not minimal.
    """
    octets = content(element, INTEGER)
    padded = len(octets) > 1 and octets[0] == 0 and octets[1] < 0x80
    if not octets or octets[0] >= 0x80 or padded:
        raise MalformedRequest("not a whole number in DER", code="der.malformed")
    return int.from_bytes(octets, "big")
