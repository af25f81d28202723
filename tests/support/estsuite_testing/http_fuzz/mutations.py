"""Mutations of HTTP/1.1 requests: octets in, octets out, all chance from one source."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_CRLF = b"\r\n"
_END = b"\r\n\r\n"
_WORDS = (
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\0", b" ", b"\t", b":", b",", b";", b"\x7f", b"\x80\xff",
    b"%00", b"%0d%0a", b"%2e%2e/", b"//", b"\xc3\xa9", b"chunked", b"0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n",
)  # fmt: skip
_FIELDS = (
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: identity",
    b"Transfer-Encoding:\tchunked", b"Transfer-Encoding : chunked", b"transfer-encoding: CHUNKED",
    b"Transfer-Encoding: chunked, chunked", b"Content-Length: 0", b"Content-Length: -1",
    b"Content-Length: +5", b"Content-Length: 5, 5", b"Content-Length: 5\r\nContent-Length: 6",
    b"Content-Length: 99999999999999999999999", b"Content-Length: 0x10", b"Content-Length: 1_0",
    b"Content-Length:", b"Expect: 100-continue", b"Expect: other", b"Connection: keep-alive",
    b"Connection: close", b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13",
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
    b"Content-Encoding: gzip", b"Content-Encoding: deflate", b"Content-Encoding: br, zstd",
    b"Host: elsewhere.test", b"Host: localhost\r\nHost: localhost", b"Host:", b"Host: [::1", b"Host: a b",
    b"Authorization: Basic", b"Authorization: Basic !!!", b"Authorization: Digest username=",
    b"Authorization: Bearer e30.e30.", b"Authorization: DPoP x.y.z\r\nDPoP: x.y.z", b"Content-Type: \xff",
    b"Content-Type: application/jose", b"Trailer: Host", b"TE: trailers", b"Range: bytes=0-",
    b"X-Correlation-ID: \xff\xfe", b": no name", b" folded: value", b"Name\0: value", b"\xe9: value",
    b"Keep-Alive: timeout=-1", b"If-None-Match: *", b"Forwarded: for=\"", b"Max-Forwards: 0",
)  # fmt: skip
_TARGETS = (
    b"*", b"/", b"//", b"localhost:443", b"https://localhost/.well-known/est/cacerts",
    b"https://elsewhere.test/.well-known/est/cacerts", b"https://u:p@localhost/.well-known/est/cacerts",
    b"https://[::1/", b"https://localhost:99999/.well-known/est/cacerts", b"http://[v1.x]/", b"https:///",
    b"/.well-known/est/cacerts?" + b"a=b&" * 50, b"/.well-known/est/cacerts#x", b"/.well-known/est/../est/cacerts",
    b"/.well-known/est/%63acerts", b"/.well-known/est/\xff", b"/.well-known/est//cacerts", b"/%", b"/\x7f",
    b"/.well-known/est/services/services/cacerts", b"javascript:1", b"file:///etc/passwd", b"/a b", b"\\",
)  # fmt: skip
_METHODS = (
    b"get", b"G\tT", b"CONNECT", b"OPTIONS", b"TRACE", b"PRI", b"M-SEARCH", b"PUT", b"DELETE", b"HEAD", b"POST",
    b"GET", b"QUERY", b"\0", b"X" * 300,
)  # fmt: skip
_VERSIONS = (b"HTTP/0.9", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/11.1", b"http/1.1", b"HTTP/1.", b"HTTP/1,1", b"")  # fmt: skip
_SIZES = (
    b"0", b"00000000000", b"-1", b"+1", b"0x1", b"ffffffff", b"ffffffffffffffff", b"f" * 40, b"1;a=b", b"1 ", b" 1",
    b"1;" + b"x" * 5000, b"", b"g", b"1\n", b"7fffffffffffffff", b"1_0",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is sent on a connection: pieces with a pause after each, then perhaps the end."""

    pieces: tuple[bytes, ...]
    close_early: bool

    @property
    def octets(self) -> bytes:
        """All pieces."""
        return b"".join(self.pieces)


def _split(request: bytes) -> tuple[list[bytes], bytes]:
    head, _, body = request.partition(_END)
    return head.split(_CRLF), body


def _join(lines: Sequence[bytes], body: bytes) -> bytes:
    return _CRLF.join(lines) + _END + body


def _place(source: random.Random, request: bytes) -> int:
    """Choose a place, three times of four in the head."""
    head = request.find(_END) + len(_END)
    within = head if head >= len(_END) and source.random() < 0.75 else len(request)
    return source.randrange(within + 1)


def octet(source: random.Random, request: bytes) -> bytes:
    """Change one octet to any other."""
    place = _place(source, request)
    return request[:place] + bytes([source.randrange(256)]) + request[place + 1 :]


def insert(source: random.Random, request: bytes) -> bytes:
    """Insert a word that means something to a parser."""
    place = _place(source, request)
    return request[:place] + source.choice(_WORDS) + request[place:]


