"""nats-py without its WebSocket transport, that keeps its TLS and survives every octet.

The one module that imports it.

nats-py imports aiohttp for WebSockets alone. The suite connects by ``nats://`` and ``tls://``, and
aiohttp is a fifth of the CPU that ca-signer, est-renewal and est-audit spend on their start.

nats-py takes ``tls://`` as a preference: it encrypts if the server's greeting, which is in plain
text, says ``tls_required``. An attacker who changes that greeting would receive plain text.

A NATS server passes on subjects, reply subjects and headers of nearly any octets. nats-py decodes
them in its read loop, which ends at the first that is not UTF-8, and splits a line at octets that
are white space to Python and no separator of the protocol. One message of one user would disconnect
all who receive it, again and again while a stream keeps it, or reach a different subscription.
"""

# ruff: noqa: E402 - aiohttp is hidden while nats-py is imported
from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections.abc import Callable
from typing import Any

from typing_extensions import override

_HIDDEN = "aiohttp"
_imported_before = _HIDDEN in sys.modules
if not _imported_before:
    sys.modules[_HIDDEN] = None  # type: ignore[assignment] # what an absent package looks like

import nats.errors
import nats.js.errors
from nats.aio.client import Client as _Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext, api
from nats.protocol import parser
from nkeys import NkeysError

from estcore.runtime.logs import fields

if not _imported_before:
    del sys.modules[_HIDDEN]

log = logging.getLogger(__name__)

# The server separates by one space; \v, \f and others may stand in a subject.
parser.MSG_RE = re.compile(rb"\AMSG ([^ \r\n]+) (\d+) (([^ \r\n]+) )?(\d+)\r\n")
parser.HMSG_RE = re.compile(rb"\AHMSG ([^ \r\n]+) (\d+) (([^ \r\n]+) )?(\d+) (\d+)\r\n")

_RECONNECT_S = 0.25
_DRAIN_S = 5.0
BUS_ERRORS = (nats.errors.Error, OSError, RuntimeError)
"""What every call of the client can raise besides TimeoutError.

uvloop raises RuntimeError for a transport that has closed, and nats-py passes it through.
"""

__all__ = [
    "BUS_ERRORS",
    "Client",
    "JetStreamContext",
    "Msg",
    "NkeysError",
    "Subscription",
    "api",
    "nats",
]


class Client(_Client):
    """A client whose ``tls://`` is enforced, and whose read loop outlives what others send."""

    def __init__(self) -> None:
        super().__init__()
        self._plain: dict[int, Callable[[Msg], None]] = {}

    async def subscribe_plain(self, subject: str, handler: Callable[[Msg], None]) -> Subscription:
        """Call ``handler`` for each message where it is read, without a queue and a task's turn.

        It must not wait, and what it keeps must be bounded by what was asked for.
        """

        async def queued(message: Msg) -> None:
            handler(message)  # it came while the subscription was on its way

        subscription = await self.subscribe(subject, cb=queued)
        self._plain[subscription._id] = handler  # noqa: SLF001 - nats-py has no other name for it
        return subscription

    @override
    async def drain(self) -> None:
        """Receive what is under way, send what is buffered, close.

        nats-py gathers the subscriptions in a future. Given up in time, it becomes an error of the
        loop.

        Raises:
            nats.errors.Error, OSError, RuntimeError: not connected.
        """
        if self.is_draining:
            return
        if self.is_closed:
            raise nats.errors.ConnectionClosedError
        if self.is_connecting or self.is_reconnecting:
            raise nats.errors.ConnectionReconnectingError
        loop = asyncio.get_running_loop()
        parts = [loop.create_task(s._drain()) for s in self._subs.values()]  # noqa: SLF001
        await asyncio.sleep(0)
        self._status = _Client.DRAINING_SUBS
        if parts:
            done, late = await asyncio.wait(parts, timeout=_DRAIN_S)
            for part in late:
                part.cancel()
            for part in done:
                part.exception()  # a connection that is lost meanwhile
        self._status = _Client.DRAINING_PUBS
        try:
            await self.flush()
        finally:
            await self._close(_Client.CLOSED)

    @override
    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self._plain.pop(sid, None)
        super()._remove_sub(sid, max_msgs)

    @override
    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        """Hand a message to its subscription."""
        handler = self._plain.get(sid)
        if handler is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(data)
        found = await self._process_headers(headers) if headers else None
        try:
            handler(self._build_message(sid, subject, reply, data, found))
        except Exception:  # Bulkhead: no message may end the read loop.
            log.exception("message not handled")

    @override
    async def _attempt_reconnect(self) -> None:
        """Reconnect until it works.

        nats-py expects errors of the network only. At any other (uvloop raises RuntimeError for a
        transport that has closed) its task ended, and the client never connected again.
        """
        while True:
            try:
                await super()._attempt_reconnect()
            except Exception as exc:  # noqa: BLE001 - Bulkhead: no error may end reconnecting.
                if self.is_closed:
                    return
                log.info("reconnecting again", extra=fields(error=type(exc).__name__))
                self._status = _Client.RECONNECTING
                await asyncio.sleep(_RECONNECT_S)
            else:
                return

    @override
    async def _select_next_server(self) -> None:
        self._end_if_cancelled()
        await super()._select_next_server()

    @override
    async def _connect_to_server(self, server: Any) -> None:
        self._end_if_cancelled()
        await super()._connect_to_server(server)

    def _end_if_cancelled(self) -> None:
        """End a reconnect whose cancellation was lost.

        Until Python 3.12 ``asyncio.wait_for`` raises the refusal of a connection in place of a
        cancellation that comes at the same moment. nats-py takes it for one more failure and goes
        on for ever, past the end of its client.
        """
        task = asyncio.current_task()
        if task is self._reconnection_task and task is not None and task.cancelling():
            raise asyncio.CancelledError

    def revive(self) -> None:
        """Reconnect, if the client is not connected and nothing in it is about to connect."""
        task = self._reconnection_task
        if not self.is_reconnecting or (task is not None and not task.done()):
            return
        self._reconnection_task = asyncio.get_running_loop().create_task(self._attempt_reconnect())

    @override
    async def _process_pong(self) -> None:
        """End the oldest round trip; one that its caller gave up must not end the read loop."""
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    @override
    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        """Send a PING behind what was sent before; nats-py writes it past its own buffer.

        So the end of a round trip says that the server has every subscription.
        """
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        await self._send_command(b"PING\r\n")
        await self._flush_pending()

    @override
    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        """Return a message; octets of its subjects that are not UTF-8 are escaped."""
        return self.msg_class(
            subject=subject.decode("utf-8", "backslashreplace"),
            reply=reply.decode("utf-8", "backslashreplace"),
            data=data,
            headers=headers,
            _client=self,
            _sid=sid,
        )

    @override
    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        """Return the headers of a message, None where they cannot be read."""
        try:
            found: dict[str, str] | None = await super()._process_headers(headers)
        except (ValueError, IndexError) as exc:
            log.debug("message headers refused", extra=fields(error=type(exc).__name__))
            return None
        return found

    @override
    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """Take the server's greeting.

        Raises:
            SecureConnWantedError: the server does not encrypt, and the URL is ``tls://``.
        """
        server = self._current_server
        wanted = initial_connection and server is not None and server.uri.scheme == "tls"
        if wanted and not info.get("tls_required"):
            raise nats.errors.SecureConnWantedError
        await super()._process_info(info, initial_connection)
