"""The HTTP library's own error path is ours: one line, no octet of the request, a record."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest
import uvloop
from aiohttp import web

from est_frontend.web import responses
from est_frontend.web.request_body import read_body
from est_frontend.web.server import LimitedServer, request_factory
from estcore import ids
from estcore.errors import ESTSuiteError
from estcore.runtime import logs

SECRET = b"c2VjcmV0LW9jdGV0cw"
HOST = b"Host: localhost\r\n"


def head(*lines: bytes, first: bytes = b"GET /.well-known/est/cacerts HTTP/1.1") -> bytes:
    return b"\r\n".join([first, b"Host: localhost", *lines, b"", b""])


def post(body: bytes, *lines: bytes) -> bytes:
    return head(b"Authorization: Basic " + SECRET, *lines, first=b"POST /x HTTP/1.1") + body


CHUNKED = b"Transfer-Encoding: chunked"
MALFORMED_HEADS = {
    "space before the colon": head(b"Authorization : Basic " + SECRET),
    "tab before the colon": head(b"Authorization\t: Basic " + SECRET),
    "no colon": head(b"Authorization Basic " + SECRET),
    "empty name": head(b": " + SECRET),
    "folded first line": b"GET / HTTP/1.1\r\n " + SECRET + b"\r\n" + HOST + b"\r\n",
    "folded value": head(b"Authorization: Basic", b" " + SECRET),
    "name that is no token": head(b"Author(ization): " + SECRET),
    "name with an octet over 127": head(b"Author\xffization: " + SECRET),
    "NUL in a value": head(b"Authorization: " + SECRET + b"\0"),
    "escape in a value": head(b"Authorization: \x1b" + SECRET),
    "lone CR in a value": head(b"Authorization: " + SECRET + b"\rX: y"),
    "lone CR in the request line": head(first=b"GET /" + SECRET + b"\r HTTP/1.1"),
    "lone LF ends the head": b"GET /" + SECRET + b" HTTP/1.1\n" + HOST + b"\n\n",
    "no method": b" /" + SECRET + b" HTTP/1.1\r\n\r\n",
    "unknown method": head(first=SECRET + b" / HTTP/1.1"),
    "no target": head(first=b"GET HTTP/1.1"),
    "only a word": SECRET + b"\r\n\r\n",
    "target of another form": head(first=b"GET " + SECRET + b" HTTP/1.1"),
    "authority without CONNECT": head(first=b"GET " + SECRET + b":443 HTTP/1.1"),
    "absolute target without host": head(first=b"GET http:///" + SECRET + b" HTTP/1.1"),
    "absolute target, bad port": head(first=b"GET http://x:99999/" + SECRET + b" HTTP/1.1"),
    "absolute target, bad address": head(first=b"GET http://[::/" + SECRET + b" HTTP/1.1"),
    "HTTP/0.9": head(b"X: " + SECRET, first=b"GET / HTTP/0.9"),
    "HTTP/1.2": head(b"X: " + SECRET, first=b"GET / HTTP/1.2"),
    "HTTP/2.0": head(b"X: " + SECRET, first=b"GET / HTTP/2.0"),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no version": b"GET /" + SECRET + b"\r\n\r\n",
    "another protocol": head(first=b"GET /" + SECRET + b" SIP/1.0"),
    "TLS in TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + SECRET + b"\r\n\r\n",
    "no Host": b"GET /" + SECRET + b" HTTP/1.1\r\n\r\n",
    "two Hosts": head(b"Host: " + SECRET),
    "Content-Length with a sign": post(b"", b"Content-Length: +5"),
    "negative Content-Length": post(b"", b"Content-Length: -5"),
    "Content-Length of letters": post(b"", b"Content-Length: " + SECRET),
    "Content-Length beyond 64 bits": post(b"", b"Content-Length: " + b"9" * 40),
    "two Content-Lengths": post(b"", b"Content-Length: 5", b"Content-Length: 6"),
    "empty Content-Length": post(b"", b"Content-Length:"),
    "length and chunked": post(b"", b"Content-Length: 5", CHUNKED),
    "unknown Transfer-Encoding": post(b"", b"Transfer-Encoding: " + SECRET),
    "chunked not last": post(b"", b"Transfer-Encoding: chunked, gzip"),
    "old web socket": head(b"Sec-WebSocket-Key1: " + SECRET),
    "too many fields": head(*[b"X: " + SECRET] * 200),
    "random octets": bytes(range(256)) + SECRET + b"\r\n\r\n",
}
LONG_HEADS = {
    "long target": head(first=b"GET /" + SECRET * 600 + b" HTTP/1.1"),
    "long value": head(b"Authorization: Basic " + SECRET * 600),
    "long name": head(SECRET * 600 + b": x"),
    "long head that never ends": b"GET /" + SECRET * 600,
}
BROKEN_BODIES = {
    "size that is no number": post(SECRET + b"\r\n", CHUNKED),
    "negative size": post(b"-1\r\n" + SECRET + b"\r\n", CHUNKED),
    "chunk without an end": post(b"5\r\nhello" + SECRET + b"\r\n", CHUNKED),
    "second chunk is broken": post(b"5\r\nhello\r\n" + SECRET + b"\r\n", CHUNKED),
    "size beyond 64 bits": post(b"f" * 40 + b"\r\n" + SECRET, CHUNKED),
    "malformed trailer": post(b"5\r\nhello\r\n0\r\nX : " + SECRET + b"\r\n\r\n", CHUNKED),
    "lone CR after a size": post(b"5\rhello" + SECRET, CHUNKED),
}


class Answering:
    """Reads bodies and fails as the path says."""

    def __init__(self, failure: Callable[[], Exception] | None = None) -> None:
        self.failure = failure
        self.refused: list[ESTSuiteError] = []

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.failure is not None:
            raise self.failure()
        try:
            await read_body(request, 1000, timeout_s=5)
        except ESTSuiteError as exc:
            return self.refuse(request, exc)
        return responses.empty("c")

    def refuse(self, request: web.BaseRequest, error: ESTSuiteError) -> web.Response:
        del request
        self.refused.append(error)
        return responses.failure(error, ids.uuid7())


async def exchange(handler: Answering, *pieces: bytes, until: bytes = b"") -> bytes:
    """Return what the server sends before it ends the connection, or ``until`` these octets."""
    server = LimitedServer(
        handler,
        max_connections=9,
        head_timeout_s=5,
        request_factory=request_factory(1000),
        access_log=None,
        max_line_size=8190,
        max_field_size=8190,
        max_headers=64,
        lingering_time=2,
        auto_decompress=False,
    )
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(server, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(4):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.02 if len(pieces) > 1 else 0)
            return await (reader.readuntil(until) if until else reader.read())
    finally:
        writer.close()
        listening.close()
        await server.shutdown(1)


def run(story: Awaitable[bytes]) -> bytes:
    async def inside() -> bytes:
        return await story

    return uvloop.run(inside())


def written(caplog: pytest.LogCaptureFixture) -> str:
    """Everything the process would have written to its log."""
    formatter = logs.JSONFormatter("s", "i")
    return "\n".join(formatter.format(record) for record in caplog.records)


def assert_ours(answer: bytes, status: int, code: str) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode("ascii").split("\r\n")
    assert lines[0].startswith(f"HTTP/1.1 {status} ")
    fields = dict(line.split(": ", 1) for line in lines[1:])
    assert fields["Server"] == "est"
    assert fields["Content-Type"] == "text/plain; charset=utf-8"
    assert fields["Connection"] == "close"
    assert len(fields["X-Correlation-ID"]) == 36
    assert int(fields["Content-Length"]) == len(body)
    assert body.count(b"\n") == 1
    assert body.endswith(f"[{code}]\n".encode())
    assert SECRET not in answer


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


@pytest.mark.parametrize("what", MALFORMED_HEADS)
def test_a_malformed_head_gets_one_line_of_ours(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Answering()
    answer = run(exchange(handler, MALFORMED_HEADS[what]))
    assert_ours(answer, 400, "request.malformed")
    assert [error.code for error in handler.refused] == ["request.malformed"]
    assert SECRET.decode() not in str(handler.refused[0])
    assert written(caplog).count("\n") == 0
    assert SECRET.decode() not in written(caplog)


@pytest.mark.parametrize("what", LONG_HEADS)
def test_a_head_that_is_too_large_gets_431(what: str, caplog: pytest.LogCaptureFixture) -> None:
    handler = Answering()
    answer = run(exchange(handler, LONG_HEADS[what]))
    assert_ours(answer, 431, "request.head_too_large")
    assert [error.code for error in handler.refused] == ["request.head_too_large"]
    assert SECRET.decode() not in written(caplog)


@pytest.mark.parametrize("pieces", ["together", "apart"])
@pytest.mark.parametrize("what", BROKEN_BODIES)
def test_a_body_that_is_not_framed_gets_one_line_at_once(
    what: str, pieces: str, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Answering()
    octets = BROKEN_BODIES[what]
    cut = octets.index(b"\r\n\r\n") + 4
    sent = [octets] if pieces == "together" else [octets[:cut], octets[cut:]]
    answer = run(exchange(handler, *sent))
    assert_ours(answer, 400, "request.malformed")
    assert len(handler.refused) == 1
    assert SECRET.decode() not in written(caplog)


@pytest.mark.parametrize("octet", range(256))
def test_any_octet_at_any_place_of_a_head_is_answered(
    octet: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the parser makes of it, the answer is ours or the handler's."""
    whole = head(b"Authorization: Basic " + SECRET, b"Connection: close")

    async def story() -> bytes:
        for place in range(octet % 7, len(whole), 7):
            octets = whole[:place] + bytes([octet]) + whole[place + 1 :]
            handler = Answering()
            answer = await exchange(handler, octets + b"\r\n\r\n", until=b"\r\n\r\n")
            assert answer.startswith((b"HTTP/1.1 204 ", b"HTTP/1.0 204 ", b"HTTP/1.1 400 ")), octets
            assert SECRET not in answer
        return b""

    run(story())
    assert SECRET.decode() not in written(caplog)
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


@pytest.mark.logs_errors(
    "connection failed",
)
@pytest.mark.parametrize(
    "failure", [lambda: ValueError(SECRET.decode()), TimeoutError, lambda: KeyError("x")]
)
def test_an_error_outside_the_handler_is_500_and_its_text_is_not_logged(
    failure: Callable[[], Exception], caplog: pytest.LogCaptureFixture
) -> None:
    handler = Answering(failure)
    answer = run(exchange(handler, head(b"Accept: text/html")))
    assert_ours(answer, 500, "internal")
    assert SECRET.decode() not in written(caplog)
    assert any(r.levelno == logging.ERROR for r in caplog.records)


@pytest.mark.parametrize("value", [b"100-Continue", b"100-continue, x", b"200-ok", SECRET, b"\xff"])
def test_an_expectation_is_answered_by_us(value: bytes) -> None:
    octets = post(b"hello", b"Content-Length: 5", b"Expect: " + value, b"Connection: close")
    answer = run(exchange(Answering(), octets))
    if value.lower() == b"100-continue":
        assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 ")
    else:
        assert answer.startswith(b"HTTP/1.1 417 ")
        assert b"[request.expect]\n" in answer
        assert SECRET not in answer
