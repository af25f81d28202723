"""HTTPS requests to a receiver, and what its status says about the delivery.

2xx: it has the content, as far as its own answer does not say otherwise. 400, 413 and 422: the
content is refused for good. 429 and 5xx: later. Everything else, 401 and 403 as well, is a fault of
the settings that an operator corrects while the log waits.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from audit.sink_settings import TLSSink
from audit.transports.tls_stream import tls_context
from audit.transports.transport import BatchRefused, SinkBusy
from estcore.clock import Clock
from estcore.errors import ConfigurationError
from estcore.est.retry_after import retry_after_s
from estcore.runtime.secret_files import read_secret

_REFUSED = frozenset({400, 413, 422})
_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})
_MAX_ANSWER = 32 << 20
_SHOWN = 200


@dataclass(frozen=True)
class Answer:
    """Status and body of an answer."""

    status: int
    body: bytes
    retry_after_s: float | None

    @property
    def text(self) -> str:
        """The beginning of the body on one line."""
        return " ".join(self.body[:_SHOWN].decode("utf-8", "replace").split())


class HTTPClient:
    """A session with one receiver; connections are kept."""

    def __init__(self, sink: TLSSink, clock: Clock) -> None:
        self._sink, self._clock = sink, clock
        self._session: aiohttp.ClientSession | None = None

    def open(self) -> None:
        """Read the TLS files and begin a session.

        Raises:
            OSError: a file cannot be used.
        """
        context = tls_context(self._sink)
        timeout = aiohttp.ClientTimeout(total=self._sink.timeout_s)
        connector = aiohttp.TCPConnector(ssl=context, limit=4)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False)

    async def post(self, url: str, body: bytes, headers: dict[str, str]) -> Answer:
        """Send a request and return its answer.

        Raises:
            OSError: no answer in time.
        """
        if self._session is None:
            raise ConnectionResetError("not connected")
        try:
            async with self._session.post(
                url,
                data=body,
                headers=headers,
                allow_redirects=False,
                server_hostname=self._sink.server_name,
            ) as response:
                text = await response.content.read(_MAX_ANSWER)
                wished = retry_after_s(response.headers.get("Retry-After"), now=self._clock.now())
                return Answer(response.status, text, wished)
        except aiohttp.ClientError as exc:
            raise ConnectionResetError(f"{type(exc).__name__}: {exc}") from exc

    async def close(self) -> None:
        """End the session."""
        if self._session is not None:
            await self._session.close()


def check(answer: Answer) -> Answer:
    """Return an answer that has a 2xx status.

    Raises:
        BatchRefused: the content is refused for good.
        OSError: it has to be sent again later.
    """
    if 200 <= answer.status < 300:  # noqa: PLR2004 - RFC 9110 section 15.3
        return answer
    reason = f"HTTP {answer.status}: {answer.text}"
    if answer.status in _REFUSED:
        raise BatchRefused(reason)
    if answer.status in _LATER:
        raise SinkBusy(reason, retry_after_s=answer.retry_after_s)
    raise ConnectionRefusedError(reason)


def bearer(file: Path | None, scheme: str = "Bearer") -> dict[str, str]:
    """Return the Authorization header with a token from a file, read at every call.

    Raises:
        OSError: the file cannot be used.
    """
    if file is None:
        return {}
    return {"Authorization": f"{scheme} {secret_of(file)}"}


def secret_of(file: Path) -> str:
    """Return the secret in a file.

    Raises:
        OSError: the file cannot be used; the log waits until it can.
    """
    try:
        return read_secret(file, "the secret of a sink")
    except ConfigurationError as exc:
        raise ConnectionAbortedError(exc.reason) from exc


async def pause(seconds: float) -> None:
    """Wait where there is no connection to watch."""
    await asyncio.sleep(seconds)
