"""Accepts connections, does TLS-SRP handshakes, hands them to the server.

A handshake that fails for any reason after a user was named counts as a wrong password
for that user and source; so does one for a user who does not exist. Pauses grow with each.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from typing import cast

from typing_extensions import override

from est_frontend import metrics
from est_frontend.listener import AuditTrail, LimitedServer, Listening, sockets_of
from est_frontend.rate_limits import Attempt as CountedAttempt
from est_frontend.rate_limits import Backoff, TooOften
from est_frontend_srp.connection import Attempt, SRPContext
from est_frontend_srp.settings import SRPFrontendSettings
from est_frontend_srp.verifier_file import Verifiers
from estcore import ids
from estcore.runtime.logs import fields
from estcore.runtime.reload import Watched
from estcore.runtime.service import Job
from estcore.runtime.sockets import Servers, address_of, source_of

log = logging.getLogger(__name__)


class SRPListener:
    """TLS-SRP, by ``est_frontend_srp.connection``."""

    names: frozenset[str] = frozenset()
    """No certificate, so no proof can name this server."""

    def __init__(self, settings: SRPFrontendSettings) -> None:
        self._settings = settings
        self._verifiers = Verifiers.load(settings.srp.verifiers_file)
        self._by_account = Backoff(free=5, longest_s=300)
        self._by_source = Backoff(free=50, longest_s=60)
        self._handshakes: set[asyncio.Transport] = set()
        self._group: asyncio.TaskGroup | None = None
        self._server: LimitedServer | None = None
        self._trail: AuditTrail | None = None

    @property
    def watched(self) -> Sequence[Watched]:
        """The verifiers."""
        file = self._settings.srp.verifiers_file
        return [
            Watched("srp users", (file,), lambda: self._verifiers.replace(Verifiers.load(file)))
        ]

    @property
    def jobs(self) -> Sequence[Job]:
        """The handshakes."""
        return [self._run]

    async def open(self, server: LimitedServer, trail: AuditTrail) -> Listening:
        """Begin to listen."""
        self._server, self._trail = server, trail
        loop, backlog = asyncio.get_running_loop(), self._settings.listen.backlog
        return Servers(
            [
                await loop.create_server(lambda: _Arriving(self), sock=listening, backlog=backlog)
                for listening in sockets_of(self._settings.listen)
            ]
        )

    async def _run(self, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            self._group = group
            await stop.wait()
            self._group = None
            for transport in self._handshakes:
                transport.abort()

    def arrived(self, transport: asyncio.Transport, early: bytearray) -> None:
        """Begin the handshake of a new connection, or end it when there are too many."""
        source = _source(transport)
        count = len(self._handshakes) + len(self._server.connections if self._server else ())
        if self._group is None or count >= self._settings.srp.max_connections:
            _cut(transport, "too_many")
            return
        try:
            # No more handshakes of one source at once than may fail.
            by_source = self._by_source.begin_now(source_of(source), source_of(source))
        except TooOften:
            _cut(transport, "backoff")
            return
        self._handshakes.add(transport)
        self._group.create_task(self._shake(transport, source, early, by_source))

    async def _shake(
        self,
        transport: asyncio.Transport,
        source: str,
        early: bytearray,
        by_source: CountedAttempt,
    ) -> None:
        loop = asyncio.get_running_loop()
        attempt = Attempt(self._verifiers, self._by_account, source_of(source))
        # Later, so that the alert is on its way before.
        context = SRPContext(attempt, partial(loop.call_soon, transport.close), early)
        assert self._server is not None  # noqa: S101 - connections come after ``open``
        handler = self._server()
        secured = None
        # Success is what ``proved`` says: an end that is in order raises nothing.
        try:
            secured = await loop.start_tls(
                transport,
                handler,
                context,
                server_side=True,
                ssl_handshake_timeout=self._settings.listen.handshake_timeout_s,
                ssl_shutdown_timeout=2,
            )
        except OSError:
            pass  # ssl.SSLError and TimeoutError are among them
        except Exception as exc:  # noqa: BLE001 - Bulkhead: RuntimeError of a closed connection.
            log.info("srp handshake not started", extra=fields(error=type(exc).__name__))
        finally:
            self._handshakes.discard(transport)
            if attempt.name is not None and not attempt.proved:
                by_source.failed()
            by_source.withdrawn()  # changes nothing after ``failed``
            attempt.ended()
        if not attempt.proved:
            transport.abort()
            self._failed(attempt, source)
            return
        # The client had to wait for our Finished: nothing can have come for the handler yet.
        if secured is not None and not secured.is_closing():
            handler.connection_made(secured)

    def _failed(self, attempt: Attempt, source: str) -> None:
        log.info("SRP handshake failed", extra=fields(peer=source, named=attempt.name is not None))
        if attempt.name is None:
            return
        metrics.REFUSED.labels("auth.srp").inc()
        assert self._trail is not None  # noqa: S101 - connections come after ``open``
        # Not the name: what is typed as a name is now and then a password.
        self._trail.refused(
            source,
            "auth.srp",
            correlation_id=ids.uuid7(),
            reason="no such user, wrong password, or the handshake was broken off",
            action="est.none",
            actor={"type": "service", "auth_method": "srp"},
            origin={"peer": source, "tls_version": "TLSv1.2"},
        )


class _Arriving(asyncio.Protocol):
    """A connection before its handshake."""

    def __init__(self, listener: SRPListener) -> None:
        self._listener = listener
        self._early = bytearray()

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hand the new connection to the listener."""
        # uvloop's transports are of no class of asyncio.
        self._listener.arrived(cast("asyncio.Transport", transport), self._early)

    @override
    def data_received(self, data: bytes) -> None:
        """Keep what comes before the TLS protocol is there."""
        self._early += data


def _source(transport: asyncio.Transport) -> str:
    return address_of(transport.get_extra_info("peername"))


def _cut(transport: asyncio.Transport, reason: str) -> None:
    metrics.CUT.labels(reason).inc()
    transport.abort()
