"""Listener interface and its TLS implementation.

Also exports the types in the interface, for listeners of other distributions.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Protocol

from est_frontend.audit_trail.trail import AuditTrail
from est_frontend.settings import ListenSettings
from est_frontend.tls.engine import EngineContext
from est_frontend.web.server import LimitedServer
from estcore.errors import ConfigurationError
from estcore.runtime.reload import Watched
from estcore.runtime.service import Job

__all__ = ["AuditTrail", "LimitedServer", "Listener", "TLSListener", "listen_error"]


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

    async def open(self, server: LimitedServer, trail: AuditTrail) -> asyncio.Server:
        """Begin to listen.

        Raises:
            ConfigurationError: the port is taken.
        """
        ...


class TLSListener:
    """Certificates, by ``est_frontend.tls.engine``."""

    jobs: Sequence[Job] = ()

    def __init__(self, listen: ListenSettings) -> None:
        self._listen = listen
        self._context = EngineContext(listen.certificate_file, listen.key_file)

    @property
    def names(self) -> frozenset[str]:
        """Hosts in the certificate in use."""
        return self._context.names

    @property
    def watched(self) -> Sequence[Watched]:
        """The certificate and its key."""
        files = (self._listen.certificate_file, self._listen.key_file)
        return [Watched("server certificate", files, lambda: self._context.swap(*files))]

    async def open(self, server: LimitedServer, trail: AuditTrail) -> asyncio.Server:
        """Begin to listen."""
        del trail
        listen = self._listen
        try:
            return await asyncio.get_running_loop().create_server(
                server,
                listen.host,
                listen.port,
                ssl=self._context,
                backlog=listen.backlog,
                reuse_port=hasattr(socket, "SO_REUSEPORT"),
                ssl_handshake_timeout=listen.handshake_timeout_s,
                ssl_shutdown_timeout=2,
            )
        except OSError as exc:
            raise listen_error(listen, exc) from exc


def listen_error(listen: ListenSettings, error: OSError) -> ConfigurationError:
    """Return the error for a port that cannot be opened."""
    return ConfigurationError(
        f"cannot listen on {listen.host}:{listen.port}: {error.strerror}", code="port.taken"
    )
