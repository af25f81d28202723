"""The acceptor and its TLS connections on real sockets and both loops: flow control and ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import ssl
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from aiohttp import web
from typing_extensions import override

from est_frontend.acceptor import Acceptor
from est_frontend.connection_limits import Arrival
from est_frontend.settings import ListenSettings
from est_frontend.web.server import LimitedServer, request_factory
from estcore.errors import ESTSuiteError
from estcore.runtime.sockets import open_sockets
from estsuite_testing.tls_link import client_context, engine
from estsuite_testing.tls_pipe import VERSIONS, Application, server_files

both_versions = pytest.mark.parametrize("version", VERSIONS)
both_loops = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return server_files(tmp_path_factory.mktemp("tls"))


def run(loop: str, story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    (uvloop.run if loop == "uvloop" else asyncio.run)(asyncio.wait_for(story(), 30))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(
    files: Path,
    make: Callable[[Arrival], asyncio.Protocol],
    *,
    drained: bool = True,
    **more: Any,
) -> AsyncIterator[Acceptor]:
    """Accept connections for the length of the block; all must have ended with it."""
    listen = ListenSettings(
        certificate_file=files / "server.pem", key_file=files / "server.key", **more
    )
    acceptor = Acceptor(open_sockets("127.0.0.1", 0), engine(files), listen, make)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(acceptor.run(stop))
        yield acceptor
        if drained:
            await until(lambda: acceptor._limits.total == 0)
        stop.set()


async def connect(files: Path, port: int, version: ssl.TLSVersion) -> Any:
    return await asyncio.open_connection(
        "127.0.0.1", port, ssl=client_context(files, version), server_hostname="localhost"
    )


class Echo(Application):
    @override
    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


@both_loops
@both_versions
def test_large_data_both_ways_and_a_clean_close(
    files: Path, version: ssl.TLSVersion, loop: str
) -> None:
    data = bytes(range(256)) * 4000

    async def story() -> None:
        echo = Echo()
        async with serving(files, lambda _: echo) as acceptor:
            reader, writer = await connect(files, acceptor.port, version)
            writer.write(data)
            assert await reader.readexactly(len(data)) == data
            writer.close()
            await writer.wait_closed()
            await until(lambda: "lost" in echo.events)
            assert acceptor._limits.total == 0
            assert [e for e in echo.events if e not in {"pause", "resume"}] == [
                "made",
                "eof",
                "lost",
            ]

    run(loop, story)


@both_loops
@both_versions
def test_a_slow_reader_stops_the_writer_and_gets_everything(
    files: Path, version: ssl.TLSVersion, loop: str
) -> None:
    """What waits in the process stays near the limit of the loop, whatever there is to send."""
    part, parts = b"x" * 30_000, 400

    class Writing(Application):
        def __init__(self) -> None:
            super().__init__()
            self.written = 0
            self.most = 0

        @override
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.resume_writing()

        @override
        def resume_writing(self) -> None:
            super().resume_writing()
            while self.written < parts and self.events[-1] != "pause":
                self.written += 1
                self.transport.write(part)
                self.most = max(self.most, self.transport.get_write_buffer_size())
            if self.written == parts:
                self.transport.close()

    async def story() -> None:
        writing = Writing()
        async with serving(files, lambda _: writing) as acceptor:
            reader, writer = await connect(files, acceptor.port, version)
            await asyncio.sleep(0.3)
            assert writing.events[-1] == "pause"
            assert writing.written < parts
            received = 0
            while data := await reader.read(65_536):
                received += len(data)
            assert received == len(part) * parts
            assert writing.most < 200_000
            writer.close()

    run(loop, story)


@both_loops
@both_versions
def test_an_application_that_pauses_is_sent_no_more_until_it_resumes(
    files: Path, version: ssl.TLSVersion, loop: str
) -> None:
    class Pausing(Application):
        @override
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.count = 0
            self.transport.pause_reading()

        @override
        def data_received(self, data: bytes) -> None:
            self.count += len(data)

    async def story() -> None:
        pausing = Pausing()
        async with serving(files, lambda _: pausing) as acceptor:
            sending = asyncio.create_task(asyncio.to_thread(send, files, acceptor.port, version))
            await asyncio.sleep(0.3)
            assert pausing.count == 0
            assert not sending.done()
            pausing.transport.resume_reading()
            await sending
            await until(lambda: pausing.count == 20 * MEGABYTE)

    run(loop, story)


def send(files: Path, port: int, version: ssl.TLSVersion) -> None:
    raw = socket.create_connection(("127.0.0.1", port), timeout=10)
    with client_context(files, version).wrap_socket(raw, server_hostname="localhost") as tls:
        tls.sendall(b"x" * 20 * MEGABYTE)
        tls.unwrap()  # closed with data unread, TCP would take back what the server has not read


@both_loops
@both_versions
def test_a_tcp_half_close_ends_the_connection_with_what_was_written(
    files: Path, version: ssl.TLSVersion, loop: str
) -> None:
    async def story() -> None:
        echo = Echo()
        async with serving(files, lambda _: echo) as acceptor:
            port = acceptor.port

            def client() -> bytes:
                raw = socket.create_connection(("127.0.0.1", port), timeout=5)
                context = client_context(files, version)
                with context.wrap_socket(raw, server_hostname="localhost") as tls:
                    tls.sendall(b"before the end")
                    socket.socket.shutdown(tls, socket.SHUT_WR)
                    received = tls.recv(100)
                    with contextlib.suppress(ssl.SSLEOFError):
                        assert tls.recv(100) == b""
                    return received

            assert await asyncio.to_thread(client) == b"before the end"
            await until(lambda: "lost" in echo.events)

    run(loop, story)


@both_loops
def test_handshakes_are_ended_with_the_acceptor_and_connections_go_on(
    files: Path, loop: str
) -> None:
    async def story() -> None:
        echo = Echo()
        async with serving(files, lambda _: echo, drained=False) as acceptor:
            port = acceptor.port
            reader, writer = await connect(files, port, ssl.TLSVersion.TLSv1_3)
            silent_reader, silent_writer = await asyncio.open_connection("127.0.0.1", port)
            await until(lambda: acceptor._limits.waiting == 1)
        assert await silent_reader.read() == b""
        silent_writer.close()
        writer.write(b"still here")
        assert await reader.readexactly(10) == b"still here"
        assert (acceptor._limits.waiting, acceptor._limits.total) == (0, 1)
        writer.close()
        await writer.wait_closed()
        await until(lambda: acceptor._limits.total == 0)

    run(loop, story)


@both_loops
def test_the_oldest_handshake_is_ended_for_one_of_another_source(files: Path, loop: str) -> None:
    async def story() -> None:
        async with serving(files, lambda _: Echo(), max_handshakes=2) as acceptor:
            opened = []
            for waiting, source in ((1, "127.0.0.1"), (2, "127.0.0.1"), (2, "127.0.0.2")):
                opened.append(
                    await asyncio.open_connection(
                        "127.0.0.1", acceptor.port, local_addr=(source, 0)
                    )
                )
                await until(lambda number=waiting: acceptor._limits.waiting == number)  # type: ignore[misc] # mypy infers no type of a default
            with contextlib.suppress(ConnectionResetError):
                assert await opened[0][0].read() == b""
            assert acceptor._limits.waiting == 2
            for _, writer in opened:
                writer.close()

    run(loop, story)


class Refusing:
    """Answers without reading the body."""

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.Response(status=413, body=b"too large" * 1000)
        response.force_close()
        return response

    def refuse(self, request: web.BaseRequest, error: ESTSuiteError) -> web.Response:
        return web.Response(status=400, text=error.code)


@both_loops
@both_versions
def test_a_large_upload_refused_early_gets_its_answer(
    files: Path, version: ssl.TLSVersion, loop: str
) -> None:
    async def story() -> None:
        server = LimitedServer(
            Refusing(),
            max_connections=10,
            head_timeout_s=5,
            request_factory=request_factory(1000),
            access_log=None,
            lingering_time=0.2,
        )
        async with serving(files, server.counted) as acceptor:
            reader, writer = await connect(files, acceptor.port, version)
            writer.write(
                b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50000000\r\n\r\n"
                + b"x" * 10 * MEGABYTE
            )
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 413 ")
            assert answer.endswith(b"too large" * 1000)
            writer.close()

    run(loop, story)


@both_loops
@both_versions
def test_however_a_client_ends_a_connection_it_is_counted_no_more(
    files: Path, version: ssl.TLSVersion, loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The client's flights are sent up to an octet; then it closes, or resets the connection."""
    caplog.set_level(logging.INFO)

    def talk(port: int, flight: int, share: float, reset: bool) -> None:
        raw = socket.create_connection(("127.0.0.1", port), timeout=3)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = client_context(files, version).wrap_bio(
            incoming, outgoing, server_hostname="localhost"
        )
        for number in range(flight + 1):
            with contextlib.suppress(ssl.SSLWantReadError):
                client.do_handshake()
            octets = outgoing.read()
            raw.sendall(octets if number < flight else octets[: int(len(octets) * share)])
            if number < flight:
                incoming.write(raw.recv(65_536))
        if reset:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        raw.close()

    async def story() -> None:
        async with serving(files, lambda _: Echo()) as acceptor:
            for flight in (0, 1):
                for share in (0.01, 0.3, 0.6, 0.99, 1):
                    for reset in (False, True):
                        await asyncio.to_thread(talk, acceptor.port, flight, share, reset)
            await until(lambda: acceptor._limits.total == 0)
            assert acceptor._limits.waiting == 0

    run(loop, story)
    assert [r.getMessage() for r in caplog.records if r.name != "asyncio" or r.levelno > 20] == []


def test_a_connection_that_ended_is_freed_without_the_garbage_collector(files: Path) -> None:
    async def story() -> None:
        gone: list[weakref.ref[object]] = []

        class Remembered(Echo):
            @override
            def connection_lost(self, exc: BaseException | None) -> None:
                gone.append(weakref.ref(self.transport))
                del self.transport

        gc.disable()
        try:
            async with serving(files, lambda _: Remembered()) as acceptor:
                _, writer = await connect(files, acceptor.port, ssl.TLSVersion.TLSv1_3)
                writer.close()
                await writer.wait_closed()
                await until(lambda: gone and gone[0]() is None)
        finally:
            gc.enable()

    run("uvloop", story)
