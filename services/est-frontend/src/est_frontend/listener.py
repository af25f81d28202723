"""Listener interface and its TLS implementation.

Also exports the types in the interface, for listeners of other distributions.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Protocol

from est_frontend.acceptor import Acceptor
from est_frontend.audit_trail.trail import AuditTrail
from est_frontend.connection_limits import Arrival
from est_frontend.settings import ListenSettings
from est_frontend.tls.engine import EngineContext
from est_frontend.web.server import LimitedServer
from estcore.runtime.reload import Watched
from estcore.runtime.service import Job
from estcore.runtime.sockets import open_sockets

__all__ = ["AuditTrail", "LimitedServer", "Listener", "Listening", "TLSListener", "sockets_of"]


class Listening(Protocol):
    """A port that is open."""

    @property
    def port(self) -> int:
        """The port of the first address."""
        ...

    def close(self) -> None:
        """Stop listening; connections go on."""
        ...


class Listener(Protocol):
    """Accepts connections and hands those with a complete handshake to the server."""

    @property
    def names(self) -> frozenset[str]:
        """Hosts this server is by its certificate, lower case."""
        ...

    @property
    def watched(self) -> Sequence[Watched]:
        """Its files that may change while it serves."""
        ...

    @property
    def jobs(self) -> Sequence[Job]:
        """What runs as long as it serves."""
        ...

    async def open(self, server: LimitedServer, trail: AuditTrail) -> Listening:
        """Begin to listen.

        Raises:
            ConfigurationError: the port is taken.
        """
        ...


class TLSListener:
    """Certificates, by ``est_frontend.tls.engine``."""

    def __init__(self, listen: ListenSettings) -> None:
        self._listen = listen
        self._context = EngineContext(listen.certificate_file, listen.key_file)
        self._acceptor: Acceptor | None = None

    @property
    def names(self) -> frozenset[str]:
        """Hosts in the certificate in use."""
        return self._context.names

    @property
    def watched(self) -> Sequence[Watched]:
        """The certificate and its key."""
        files = (self._listen.certificate_file, self._listen.key_file)
        return [Watched("server certificate", files, lambda: self._context.swap(*files))]

    @property
    def jobs(self) -> Sequence[Job]:
        """What accepts connections, once the port is open."""
        return [self._acceptor.run] if self._acceptor else []

    async def open(self, server: LimitedServer, trail: AuditTrail) -> Listening:
        """Begin to listen."""
        del trail

        def make(arrival: Arrival) -> asyncio.Protocol:
            return server.counted(arrival)

        sockets = sockets_of(self._listen)
        self._acceptor = Acceptor(sockets, self._context, self._listen, make)
        return self._acceptor


def sockets_of(listen: ListenSettings) -> list[socket.socket]:
    """Return the sockets of the port for EST; several processes of a machine may have it.

    Raises:
        ConfigurationError: the port is taken.
    """
    return open_sockets(listen.host, listen.port, backlog=listen.backlog, reuse_port=True)
