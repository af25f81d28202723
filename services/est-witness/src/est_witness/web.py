"""``POST /add-checkpoint`` over HTTPS (C2SP tlog-witness)."""

from __future__ import annotations

import asyncio
import logging
import ssl

from aiohttp import web

from est_witness import metrics
from est_witness.settings import ListenSettings
from est_witness.witness import ForkFound, OtherSize, Witness
from estcore.errors import ConfigurationError, MalformedRequest, NotAuthenticated
from estcore.runtime.logs import fields
from estcore.tlog.cosignature import CONTENT_TYPE_SIZE

log = logging.getLogger(__name__)

_MAX_BODY = 64 * 1024
_BODY_S = 10


class WitnessServer:
    """The HTTPS port of a witness."""

    def __init__(self, settings: ListenSettings, witness: Witness) -> None:
        self._settings, self._witness = settings, witness
        self._turn = asyncio.Lock()
        self._runner: web.AppRunner | None = None

    async def start(self) -> int:
        """Listen; returns the port.

        Raises:
            ConfigurationError: a TLS file cannot be used, or the port is taken.
        """
        app = web.Application(client_max_size=_MAX_BODY)
        app.router.add_post("/add-checkpoint", self._add_checkpoint)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await self._runner.setup()
        context = tls_context(self._settings)
        place = self._settings
        try:
            await web.TCPSite(self._runner, place.host, place.port, ssl_context=context).start()
        except OSError as exc:
            raise ConfigurationError(
                f"cannot listen on {place.host}:{place.port}: {exc.strerror}"
            ) from exc
        port: int = self._runner.addresses[0][1]
        return port

    async def stop(self) -> None:
        """Stop listening, after the requests under way."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _add_checkpoint(self, request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(_BODY_S):
                body = await request.read()
        except (TimeoutError, web.HTTPRequestEntityTooLarge):
            return self._answered(400, "witness.malformed", "the request is too long or too slow")
        async with self._turn:
            # In a thread: it waits for the disk, and no second request may come between.
            return await asyncio.to_thread(self._answer, body)

    def _answer(self, body: bytes) -> web.Response:
        try:
            line = self._witness.answer(body)
        except OtherSize as exc:
            metrics.REQUESTS.labels(exc.code).inc()
            return web.Response(
                status=409,
                body=f"{exc.size}\n".encode(),
                headers={"Content-Type": CONTENT_TYPE_SIZE},
            )
        except ForkFound as exc:
            return self._answered(422, exc.code, exc.reason)
        except NotAuthenticated as exc:
            return self._answered(403, exc.code, exc.reason)
        except MalformedRequest as exc:
            status = 404 if exc.code == "witness.log" else 400
            return self._answered(status, exc.code, exc.reason)
        except OSError as exc:
            log.error("what was seen cannot be stored", extra=fields(error=str(exc)))
            return self._answered(503, "witness.storage", "not now")
        metrics.REQUESTS.labels("cosigned").inc()
        return web.Response(text=line)

    def _answered(self, status: int, code: str, reason: str) -> web.Response:
        metrics.REQUESTS.labels(code).inc()
        return web.Response(status=status, text=f"{reason} [{code}]\n")


def tls_context(settings: ListenSettings) -> ssl.SSLContext:
    """Return how this server is known, and how it knows its clients.

    Raises:
        ConfigurationError: a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.certificate_file, settings.key_file)
        if settings.client_ca_file is not None:
            context.load_verify_locations(cafile=settings.client_ca_file)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"the TLS files of the witness cannot be used: {exc}") from exc
    return context
