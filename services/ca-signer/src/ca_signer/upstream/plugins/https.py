"""HTTPS to an upstream CA: verified, bounded in time and size, exact about what was sent.

When a call fails, only one fact matters: can the server have acted? Before a connection is
established nothing was sent; afterwards the outcome is unknown. A kept connection that the server
closes at that moment looks like a lost response, so a plug-in that may not repeat a request uses
a new connection for each (``fresh``).
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Self

import aiohttp
from pydantic import Field

from ca_signer.upstream.plugin import Retryable, Unknown
from estcore.clock import Clock, SystemClock
from estcore.errors import ConfigurationError
from estcore.est.retry_after import retry_after_s
from estcore.pki.profile import StrictModel
from estcore.runtime.secret_files import check_mode

_TEXT = 200


class HTTPSettings(StrictModel):
    """How to reach an upstream CA over HTTPS."""

    url: str = Field(
        pattern=r"^https://[^/?#@\s]+/?$", description="https://host[:port], without a path"
    )
    ca_file: Path = Field(description="trust anchors for its TLS certificate, PEM")
    certificate_file: Path | None = Field(
        default=None, description="our TLS client certificate, PEM, chain below it"
    )
    key_file: Path | None = Field(
        default=None, description="its key, PEM: a key for TLS, never that of a CA"
    )
    proxy_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^@\s]+$",
        description="HTTP proxy; none is taken from the environment",
    )
    connect_timeout_s: float = Field(default=5, ge=0.1, le=60, description="TCP and TLS together")
    max_response_bytes: int = Field(
        default=262_144, ge=1024, le=16_777_216, description="longer answers count as unreadable"
    )


@dataclass(frozen=True)
class Answer:
    """An HTTP answer read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def retry_after_s(self, default: int, clock: Clock | None = None) -> int:
        """Return Retry-After in whole seconds, rounded up, from 1 to a day."""
        now = (clock or SystemClock()).now()
        wait_s = retry_after_s(self.headers.get("Retry-After"), now=now)
        return default if wait_s is None else max(1, math.ceil(wait_s))


class Transport:
    """One kept session."""

    def __init__(self, settings: HTTPSettings, *, timeout_s: float, fresh: bool) -> None:
        self._settings = settings
        self._fresh = fresh
        self._timeout = aiohttp.ClientTimeout(
            total=timeout_s, connect=settings.connect_timeout_s, sock_connect=None
        )
        self._context = tls_context(settings)
        self._session: aiohttp.ClientSession | None = None

    @property
    def files(self) -> list[Path]:
        """The files of TLS."""
        paths = (self._settings.ca_file, self._settings.certificate_file, self._settings.key_file)
        return [path for path in paths if path is not None]

    def reload(self) -> None:
        """Read the files of TLS again, for connections made from now on.

        Raises:
            ConfigurationError: they are not good; what was read before stays.
        """
        self._context = tls_context(self._settings)

    async def open(self) -> None:
        """Make the session; nothing is connected yet."""
        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(_connected)
        trace.on_connection_reuseconn.append(_connected)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                force_close=self._fresh, limit=0, **({} if self._fresh else _KEPT)
            ),
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            trace_configs=[trace],
        )

    async def close(self) -> None:
        """Close the session."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def call(
        self, method: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str]
    ) -> Answer:
        """Return the answer to one request; redirects are not followed.

        Raises:
            Retryable: nothing was sent.
            Unknown: sent, and no whole answer came.
        """
        assert self._session is not None  # noqa: S101 - opened by the context manager
        sending = SimpleNamespace(connected=False)
        try:
            async with self._session.request(
                method,
                self._settings.url.rstrip("/") + path,
                data=body,
                headers={"Accept-Encoding": "identity", **headers},
                ssl=self._context,
                proxy=self._settings.proxy_url,
                allow_redirects=False,
                trace_request_ctx=sending,
            ) as response:
                return Answer(response.status, response.headers, await self._read(response))
        except (aiohttp.ClientError, OSError, ssl.SSLError) as exc:
            # TimeoutError is an OSError.
            if not sending.connected:
                raise Retryable(_cannot(exc), code="upstream.unreachable") from exc
            if isinstance(exc, TimeoutError):
                raise Unknown("no answer in time", code="upstream.timeout") from exc
            raise Unknown("the connection broke", code="upstream.lost") from exc

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        limit = self._settings.max_response_bytes
        body = bytearray()
        async for piece in response.content.iter_chunked(65_536):
            body += piece
            if len(body) > limit:
                response.close()
                raise Unknown(f"an answer of more than {limit} bytes", code="upstream.unreadable")
        return bytes(body)


_KEPT: dict[str, Any] = {"keepalive_timeout": 5}


async def _connected(_: aiohttp.ClientSession, context: SimpleNamespace, __: object) -> None:
    context.trace_request_ctx.connected = True


def _cannot(exc: Exception) -> str:
    if isinstance(exc, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
        return "the TLS certificate of the upstream CA, or ours, is not accepted"
    return "the upstream CA cannot be reached"


def tls_context(settings: HTTPSettings) -> ssl.SSLContext:
    """Return the client's TLS context: TLS 1.2 and newer, the peer verified, our certificate.

    Raises:
        ConfigurationError: a file cannot be used, or one of the pair is missing.
    """
    if (settings.certificate_file is None) != (settings.key_file is None):
        raise ConfigurationError("certificate_file and key_file go together")
    try:
        context = ssl.create_default_context(cafile=str(settings.ca_file))
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"cannot read certificates from {settings.ca_file}") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.certificate_file is not None and settings.key_file is not None:
        check_mode(settings.key_file, "the client key for the upstream CA")
        try:
            context.load_cert_chain(settings.certificate_file, settings.key_file)
        except (OSError, ValueError) as exc:
            raise ConfigurationError(
                f"cannot use {settings.certificate_file} and {settings.key_file} for TLS"
            ) from exc
    return context


def plain(text: str) -> str:
    """Return what an upstream CA says as one short printable line."""
    line = " ".join("".join(c if " " <= c <= "~" else " " for c in text).split())
    return line[:_TEXT]


class HTTPSPlugin:
    """What every plug-in over one ``Transport`` does alike: its files, its opening and closing."""

    _transport: Transport

    @property
    def files(self) -> Sequence[Path]:
        """The files of TLS."""
        return self._transport.files

    def reload(self) -> None:
        """Read the files of TLS again."""
        self._transport.reload()

    async def __aenter__(self) -> Self:
        await self._transport.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._transport.close()
