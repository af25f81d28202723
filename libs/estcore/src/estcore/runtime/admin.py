"""Health and metrics over plain HTTP with the standard library: /healthz, /readyz, /metrics.

Liveness says that the event loop turns; it never depends on a database. Readiness lists what
is not there. Bound to loopback unless configured otherwise; it serves nothing secret.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version

from prometheus_client import REGISTRY, CollectorRegistry, Gauge
from prometheus_client.exposition import choose_encoder

from estcore.runtime.settings import AdminSettings
from estcore.runtime.sockets import Servers, open_sockets

Checks = Mapping[str, Callable[[], bool]]
_HEAD_LIMIT = 8192
_REFRESH_S = 2.0
"""What takes longer is left as it was: a scrape must not fail with its subject."""

BUILD_INFO = Gauge(
    "estsuite_build_info",
    "1; the labels name the service, its version and the interpreter",
    ["service", "version", "python"],
)

READY = Gauge(
    "estsuite_ready", "1 while a check of readiness succeeds, 0 while it fails", ["check"]
)


def note_build(service: str, distribution: str) -> None:
    """Set the metric that names this process's version."""
    BUILD_INFO.labels(service, version(distribution), platform.python_version()).set(1)


class AdminServer:
    """The admin port of one process."""

    def __init__(self, settings: AdminSettings, checks: Checks) -> None:
        self._settings = settings
        self._checks = checks
        self._before_metrics: list[Callable[[], Awaitable[object]]] = []
        self._server: Servers | None = None
        self.stopping = False

    async def start(self) -> int:
        """Listen; returns the port.

        Raises:
            ConfigurationError: the port is taken.
        """
        sockets = open_sockets(self._settings.host, self._settings.port, what="admin port")
        self._server = await Servers.start(self._serve, sockets, limit=_HEAD_LIMIT)
        return self._server.port

    def before_metrics(self, refresh: Callable[[], Awaitable[object]]) -> None:
        """Call ``refresh`` at each scrape, before the metrics are written."""
        self._before_metrics.append(refresh)

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    def missing(self) -> list[str]:
        """Return the names of readiness checks that fail."""
        missing = [name for name, check in self._checks.items() if not check()]
        return [*missing, "stopping"] if self.stopping else missing

    def _note_readiness(self) -> None:
        """Set the metric of every check; those of the start are gone afterwards."""
        READY.clear()
        for name, check in self._checks.items():
            READY.labels(name).set(check())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(5):
                request = await reader.readuntil(b"\r\n\r\n")
                if _path(request) == b"/metrics":
                    await self._refresh()
                writer.write(self._answer(request))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a probe that does not speak HTTP gets no answer
        finally:
            writer.close()

    async def _refresh(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REFRESH_S):
                for refresh in self._before_metrics:
                    await refresh()

    def _answer(self, request: bytes) -> bytes:
        method = request.partition(b" ")[0]
        path = _path(request)
        if method not in {b"GET", b"HEAD"}:
            return _response("405 Method Not Allowed", "only GET\n", head=False)
        head = method == b"HEAD"
        if path == b"/healthz":
            return _response("200 OK", "alive\n", head=head)
        if path == b"/readyz":
            missing = self.missing()
            if missing:
                text = "not ready: " + ", ".join(missing) + "\n"
                return _response("503 Service Unavailable", text, head=head)
            return _response("200 OK", "ready\n", head=head)
        if path == b"/metrics":
            self._note_readiness()
            # Exemplars are in OpenMetrics only; Prometheus asks for it.
            encode, content_type = _encoder(_header(request, b"accept"))
            body = encode(REGISTRY).decode()
            return _response("200 OK", body, head=head, content_type=content_type)
        return _response("404 Not Found", "not here\n", head=head)


def _path(request: bytes) -> bytes:
    return request.partition(b" ")[2].partition(b" ")[0].partition(b"?")[0]


def _encoder(accept: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    """Return how metrics are written for an ``Accept`` header; one that is wrong is none."""
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):  # compares parts of a version that are not numbers
        return choose_encoder("")


def _header(request: bytes, name: bytes) -> str:
    """Return a header of a request; empty if it has none."""
    for line in request.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip().decode("latin-1")
    return ""


def _response(
    status: str, body: str, *, head: bool, content_type: str = "text/plain; charset=utf-8"
) -> bytes:
    octets = body.encode()
    lines = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(octets)}\r\nConnection: close\r\n\r\n"
    )
    return lines.encode() + (b"" if head else octets)
