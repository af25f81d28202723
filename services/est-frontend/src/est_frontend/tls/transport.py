"""TLS between a TCP connection and the HTTP protocol, without the event loop's SSL protocol.

One object a connection: to the loop it is the protocol of the TCP connection, to aiohttp it is the
transport. It feeds what arrives to OpenSSL and calls aiohttp with the plain text; what aiohttp
writes is encrypted at once and waits, if it must, in the buffer of the TCP transport alone. So the
loop's flow control of that buffer is the flow control of both sides. While that buffer is full,
nothing is read: OpenSSL itself answers what a peer may send for ever (KeyUpdate, a ClientHello of
TLS 1.2 that asks for renegotiation), and a peer that does not read would fill the memory.

States, in order:

- HANDSHAKE: until OpenSSL says that it is complete, or the time is over; there is no HTTP protocol.
- OPEN: data goes both ways. The end of it is ours (``close``), the peer's close_notify, the end of
  the TCP stream, or an error of TLS, whose alert is sent.
- CLOSING: close_notify is sent. What arrives is dropped, until the peer's close_notify, the end of
  the stream, or the time-out: closed at once with data unread, TCP would take back what the peer
  has not read yet.
- CLOSED: nothing is read or written; the TCP transport may still have octets to send.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Iterable
from typing import Any, cast

from OpenSSL import SSL
from typing_extensions import override

from est_frontend.connection_limits import Arrival
from est_frontend.tls.engine import EngineContext
from est_frontend.tls.openssl_connection import FAILURES, OpenSSLConnection
from est_frontend.tls.records import whole_records

_CHUNK = 65_536
"""More than a record holds: one call returns a whole one."""


class _State(enum.Enum):
    HANDSHAKE = enum.auto()
    OPEN = enum.auto()
    CLOSING = enum.auto()
    CLOSED = enum.auto()


_HANDSHAKE, _OPEN, _CLOSING, _CLOSED = _State


class TLSTransport(asyncio.Protocol, asyncio.Transport):
    """One TLS connection of the server."""

    def __init__(
        self,
        context: EngineContext,
        make: Callable[[], asyncio.Protocol],
        arrival: Arrival,
        *,
        peername: Any,
        handshake_timeout_s: float,
        shutdown_timeout_s: float,
    ) -> None:
        """``make`` returns the protocol of a connection whose handshake is complete."""
        self._context = context
        self._make = make
        self._arrival = arrival
        self._peername = peername
        self._handshake_timeout_s = handshake_timeout_s
        self._shutdown_timeout_s = shutdown_timeout_s
        self._state = _HANDSHAKE
        self._tls = context.connection()
        self._facts = OpenSSLConnection(self._tls)
        self._tcp: asyncio.Transport | None = None
        self._app: asyncio.Protocol | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._at_record_start = True
        self._writing_paused = False
        self._app_paused = False
        self._kept = False

    # The protocol of the TCP connection.

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the handshake, not for ever."""
        # uvloop's transports are of no class of asyncio.
        self._tcp = cast("asyncio.Transport", transport)
        if self._state is _CLOSED:
            self._tcp.abort()
            return
        self._set_deadline(self._handshake_timeout_s)

    @override
    def data_received(self, data: bytes) -> None:
        """Take octets of the wire."""
        if self._state is _OPEN:
            records = whole_records(data) if self._at_record_start else None
            # Once part of a record stayed inside, new octets need not begin with a record.
            self._at_record_start = records is not None
            self._read(data, single=records == 1)
        elif self._state is _HANDSHAKE:
            self._handshake(data)
        elif self._state is _CLOSING:
            self._drop(data)

    @override
    def eof_received(self) -> None:
        """End the connection; without close_notify nothing that is missing is to come."""
        self._state = _CLOSED

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """Report it to the HTTP protocol."""
        self._state = _CLOSED
        if self._deadline is not None:
            self._deadline.cancel()
        app, self._app = self._app, None
        if app is not None:
            app.connection_lost(exc)
        self._arrival.ended()

    @override
    def pause_writing(self) -> None:
        """The peer does not read: read nothing of it, and pass it on."""
        self._writing_paused = True
        self._control_reading()
        if self._app is not None:
            self._app.pause_writing()

    @override
    def resume_writing(self) -> None:
        """The peer has read: pass it on."""
        self._writing_paused = False
        self._control_reading()
        if self._app is not None:
            self._app.resume_writing()

    # What arrives.

    def _handshake(self, data: bytes) -> None:
        try:
            self._tls.bio_write(data)
            self._tls.do_handshake()
        except SSL.WantReadError:
            self._flush()
            return
        except FAILURES:
            self._fail()
            return
        self._flush()
        if self._deadline is not None:
            self._deadline.cancel()
        self._state = _OPEN
        self._arrival.established()
        self._app = self._make()
        self._app.connection_made(self)
        if self._writing_paused:
            self._app.pause_writing()
        # A request may have come in the same segment as the client's Finished.
        self._read_kept()

    def _read_kept(self) -> None:
        """Pass on what came with the handshake, unless the HTTP protocol has paused."""
        self._kept = self._app_paused
        if self._state is _OPEN and not self._kept:
            self._read(b"", single=False)

    def _read(self, data: bytes, *, single: bool) -> None:
        """Decrypt and pass on what is complete.

        ``single``: one whole record is here and nothing else, so that one call empties it and the
        answer "want read", an exception, need not be asked for.
        """
        parts: list[bytes] = []
        ended = failed = False
        try:
            if data:
                self._tls.bio_write(data)
            while True:
                parts.append(self._tls.recv(_CHUNK))
                if single:
                    break
        except SSL.WantReadError:
            self._flush()  # the answer to a KeyUpdate
        except SSL.ZeroReturnError:
            ended = True
        except FAILURES:
            failed = True
        if parts and self._app is not None:
            self._app.data_received(parts[0] if len(parts) == 1 else b"".join(parts))
        if failed:
            self._fail()
        elif ended and self._app is not None and self._state is _OPEN:
            self._app.eof_received()
            self.close()

    def _drop(self, data: bytes) -> None:
        try:
            self._tls.bio_write(data)
            while True:
                self._tls.recv(_CHUNK)
        except SSL.WantReadError:
            self._discard()
        except FAILURES:  # close_notify, or no TLS any more
            self._end()

    def _discard(self) -> None:
        """Drop what OpenSSL answers after our close_notify, as it does a KeyUpdate."""
        try:
            while self._tls.bio_read(_CHUNK):
                pass
        except FAILURES:
            return

    def _fail(self) -> None:
        """Send the alert and end the connection."""
        self._flush()
        self._end()

    def _end(self) -> None:
        self._state = _CLOSED
        if self._tcp is not None:
            self._tcp.close()

    # What is sent.

    def _flush(self) -> None:
        """Pass on what OpenSSL has for the peer."""
        if self._tcp is None or self._tcp.is_closing():
            return
        try:
            while True:
                octets = self._tls.bio_read(_CHUNK)
                self._tcp.write(octets)
                if len(octets) < _CHUNK:
                    return
        except FAILURES:
            # Nothing is left, or a broken connection, which the next call reports.
            return

    def _set_deadline(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = asyncio.get_running_loop().call_later(seconds, self.abort)

    # The transport of the HTTP protocol.

    @override
    def write(self, data: Any) -> None:
        """Encrypt and send; dropped when the connection is closing, as by every transport."""
        if self._state is not _OPEN or not data:
            return
        try:
            self._tls.sendall(data)  # ``send`` may end after one record
        except FAILURES:
            self.abort()
            return
        self._flush()

    @override
    def writelines(self, list_of_data: Iterable[Any]) -> None:
        """Encrypt and send, in as few records as possible."""
        self.write(b"".join(list_of_data))

    @override
    def close(self) -> None:
        """Send close_notify after what was written, and wait for the peer's for a while."""
        if self._state is _HANDSHAKE:
            self.abort()
        if self._state is not _OPEN or self._tcp is None:
            return
        self._state = _CLOSING
        try:
            done = self._tls.shutdown()
        except FAILURES:
            done = True
        self._flush()
        if done or self._tls.get_shutdown() & SSL.RECEIVED_SHUTDOWN:
            self._end()
            return
        self._set_deadline(self._shutdown_timeout_s)
        self._tcp.resume_reading()

    @override
    def abort(self) -> None:
        """End the connection at once; what waits to be sent is lost."""
        self._state = _CLOSED
        if self._tcp is not None:
            self._tcp.abort()

    @override
    def is_closing(self) -> bool:
        """Whether it is closing or closed."""
        return self._state is not _OPEN or self._tcp is None or self._tcp.is_closing()

    @override
    def pause_reading(self) -> None:
        """Leave what arrives in the socket, so that the peer has to stop."""
        self._app_paused = True
        self._control_reading()

    @override
    def resume_reading(self) -> None:
        """Read again."""
        self._app_paused = False
        self._control_reading()
        if self._kept:
            self._at_record_start = False
            asyncio.get_running_loop().call_soon(self._read_kept)

    def _control_reading(self) -> None:
        if self._tcp is None or self._tcp.is_closing() or self._state in {_CLOSING, _CLOSED}:
            return
        if self._writing_paused or self._app_paused:
            self._tcp.pause_reading()
        else:
            self._tcp.resume_reading()

    @override
    def is_reading(self) -> bool:
        """Whether it reads."""
        return self._tcp is not None and self._tcp.is_reading()

    @override
    def get_write_buffer_size(self) -> int:
        """Octets that wait to be sent, encrypted."""
        return self._tcp.get_write_buffer_size() if self._tcp is not None else 0

    @override
    def get_write_buffer_limits(self) -> tuple[int, int]:
        """(low, high) of the buffer."""
        return self._tcp.get_write_buffer_limits() if self._tcp is not None else (0, 0)

    @override
    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set when the HTTP protocol has to pause."""
        if self._tcp is not None:
            self._tcp.set_write_buffer_limits(high, low)

    @override
    def can_write_eof(self) -> bool:
        """Return False: the end is close_notify, of both directions."""
        return False

    @override
    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the facts as ``ssl_object``, and whatever TCP knows."""
        if name == "ssl_object":
            return self._facts
        if name == "peername":
            return self._peername
        if name == "sslcontext":
            return self._context
        if name == "socket":
            # aiohttp would set what uvloop and the listening socket have set.
            return default
        return default if self._tcp is None else self._tcp.get_extra_info(name, default)

    @override
    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the HTTP protocol."""
        return self if self._app is None else self._app

    @override
    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Set what receives from now on."""
        self._app = cast("asyncio.Protocol", protocol)
