"""RELP over TLS: syslog messages, each acknowledged by the receiver (librelp, rsyslog).

    TXNR SP COMMAND SP DATALEN [SP DATA] LF

The session begins with ``open`` and what both sides can do. A message counts as delivered when
its ``rsp`` says 200; another status refuses it for good.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from typing_extensions import override

from audit.formats import syslog
from audit.formats.entry import Entry
from audit.sink_settings import RELPSink
from audit.transports.tls_stream import TLSStream
from audit.transports.transport import Outcome, Prepared

_OFFER = b"relp_version=0\nrelp_software=est-audit\ncommands=syslog"
_HEADER = re.compile(rb"(\d{1,9}) (rsp|serverclose) (\d{1,9})( |\n)")
_LONGEST_HEADER = 40
_LONGEST_ANSWER = 65_536
_LAST_NUMBER = 999_999_999
_CLOSE_S = 1.0
_OK = b"200"


class RELPStream(TLSStream):
    """A TLS connection whose octets are answers by transaction number."""

    def __init__(self) -> None:
        super().__init__()
        self._received = bytearray()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._number = 0

    @override
    def data_received(self, data: bytes) -> None:
        """Take in answers; what is no RELP ends the connection."""
        self._received += data
        try:
            while self._take():
                pass
        except ValueError as exc:
            self.abort(str(exc))

    def ask(self, command: bytes, data: bytes) -> tuple[bytes, asyncio.Future[bytes]]:
        """Return a frame, and the future of its answer."""
        self._number = self._number % _LAST_NUMBER + 1
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        # A caller that has given up does not look at it any more.
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._waiting[self._number] = answer
        return b"%d %b %d %b\n" % (self._number, command, len(data), data), answer

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what waits."""
        super().connection_lost(exc)
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ConnectionResetError(self.reason))
        self._waiting.clear()

    def _take(self) -> bool:
        match = _HEADER.match(self._received)
        if match is None:
            if len(self._received) >= _LONGEST_HEADER:
                raise ValueError("the receiver does not speak RELP")
            return False
        # Read now: a match looks at the buffer, which changes below.
        number, kind, length = int(match[1]), match[2], int(match[3])
        if length > _LONGEST_ANSWER:
            raise ValueError("the answer is too long")
        # Without data the header ends with the LF of the frame.
        end = match.end() + (length + 1 if match[4] == b" " else 0)
        if len(self._received) < end:
            return False
        data = bytes(self._received[match.end() : match.end() + length])
        del self._received[:end]
        if kind == b"serverclose":
            raise ValueError("the receiver ended the session")
        answer = self._waiting.pop(number, None)
        if answer is not None and not answer.done():
            answer.set_result(data)
        return True


class RELPTransport:
    """One RELP session."""

    acknowledged = True

    def __init__(self, sink: RELPSink) -> None:
        self._sink, self._options = sink, sink.options()
        self._stream: RELPStream | None = None

    async def open(self) -> None:
        """Connect and open the session.

        Raises:
            OSError: refused, not verified, not RELP, or not in time.
        """
        self._stream = await RELPStream.open(self._sink, self._sink.host, self._sink.port)
        frame, answer = self._stream.ask(b"open", _OFFER)
        await self._stream.send(frame, self._sink.timeout_s)
        async with asyncio.timeout(self._sink.timeout_s):
            status = await answer
        if not status.startswith(_OK):
            raise ConnectionRefusedError(f"RELP session refused: {_text(status)}")

    def prepare(self, entry: Entry) -> Prepared:
        """Return an entry as a syslog message."""
        formatted = syslog.render(entry, self._options)
        return Prepared(entry.key, formatted.message, entry.log_index, formatted.omitted)

    async def deliver(self, prepared: Sequence[Prepared]) -> Outcome:
        """Send messages; returns when each has its answer.

        Raises:
            OSError: the connection is lost, or an answer does not come in time.
        """
        stream = self._connected()
        asked = [stream.ask(b"syslog", one.payload) for one in prepared]
        await stream.send(b"".join(frame for frame, _ in asked), self._sink.timeout_s)
        async with asyncio.timeout(self._sink.timeout_s):
            answers = await asyncio.gather(*(answer for _, answer in asked))
        pairs = zip(prepared, answers, strict=True)
        return Outcome({one.key: _text(a) for one, a in pairs if not a.startswith(_OK)})

    async def watch(self, seconds: float) -> None:
        """Wait for the end of the connection.

        Raises:
            OSError: the connection is lost.
        """
        await self._connected().await_loss(seconds)

    async def close(self) -> None:
        """Close the session."""
        if self._stream is None or self._stream.lost:
            return
        frame, _ = self._stream.ask(b"close", b"")
        self._stream.write(frame.replace(b" 0 \n", b" 0\n"))
        await self._stream.close(_CLOSE_S)

    def _connected(self) -> RELPStream:
        if self._stream is None:
            raise ConnectionResetError("not connected")
        return self._stream


def _text(status: bytes) -> str:
    return status[:200].decode("utf-8", "replace").strip()
