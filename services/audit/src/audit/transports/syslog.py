"""Syslog over TLS (RFC 5425): octet-counted frames; the receiver acknowledges nothing."""

from __future__ import annotations

from collections.abc import Sequence

from audit.formats import syslog
from audit.formats.entry import Entry
from audit.sink_settings import SyslogSink
from audit.transports.tls_stream import TLSStream
from audit.transports.transport import Outcome, Prepared

_GREETING_S = 0.2
"""Under TLS 1.3 a refused client certificate shows only after the handshake."""
_ALERT_WAIT_S = 0.02
_CLOSE_S = 1.0


class SyslogTransport:
    """One connection to a syslog receiver."""

    acknowledged = False

    def __init__(self, sink: SyslogSink) -> None:
        self._sink, self._options = sink, sink.options()
        self._stream: TLSStream | None = None

    async def open(self) -> None:
        """Connect, and wait a moment for an alert.

        Raises:
            OSError: refused, not verified, or not in time.
        """
        self._stream = await TLSStream.open(self._sink, self._sink.host, self._sink.port)
        await self._stream.await_loss(_GREETING_S)

    def prepare(self, entry: Entry) -> Prepared:
        """Return an entry as a frame."""
        formatted = syslog.render(entry, self._options)
        frame = syslog.framed(formatted.message)
        return Prepared(entry.key, frame, entry.log_index, formatted.omitted)

    async def deliver(self, prepared: Sequence[Prepared]) -> Outcome:
        """Send frames; returns when they are on their way and no alert came.

        Raises:
            OSError: the connection is lost, or the receiver does not take them in time.
        """
        stream = self._connected()
        await stream.send(b"".join(one.payload for one in prepared), self._sink.timeout_s)
        await stream.await_loss(_ALERT_WAIT_S)
        return Outcome()

    async def watch(self, seconds: float) -> None:
        """Wait for an alert or EOF.

        Raises:
            OSError: the connection is lost.
        """
        await self._connected().await_loss(seconds)

    async def close(self) -> None:
        """Send close_notify."""
        if self._stream is not None:
            await self._stream.close(_CLOSE_S)

    def _connected(self) -> TLSStream:
        if self._stream is None:
            raise ConnectionResetError("not connected")
        return self._stream
