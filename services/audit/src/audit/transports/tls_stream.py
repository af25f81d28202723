"""One TLS connection to a receiver of a stream, watched for alerts and EOF.

RFC 5425 has no acknowledgement. The most one can know is that the transport took the octets and
the receiver has not closed: under TLS 1.3 even a refused client certificate shows only after the
handshake. Call ``TLSStream.await_loss`` before moving a cursor.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Self, cast

from typing_extensions import override

from audit.sink_settings import TLSSink


class TLSStream(asyncio.Protocol):
    """A connection that knows when it is lost."""

    def __init__(self) -> None:
        self._lost = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._reason: Exception | None = None
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, sink: TLSSink, host: str, port: int) -> Self:
        """Connect and verify the receiver.

        Raises:
            OSError: refused, not verified, or not in time.
        """
        async with asyncio.timeout(sink.timeout_s):
            _, connection = await asyncio.get_running_loop().create_connection(
                cls,
                host,
                port,
                ssl=tls_context(sink),
                server_hostname=sink.server_name or host,
            )
        return connection

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for a buffer that counts as full as long as it is not empty."""
        # A cast, not a check: uvloop's transport has the methods without being a subclass.
        self._transport = cast("asyncio.Transport", transport)
        # Not 0: at an empty buffer asyncio's TLS would pause and resume in turns.
        self._transport.set_write_buffer_limits(high=1, low=0)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """Keep the reason, and wake the waiting caller."""
        self._reason = self._reason or exc
        self._lost.set()
        self._writable.set()

    @override
    def eof_received(self) -> bool:
        """A receiver that stops reading us is lost: close."""
        self._lost.set()
        return False

    @override
    def pause_writing(self) -> None:
        """Octets are waiting."""
        self._writable.clear()

    @override
    def resume_writing(self) -> None:
        """They are on their way."""
        self._writable.set()

    @property
    def lost(self) -> bool:
        """The receiver is gone."""
        return self._lost.is_set()

    def write(self, octets: bytes) -> None:
        """Hand over octets without waiting."""
        if self._transport is not None:
            self._transport.write(octets)

    def abort(self, reason: str) -> None:
        """Drop the connection for a reason."""
        self._reason = ConnectionResetError(reason)
        if self._transport is not None:
            self._transport.abort()

    async def send(self, octets: bytes, timeout_s: float) -> None:
        """Hand octets to the transport.

        Raises:
            OSError: the connection is lost, or the receiver does not take them in time.
        """
        self._check()
        assert self._transport is not None  # noqa: S101 - open made it
        self._transport.write(octets)
        async with asyncio.timeout(timeout_s):
            await self._writable.wait()
        self._check()

    async def await_loss(self, seconds: float) -> None:
        """Wait so long for an alert or EOF that is on its way.

        Raises:
            OSError: the connection is lost.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._lost.wait()
        except TimeoutError:
            pass
        self._check()

    async def close(self, timeout_s: float) -> None:
        """Send close_notify; after ``timeout_s`` just drop the connection."""
        if self._transport is None:
            return
        self._transport.close()
        try:
            async with asyncio.timeout(timeout_s):
                await self._lost.wait()
        except TimeoutError:
            self._transport.abort()

    @property
    def reason(self) -> str:
        """Why the connection was lost."""
        return str(self._reason or "the receiver closed the connection")

    def _check(self) -> None:
        if self._lost.is_set():
            raise ConnectionResetError(self.reason)


def tls_context(sink: TLSSink) -> ssl.SSLContext:
    """Return how the sink is verified and how it knows us; files are read at every call.

    Raises:
        OSError: a file is missing or is not what it should be (ssl.SSLError is one).
    """
    context = ssl.create_default_context(cafile=str(sink.ca_file))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if sink.certificate_file is not None:
        context.load_cert_chain(sink.certificate_file, sink.key_file)
    return context
