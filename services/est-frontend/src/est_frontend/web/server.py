"""aiohttp's low-level server with limits on connections and on how long a request head may take.

aiohttp ends idle connections only after their first request; a client that opens a connection
and dribbles its head would hold it for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from typing_extensions import override

from est_frontend import metrics


class PatientHandler(RequestHandler):
    """A connection whose first request head must be complete in time."""

    __slots__ = ("_deadline", "_head_timeout_s")

    def __init__(self, manager: LimitedServer, head_timeout_s: float, **more: Any) -> None:
        super().__init__(manager, **more)
        self._head_timeout_s = head_timeout_s
        self._deadline: asyncio.TimerHandle | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the clock."""
        super().connection_made(transport)
        self._deadline = self._loop.call_later(self._head_timeout_s, self._check)

    @override
    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the clock."""
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def _check(self) -> None:
        if self._request_count == 0 and self.transport is not None:
            metrics.CUT.labels("head_timeout").inc()
            self.transport.abort()


class Refused(asyncio.Protocol):
    """What a connection beyond the limit gets: closed at once."""

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close."""
        metrics.CUT.labels("too_many").inc()
        transport.close()


class LimitedServer(web.Server):
    """Makes one handler a connection, up to a number of connections."""

    def __init__(
        self, handler: Any, *, max_connections: int, head_timeout_s: float, **more: Any
    ) -> None:
        super().__init__(handler, **more)
        self._max_connections = max_connections
        self._head_timeout_s = head_timeout_s

    @override
    def __call__(self) -> Any:
        """Return the protocol of a new connection."""
        if len(self._connections) >= self._max_connections:
            return Refused()
        return PatientHandler(self, self._head_timeout_s, loop=self._loop, **self._kwargs)
