"""A TLS client of the standard library and the front end's transport, joined in memory.

What the client sends reaches the server as the test cuts it; what the server sends is kept by a
TCP transport in memory, with the flow control of a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path
from typing import Any

from typing_extensions import override

from ca_signer.ceremony import offline_ca
from est_frontend.connection_limits import ConnectionBounds, ConnectionLimits
from est_frontend.tls.engine import EngineContext
from est_frontend.tls.transport import TLSTransport
from estcore.clock import SystemClock
from estsuite_testing.tls_link import client_context, engine

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def server_files(folder: Path) -> Path:
    """Make a CA and the certificate of a server, localhost, in a folder."""
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


class Application(asyncio.Protocol):
    """Keeps what it receives."""

    def __init__(self) -> None:
        self.received = b""
        self.events: list[str] = []

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.events.append("made")

    @override
    def data_received(self, data: bytes) -> None:
        self.received += data

    @override
    def eof_received(self) -> None:
        self.events.append("eof")

    @override
    def connection_lost(self, exc: BaseException | None) -> None:
        self.events.append("lost")

    @override
    def pause_writing(self) -> None:
        self.events.append("pause")

    @override
    def resume_writing(self) -> None:
        self.events.append("resume")


class MemoryTCP(asyncio.Transport):
    """The TCP side of a connection: sends into memory, and says so when that is full."""

    HIGH = 65_536

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.sent = b""
        self.reading = True
        self.full = False
        self.ended: str | None = None

    @override
    def write(self, data: Any) -> None:
        assert self.ended is None
        self.sent += data
        if len(self.sent) > self.HIGH and not self.full:
            self.full = True
            self.protocol.pause_writing()

    def delivered(self) -> bytes:
        """Return what was sent, and make room."""
        sent, self.sent = self.sent, b""
        if self.full:
            self.full = False
            self.protocol.resume_writing()
        return sent

    @override
    def close(self) -> None:
        self._end("closed")

    @override
    def abort(self) -> None:
        self._end("aborted")

    def _end(self, how: str) -> None:
        if self.ended is None:
            self.ended = how
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    @override
    def is_closing(self) -> bool:
        return self.ended is not None

    @override
    def pause_reading(self) -> None:
        self.reading = False

    @override
    def resume_reading(self) -> None:
        self.reading = True

    @override
    def is_reading(self) -> bool:
        return self.reading

    @override
    def get_write_buffer_size(self) -> int:
        return len(self.sent)


class Pipe:
    """One connection. Needs a running loop."""

    def __init__(
        self,
        files: Path,
        version: ssl.TLSVersion,
        *,
        context: EngineContext | None = None,
        application: Application | None = None,
        handshake_timeout_s: float = 10,
        shutdown_timeout_s: float = 2,
        key_log: Path | None = None,
    ) -> None:
        self.limits = ConnectionLimits(ConnectionBounds(9, 9, 9, 9))
        self.application = application or Application()
        arrival = self.limits.arrive("192.0.2.1", lambda: self.server.abort())
        assert arrival is not None
        self.server = TLSTransport(
            context or engine(files),
            lambda: self.application,
            arrival,
            peername=("192.0.2.1", 7),
            handshake_timeout_s=handshake_timeout_s,
            shutdown_timeout_s=shutdown_timeout_s,
        )
        self.tcp = MemoryTCP(self.server)
        self.server.connection_made(self.tcp)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = client_context(files, version)
        if key_log is not None:
            client.keylog_filename = str(key_log)
        self.client = client.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    def from_client(self) -> bytes:
        """Return the octets the client wants to send."""
        return self.outgoing.read()

    def to_client(self) -> None:
        """Hand over what the server has sent."""
        self.incoming.write(self.tcp.delivered())

    def to_server(self, octets: bytes, *, size: int | None = None) -> None:
        """Hand over octets of the client, in pieces of a size."""
        step = size or max(len(octets), 1)
        for place in range(0, len(octets), step):
            self.server.data_received(octets[place : place + step])

    def step(self) -> bytes:
        """Let the client go on with its handshake; return what it sends."""
        self.to_client()
        with contextlib.suppress(ssl.SSLWantReadError):
            self.client.do_handshake()
        return self.from_client()

    def handshake(self, *, size: int | None = None) -> None:
        """Complete the handshake on both sides."""
        for _ in range(3):
            self.to_server(self.step(), size=size)
        self.to_client()
        assert self.application.events == ["made"]

    def client_reads(self) -> bytes:
        """Return what the client can decrypt; b"" also at the end."""
        self.to_client()
        found = b""
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            while part := self.client.read(65_536):
                found += part
        return found
