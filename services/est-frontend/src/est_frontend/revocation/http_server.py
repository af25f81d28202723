"""Revocation over plain HTTP, on a listener of its own: ``GET /crl/<issuer>.crl``.

``GET /crl/<issuer>/<partition>.crl`` is a part of the list.

Where it is switched on, OCSP too (``est_frontend.revocation.ocsp_relay``).

A client that fetches a list over TLS would have to check the server's certificate first, for
which it wants the CRL (RFC 5280 section 8). The CRL is signed; nothing here is secret, no client
is authenticated, and only OCSP has bodies. It is served from memory and outlives every outage.
"""

from __future__ import annotations

import asyncio
import re
from email.utils import format_datetime
from typing import cast

from est_frontend.connection_limits import ConnectionBounds, ConnectionLimits
from est_frontend.revocation.ocsp_relay import OCSPRelay, response
from est_frontend.settings import CRLListenSettings
from est_frontend.signer_state.cache import SignerState
from estcore.clock import Clock
from estcore.runtime.sockets import Servers, address_of, open_sockets, source_of

_HEAD_LIMIT = 8192
_DEADLINE_S = 10
_LONGEST_CACHE_S = 3600
_PATH = re.compile(rb"/crl/([a-z0-9-]{1,63})(?:/([0-9]{1,3}-[0-9]{1,3}))?\.crl")
_ETAG = re.compile(rb"\r\nif-none-match:[ \t]*([^\r\n]*)", re.IGNORECASE)


class CRLServer:
    """The listener of one process."""

    def __init__(
        self,
        settings: CRLListenSettings,
        state: SignerState,
        clock: Clock,
        *,
        ocsp: OCSPRelay | None = None,
    ) -> None:
        self._settings = settings
        self._state = state
        self._clock = clock
        self._ocsp = ocsp
        self._server: Servers | None = None
        most, per_source = settings.max_connections, settings.max_connections_per_source
        # A connection has one answer: each of them waits, for its head or for its reader.
        self._limits = ConnectionLimits(
            ConnectionBounds(
                waiting=most,
                waiting_per_source=per_source,
                total=most + 1,
                total_per_source=per_source + 1,
                name="crl_",
            )
        )

    async def start(self) -> int:
        """Listen; returns the port.

        Raises:
            ConfigurationError: the port is taken.
        """
        sockets = open_sockets(
            self._settings.host, self._settings.port, what="CRL port", reuse_port=True
        )
        self._server = await Servers.start(self._serve, sockets, limit=_HEAD_LIMIT)
        return self._server.port

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        source = source_of(address_of(writer.get_extra_info("peername")))
        # uvloop's transports are of no class of asyncio.
        arrival = self._limits.arrive(source, cast("asyncio.Transport", writer.transport).abort)
        if arrival is None:
            writer.close()
            return
        try:
            async with asyncio.timeout(_DEADLINE_S):
                request = await reader.readuntil(b"\r\n\r\n")
                if self._ocsp is not None and self._ocsp.is_for(request):
                    writer.write(await self._ocsp.answer(request, reader, source))
                else:
                    writer.write(self.answer(request))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # who does not speak HTTP gets no answer
        finally:
            arrival.ended()
            writer.close()

    def answer(self, request: bytes) -> bytes:
        """Return the response to the head of a request."""
        method, _, rest = request.partition(b" ")
        if method not in {b"GET", b"HEAD"}:
            return response("405 Method Not Allowed", {"Allow": "GET, HEAD"})
        match = _PATH.fullmatch(rest.partition(b" ")[0].partition(b"?")[0])
        part = match[2].decode() if match and match[2] else None
        crl = self._state.crl(match[1].decode(), part) if match else None
        if crl is None:
            return response("404 Not Found", {})
        remaining_s = int((crl.next_update - self._clock.now()).total_seconds())
        tag = f'"{crl.number}"'
        headers = {
            "Content-Type": "application/pkix-crl",
            "Cache-Control": f"public, max-age={max(0, min(remaining_s, _LONGEST_CACHE_S))}",
            "Last-Modified": format_datetime(crl.this_update, usegmt=True),
            "ETag": tag,
        }
        condition = _ETAG.search(request)
        if condition is not None and tag.encode() in condition[1]:
            return response("304 Not Modified", headers)
        return response("200 OK", headers, crl.crl, head=method == b"HEAD")