def remove(source: random.Random, request: bytes) -> bytes:
    """Remove some octets."""
    place = _place(source, request)
    return request[:place] + request[place + source.randint(1, 24) :]


def no_crlf(source: random.Random, request: bytes) -> bytes:
    """Replace the end of one line, or of all."""
    other = source.choice((b"\n", b"\r", b"", b"\r\r\n", b"\n\r"))
    count = request.count(_CRLF)
    if not count or source.random() < 0.3:
        return request.replace(_CRLF, other)
    parts = request.split(_CRLF)
    at = source.randrange(len(parts) - 1)
    return _CRLF.join(parts[: at + 1]) + other + _CRLF.join(parts[at + 1 :])


def field(source: random.Random, request: bytes) -> bytes:
    """Add a header field, at any place among the others."""
    lines, body = _split(request)
    lines.insert(source.randint(1, len(lines)), source.choice(_FIELDS))
    return _join(lines, body)


def duplicate(source: random.Random, request: bytes) -> bytes:
    """Repeat a header field, once or a hundred times."""
    lines, body = _split(request)
    at = source.randrange(len(lines))
    lines[at:at] = [lines[at]] * source.choice((1, 1, 2, 100))
    return _join(lines, body)


def drop(source: random.Random, request: bytes) -> bytes:
    """Leave one line of the head out."""
    lines, body = _split(request)
    del lines[source.randrange(len(lines))]
    return _join(lines, body)


def huge(source: random.Random, request: bytes) -> bytes:
    """Make a field, a name, the target, or the number of fields huge."""
    lines, body = _split(request)
    size = source.choice((1_000, 8_100, 8_190, 8_300, 70_000))
    match source.randrange(4):
        case 0:
            lines.append(b"X-Big: " + b"v" * size)
        case 1:
            lines.append(b"n" * size + b": v")
        case 2:
            lines[0] = lines[0].replace(b" /", b" /" + b"p" * size, 1)
        case _:
            lines += [b"X-%d: v" % number for number in range(size // 20)]
    return _join(lines, body)


def request_line(source: random.Random, request: bytes) -> bytes:
    """Change method, target or version."""
    lines, body = _split(request)
    words = lines[0].split(b" ")
    at = source.randrange(3)
    if at < len(words):
        words[at] = source.choice((_METHODS, _TARGETS, _VERSIONS)[at])
    lines[0] = b" ".join(words)
    return _join(lines, body)


def chunks(source: random.Random, request: bytes) -> bytes:
    """Send the body in chunks, some of them with a size that is none."""
    lines, body = _split(request)
    lines = [line for line in lines if not line.lower().startswith(b"content-length")]
    lines.insert(1, b"Transfer-Encoding: chunked")
    out = b""
    while body:
        size = source.randint(1, 400)
        said = source.choice(_SIZES) if source.random() < 0.2 else b"%x" % min(size, len(body))
        end = b"" if source.random() < 0.05 else _CRLF
        out, body = out + said + _CRLF + body[:size] + end, body[size:]
    trailer = source.choice(
        (b"", b"", b"X: y\r\n", b"Host: x\r\n", b"t" * 9000 + b": y\r\n", b"\0\r\n")
    )
    return _join(lines, out + source.choice((b"0", b"0", b"00", b"")) + _CRLF + trailer + _CRLF)


def content_length(source: random.Random, request: bytes) -> bytes:
    """Say another length than the body has."""
    lines, body = _split(request)
    lines = [line for line in lines if not line.lower().startswith(b"content-length")]
    said = max(0, len(body) + source.choice((-20, -1, 1, 20, 70_000)))
    return _join([*lines, b"Content-Length: %d" % said], body)


def cut(source: random.Random, request: bytes) -> bytes:
    """End anywhere."""
    return request[: _place(source, request)]


def noise(source: random.Random, request: bytes) -> bytes:
    """Put random octets in front, or in place of everything."""
    octets = source.randbytes(source.randint(1, 200))
    return octets + (request if source.random() < 0.5 else b"")


MUTATIONS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    octet, insert, remove, no_crlf, field, duplicate, drop, huge, request_line, chunks, content_length, cut, noise,
)  # fmt: skip


def mutated(source: random.Random, request: bytes) -> bytes:
    """Return the request after none to four mutations."""
    for _ in range(source.choice((0, 0, 1, 1, 1, 2, 2, 4))):
        request = source.choice(MUTATIONS)(source, request)
    return request


def plan(source: random.Random, seeds: Sequence[bytes]) -> Plan:
    """Return what to send next: one request or several in a row, in one piece or in several."""
    count = source.choice((1, 1, 1, 1, 2, 3, 6))
    octets = b"".join(mutated(source, source.choice(seeds)) for _ in range(count))
    pieces = [octets]
    if source.random() < 0.2 and len(octets) > 1:
        at = sorted({source.randrange(1, len(octets)) for _ in range(source.randint(1, 3))})
        pieces = [octets[a:b] for a, b in zip([0, *at], [*at, len(octets)], strict=True)]
    return Plan(tuple(pieces), close_early=source.random() < 0.1)
