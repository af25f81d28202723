"""Accepts TLS connections and counts each from its arrival, not from the end of its handshake.

``asyncio`` hides a connection until its handshake is complete: a client that opens
connections and sends nothing, or half a handshake, could hold any number of them.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from est_frontend import metrics
from est_frontend.connection_limits import Arrival, ConnectionBounds, ConnectionLimits
from est_frontend.settings import ListenSettings
from est_frontend.tls.engine import EngineContext
from est_frontend.tls.transport import TLSTransport
from estcore.runtime.logs import fields
from estcore.runtime.sockets import address_of, source_of

log = logging.getLogger(__name__)

_AT_ONCE = 64
_PAUSE_S = 0.5
_SHUTDOWN_S = 2

MakeProtocol = Callable[[Arrival], asyncio.Protocol]


class Acceptor:
    """Listens on sockets, as long as ``run`` runs; ``make`` returns the protocol of a connection.

    The protocol calls ``ended`` of its arrival when the connection is lost.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        context: EngineContext,
        listen: ListenSettings,
        make: MakeProtocol,
    ) -> None:
        self._sockets = list(sockets)
        self._context = context
        self._handshake_timeout_s = listen.handshake_timeout_s
        self._make = make
        self._limits = ConnectionLimits(bounds_of(listen))
        self._group: asyncio.TaskGroup | None = None
        self._paused: list[asyncio.TimerHandle] = []
        metrics.HANDSHAKES.set_function(lambda: self._limits.waiting)
        metrics.CONNECTIONS.set_function(lambda: self._limits.total)

    @property
    def port(self) -> int:
        """The port of the first socket."""
        port: int = self._sockets[0].getsockname()[1]
        return port

    async def run(self, stop: asyncio.Event) -> None:
        """Accept until ``stop``; handshakes under way then are ended."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            for listening in self._sockets:
                # Accepted connections inherit it: clients that vanish are noticed.
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                self._resume(listening)
            await stop.wait()
            self.close()
            self._limits.end_waiting()

    def close(self) -> None:
        """Stop listening; connections go on."""
        self._group = None
        for pause in self._paused:
            pause.cancel()
        while self._sockets:
            listening = self._sockets.pop()
            asyncio.get_running_loop().remove_reader(listening)
            listening.close()

    def _resume(self, listening: socket.socket) -> None:
        asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, peername = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                continue  # the client is gone already
            except OSError as exc:
                self._pause(listening, exc)
                return
            connection.setblocking(False)
            self._begin(connection, peername)

    def _pause(self, listening: socket.socket, exc: OSError) -> None:
        """Out of descriptors or memory: what is open may end before more is accepted."""
        log.error("connections cannot be accepted", extra=fields(reason=exc.strerror))
        loop = asyncio.get_running_loop()
        loop.remove_reader(listening)
        self._paused = [p for p in self._paused if p.when() > loop.time()]
        self._paused.append(loop.call_later(_PAUSE_S, self._resume, listening))

    def _begin(self, connection: socket.socket, peername: Any) -> None:
        source = source_of(address_of(peername))
        transport: TLSTransport | None = None

        def abort() -> None:
            if transport is not None:
                transport.abort()

        arrival = self._limits.arrive(source, abort)
        if arrival is None or self._group is None:
            connection.close()
            return
        transport = TLSTransport(
            self._context,
            partial(self._make, arrival),
            arrival,
            peername=peername,
            handshake_timeout_s=self._handshake_timeout_s,
            shutdown_timeout_s=_SHUTDOWN_S,
        )
        self._group.create_task(self._connect(connection, transport))

    async def _connect(self, connection: socket.socket, transport: TLSTransport) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: transport, connection)
        except Exception as exc:  # noqa: BLE001 - Bulkhead: RuntimeError of a closed connection.
            transport.connection_lost(exc)
            connection.close()
            log.info("connection not started", extra=fields(error=type(exc).__name__))


def bounds_of(listen: ListenSettings) -> ConnectionBounds:
    """Return the limits of the port for EST."""
    return ConnectionBounds(
        waiting=listen.max_handshakes,
        waiting_per_source=listen.max_handshakes_per_source,
        total=listen.max_connections,
        total_per_source=listen.max_connections_per_source,
    )
