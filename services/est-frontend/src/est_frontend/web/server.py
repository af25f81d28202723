"""aiohttp's low-level server with limits on connections and heads, and no answer of its own.

- aiohttp ends idle connections only after their first request; a client that opens a connection
  and dribbles its head would hold it for ever.
- What aiohttp answers and logs by itself repeats octets of the request, credentials among them.
  Here the handler answers in its place (``Dispatcher.refuse``), and a log line holds none of them.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.web_protocol import ERROR, RequestHandler, RequestPayloadError
from typing_extensions import override

from est_frontend import metrics
from est_frontend.connection_limits import Arrival
from estcore.errors import ESTSuiteError, MalformedRequest
from estcore.runtime.logs import fields

log = logging.getLogger(__name__)

NOT_HTTP = "the request is not valid HTTP/1.1"
_VERSIONS = (HttpVersion10, HttpVersion11)
"""aiohttp's parser lets 0.9 and 2.0 pass, and an answer would repeat the number."""


class UnreadableRequest(HttpProcessingError):
    """The parser refused a head or the framing of a body; holds no octet of it."""

    def __init__(self, error: MalformedRequest) -> None:
        super().__init__(message=error.code)
        self.error = error


class Parser:
    """aiohttp's parser, whose every error says that the request is unreadable and no more."""

    def __init__(self, parser: Any, failed: Callable[[UnreadableRequest], None]) -> None:
        self._parser = parser
        self._failed = failed

    def feed_data(self, data: bytes) -> Any:
        """Return what aiohttp's parser returns.

        Raises:
            UnreadableRequest: the octets are not HTTP/1.1.
        """
        try:
            parsed = self._parser.feed_data(data)
            if all(message.version in _VERSIONS for message, _ in parsed[0]):
                return parsed
            error = MalformedRequest(NOT_HTTP)
        except LineTooLong:
            error = MalformedRequest(
                "the head of the request is too large", code="request.head_too_large"
            )
        except Exception:  # noqa: BLE001 - Bulkhead: a parser that is not ours reads octets of strangers.
            error = MalformedRequest(NOT_HTTP)
        unreadable = UnreadableRequest(error)
        self._failed(unreadable)
        raise unreadable

    def __getattr__(self, name: str) -> Any:
        """Everything else is as aiohttp has it."""
        return getattr(self._parser, name)


class Answering(Protocol):
    """The handler of this process."""

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request."""
        ...

    def refuse(self, request: web.BaseRequest, error: ESTSuiteError) -> web.Response:
        """Answer what could not be read, or could not be finished."""
        ...


class PatientHandler(RequestHandler):
    """A connection whose first request head must be complete in time."""

    __slots__ = ("_deadline", "_head_timeout_s", "_refuse", "arrival")

    def __init__(self, manager: LimitedServer, head_timeout_s: float, **more: Any) -> None:
        super().__init__(manager, logger=log, **more)
        self._refuse = manager.answering.refuse
        self.arrival: Arrival | None = None
        self._head_timeout_s = head_timeout_s
        self._deadline: asyncio.TimerHandle | None = None
        self._parser: Any = Parser(self._parser, self._end_bodies)

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
        if self.arrival is not None:
            self.arrival.ended()
        super().connection_lost(exc)

    def _check(self) -> None:
        if self._request_count == 0 and self.transport is not None:
            metrics.CUT.labels("head_timeout").inc()
            self.transport.abort()

    def _end_bodies(self, unreadable: UnreadableRequest) -> None:
        """Fail every body that is not complete; aiohttp's parser forgets the one it was reading."""
        bodies = [body for _, body in self._messages]
        if self._current_request is not None:
            bodies.append(self._current_request.content)
        for body in bodies:
            if not body.is_eof() and body.exception() is None:
                body.set_exception(UnreadableRequest(unreadable.error))

    @override
    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer an error of the HTTP library as the handler answers its own."""
        error: ESTSuiteError
        if isinstance(exc, UnreadableRequest):
            error = exc.error
        else:
            self.log_exception("request failed outside the handler", exc_info=exc)
            error = ESTSuiteError("internal error", code="internal")
        if request.writer.output_size > 0:
            raise ConnectionResetError
        response = self._refuse(request, error)
        response.force_close()
        return response

    @override
    def log_exception(self, *args: Any, **more: Any) -> None:
        """Log where an error of ours was raised, never its text; a client's fault is no error."""
        exc = more.get("exc_info")
        if isinstance(exc, (HttpProcessingError, RequestPayloadError, ConnectionError)):
            return
        trace = traceback.format_tb(exc.__traceback__) if isinstance(exc, BaseException) else []
        log.error("connection failed", extra=fields(error=type(exc).__name__, trace="".join(trace)))

    @override
    def log_debug(self, *args: Any, **more: Any) -> None:
        """Say nothing."""


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
        self, handler: Answering, *, max_connections: int, head_timeout_s: float, **more: Any
    ) -> None:
        super().__init__(handler, **more)
        self.answering = handler
        self._max_connections = max_connections
        self._head_timeout_s = head_timeout_s

    @override
    def __call__(self) -> Any:
        """Return the protocol of a new connection."""
        if len(self._connections) >= self._max_connections:
            return Refused()
        return PatientHandler(self, self._head_timeout_s, loop=self._loop, **self._kwargs)

    def counted(self, arrival: Arrival) -> asyncio.Protocol:
        """Return the protocol of a connection that was counted when it arrived."""
        handler = PatientHandler(self, self._head_timeout_s, loop=self._loop, **self._kwargs)
        handler.arrival = arrival
        return handler


def request_factory(max_body_bytes: int) -> Any:
    """Return the factory of requests whose bodies have a limit, also of unreadable ones."""

    def make(
        message: Any, payload: Any, protocol: Any, writer: Any, task: asyncio.Task[None]
    ) -> web.BaseRequest:
        loop = asyncio.get_running_loop()
        if message is ERROR:
            message = message._replace(version=HttpVersion11)
        return web.BaseRequest(
            message, payload, protocol, writer, task, loop, client_max_size=max_body_bytes
        )

    return make
