"""Whatever a TLS library raises of a connection ends it without an error in the log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop
from OpenSSL import SSL
from typing_extensions import override

from ca_signer.ceremony import offline_ca
from est_frontend.tls.engine import EngineConnection
from estcore.clock import SystemClock
from estsuite_testing.tls_link import Link, client_context, engine

QUEUE = ("SSL routines", "", "unexpected eof while reading")
SHAPES: list[Exception] = [
    SSL.Error(),
    SSL.Error([]),
    SSL.Error([QUEUE]),
    SSL.Error([QUEUE, QUEUE]),
    SSL.Error([("lib", "", "")]),
    SSL.Error([("lib",), (), "text", None, 7]),
    SSL.Error("text"),
    SSL.Error(None),
    SSL.Error(b"octets", 1),
    SSL.Error({"a": 1}),
    SSL.SysCallError(-1, "Unexpected EOF"),
    SSL.SysCallError(0),
    SSL.SysCallError(104, "ECONNRESET"),
    SSL.SysCallError(32, None),
    SSL.SysCallError(),
    SSL.WantWriteError(),
    SSL.WantX509LookupError(),
    SSL.WantReadError(),
    SSL.ZeroReturnError(),
    ConnectionResetError(104, "reset"),
    BrokenPipeError(),
    OSError(),
    OSError(5, "I/O error"),
    TimeoutError(),
    ssl.SSLError(1, "text"),
    ValueError("unknown bio failure"),
]
CALLS: dict[str, tuple[str, Callable[[EngineConnection], object]]] = {
    "handshake": ("do_handshake", lambda c: c.do_handshake()),
    "handshake, feeding": ("bio_write", lambda c: c.do_handshake()),
    "handshake, flushing": ("bio_read", lambda c: c.do_handshake()),
    "read": ("recv", lambda c: c.read()),
    "read, feeding": ("bio_write", lambda c: c.read()),
    "write": ("send", lambda c: c.write(b"x")),
    "write, flushing": ("bio_read", lambda c: c.write(b"x")),
    "shutdown": ("shutdown", lambda c: c.unwrap()),
    "shutdown, feeding": ("bio_write", lambda c: c.unwrap()),
    "shutdown, flushing": ("bio_read", lambda c: c.unwrap()),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    passphrase = folder / "passphrase"
    passphrase.write_text("a long enough passphrase")
    passphrase.chmod(0o600)
    clock = SystemClock()
    offline_ca.init(folder / "ca", name="T", passphrase_file=passphrase, clock=clock)
    offline_ca.server_certificate(
        folder / "ca",
        out=folder,
        names=["localhost"],
        passphrase_file=passphrase,
        days=9,
        clock=clock,
    )
    return folder


class Raising:
    """A pyOpenSSL connection of which one method raises."""

    def __init__(self, real: SSL.Connection, method: str, error: Exception) -> None:
        self._real, self._method, self._error = real, method, error

    def __getattr__(self, name: str) -> Any:
        if name != self._method:
            return getattr(self._real, name)

        def fail(*_: object) -> None:
            raise self._error

        return fail


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("error", SHAPES, ids=repr)
def test_every_failure_is_one_that_event_loops_end_a_connection_by_quietly(
    files: Path, call: str, error: Exception
) -> None:
    """asyncio and uvloop log every exception of an SSL object that is no OSError."""
    link = Link(files, ssl.TLSVersion.TLSv1_3)
    if not call.startswith("handshake"):
        link.handshake()
    link.to_server.write(
        b"\x17\x03\x03\x00\x01x" if link.server._finished else b"\x16\x03\x01\x00\x01x"
    )
    method, act = CALLS[call]
    raising = Raising(link.server._connection, method, error)
    link.server._connection = cast("SSL.Connection", raising)
    with contextlib.suppress(OSError):  # ssl.SSLError is one
        act(link.server)


def test_the_reason_is_that_of_the_error_queue_else_the_name(files: Path) -> None:
    link = Link(files, ssl.TLSVersion.TLSv1_3)
    for error, text in (
        (SSL.Error([QUEUE, ("", "", "bad record")]), "unexpected eof while reading, bad record"),
        (SSL.SysCallError(-1, "Unexpected EOF"), "SysCallError"),
        (SSL.Error([]), "Error"),
    ):
        raising = Raising(link.server._connection, "send", error)
        link.server._connection = cast("SSL.Connection", raising)
        with pytest.raises(ssl.SSLError) as raised:
            link.server.write(b"x")
        assert raised.value.args == (ssl.SSL_ERROR_SSL, text)


class Echo(asyncio.Protocol):
    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    @override
    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


def reset(raw: socket.socket) -> None:
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.close()


ENDS: dict[str, Callable[[socket.socket], None]] = {
    "close": lambda raw: raw.close(),
    "reset": reset,
    "half close": lambda raw: raw.shutdown(socket.SHUT_WR),
    "garbage": lambda raw: raw.sendall(b"\x17\x03\x03\x00\x20" + b"x" * 32),
    "fatal alert in the clear": lambda raw: raw.sendall(b"\x15\x03\x03\x00\x02\x02\x50"),
    "close_notify in the clear": lambda raw: raw.sendall(b"\x15\x03\x03\x00\x02\x01\x00"),
    "no TLS": lambda raw: raw.sendall(b"GET / HTTP/1.1\r\n\r\n"),
    "half a record": lambda raw: raw.sendall(b"\x17\x03\x03\x40\x00x"),
}
MOMENTS = ("connected", "hello", "finished", "sent", "closed")


def talk(files: Path, port: int, version: ssl.TLSVersion, moment: str, end: str) -> None:
    """Get as far as ``moment`` with the server, then end the connection in one of the ways."""
    raw = socket.create_connection(("127.0.0.1", port), timeout=3)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(files, version).wrap_bio(
        incoming, outgoing, server_hostname="localhost"
    )
    with contextlib.suppress(OSError):
        if moment != "connected":
            with contextlib.suppress(ssl.SSLWantReadError):
                client.do_handshake()
            raw.sendall(outgoing.read())
        while moment not in {"connected", "hello"}:
            incoming.write(raw.recv(65_536))
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                raw.sendall(outgoing.read())
        raw.sendall(outgoing.read())
        if moment in {"sent", "closed"}:
            client.write(b"x" * 100)
            raw.sendall(outgoing.read())
        if moment == "closed":
            with contextlib.suppress(ssl.SSLError):
                client.unwrap()
            raw.sendall(outgoing.read())
        ENDS[end](raw)
        if raw.fileno() >= 0:
            raw.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                raw.recv(65_536)
    raw.close()


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_however_a_client_ends_a_connection_nothing_is_logged(
    files: Path, version: ssl.TLSVersion, loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def story() -> None:
        running = asyncio.get_running_loop()
        server = await running.create_server(
            Echo, "127.0.0.1", 0, ssl=engine(files), ssl_shutdown_timeout=0.2
        )
        port = server.sockets[0].getsockname()[1]
        for moment in MOMENTS:
            for end in ENDS:
                await asyncio.to_thread(talk, files, port, version, moment, end)
        await asyncio.sleep(0.4)
        server.close()

    (uvloop.run if loop == "uvloop" else asyncio.run)(story())
    assert [r.getMessage() for r in caplog.records if r.name != "asyncio" or r.levelno > 20] == []
