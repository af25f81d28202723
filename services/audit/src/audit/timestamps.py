"""Time stamps of checkpoints by an authority (RFC 3161), beside the writer.

The newest checkpoint is stamped every ``every_s``. Sealing never waits for it: an authority that
is unavailable, slow, or answers with what does not verify costs one warning, and is asked again.
What is stored verified against the configured anchors, with the nonce of its request.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from pathlib import Path

import aiohttp

from audit import metrics, store
from audit.self_records import SelfRecords
from audit.settings import TimestampSettings
from estcore.clock import Clock, monotonic_s
from estcore.errors import AuditChainBroken, ConfigurationError, LedgerUnavailable
from estcore.runtime.database import Database
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop
from estcore.tlog import timestamp
from estcore.tlog.checkpoint import Checkpoint, parse_signed
from estcore.tlog.verify import CLOCK_SKEW

log = logging.getLogger(__name__)

_LOOK_S = 1.0
_RETRY_S = 30.0
_TYPES = {"Content-Type": "application/timestamp-query", "Accept": "application/timestamp-reply"}
_OK = 200


class Timestamping:
    """The job of one authority."""

    def __init__(
        self,
        settings: TimestampSettings,
        *,
        database: Database,
        own: SelfRecords,
        leading: Callable[[], bool],
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._authority = authority_of(settings)
        self._database, self._own, self._leading, self._clock = database, own, leading, clock
        self._retry_s = min(_RETRY_S, settings.every_s)
        self._fault: str | None = None
        self._stamped_at: float | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Have checkpoints stamped until ``stop``."""
        while not stop.is_set():
            pause = _LOOK_S
            if self._leading() and self._due():
                pause = await self._attempt()
            await sleep_or_stop(stop, pause)

    def _due(self) -> bool:
        return (
            self._stamped_at is None or monotonic_s() - self._stamped_at >= self._settings.every_s
        )

    async def _attempt(self) -> float:
        """Ask once; returns the pause before the next look, in seconds."""
        try:
            await self.step()
        except AuditChainBroken as exc:
            self._report(exc.code, exc.reason)
            return self._retry_s
        except (OSError, aiohttp.ClientError, TimeoutError) as exc:
            self._report("timestamp.unavailable", f"{type(exc).__name__}: {exc}")
            return self._retry_s
        except LedgerUnavailable:
            return self._retry_s
        if self._fault is not None:
            self._own.note("audit.timestamp_recovered", authority=self._authority.name)
            log.info("checkpoints are stamped again", extra=fields(tsa=self._authority.name))
        self._fault = None
        return _LOOK_S

    def _report(self, code: str, reason: str) -> None:
        metrics.TIMESTAMP_FAULTS.labels(self._authority.name).inc()
        if self._fault == code:
            return
        self._fault = code
        log.warning(
            "checkpoint is not stamped",
            extra=fields(tsa=self._authority.name, code=code, reason=reason),
        )
        self._own.note(
            "audit.timestamp_fault",
            phase="error",
            severity="warning",
            reason=(code, reason[:300]),
            authority=self._authority.name,
        )

    async def step(self) -> None:
        """Have the newest checkpoint stamped, unless it is.

        Raises:
            AuditChainBroken: the answer does not verify, or its time is not now.
            OSError, aiohttp.ClientError, TimeoutError: the authority does not answer.
            LedgerUnavailable: PostgreSQL is unavailable.
        """
        name = self._authority.name
        async with self._database.connection() as connection:
            note = await store.newest_note(connection)
            if note is None:
                return
            point = parse_signed(note).checkpoint
            if await store.has_line(connection, point.size, name):
                return
        response = await self._stamped(point)
        async with self._database.connection() as connection:
            line = timestamp.line(self._authority, response)
            await store.add_line(connection, point.size, name, line)
        self._stamped_at = monotonic_s()
        metrics.TIMESTAMPS.labels(name).inc()
        metrics.TIMESTAMP_SIZE.labels(name).set(point.size)

    async def _stamped(self, point: Checkpoint) -> bytes:
        request = timestamp.request(point)
        response = await self._post(request.der)
        at = await asyncio.to_thread(
            timestamp.verify_response, point, self._authority, response, nonce=request.nonce
        )
        if abs(at - self._clock.now()) > CLOCK_SKEW:
            raise AuditChainBroken(
                f"the time stamp says {at.isoformat()}, which is not now", code="timestamp.time"
            )
        return response

    async def _post(self, body: bytes) -> bytes:
        """Send a request (RFC 3161 section 3.4) and return the body of the answer."""
        timeout = aiohttp.ClientTimeout(total=self._settings.timeout_s)
        connector = aiohttp.TCPConnector(ssl=_context(self._settings.ca_file), force_close=True)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session,
            session.post(
                self._settings.url, data=body, headers=_TYPES, allow_redirects=False
            ) as response,
        ):
            answer = await response.content.read(timestamp.MAX_RESPONSE + 1)
            while len(answer) <= timestamp.MAX_RESPONSE and not response.content.at_eof():
                answer += await response.content.read(timestamp.MAX_RESPONSE + 1 - len(answer))
            if response.status != _OK:
                raise ConnectionRefusedError(f"HTTP {response.status}")
            if len(answer) > timestamp.MAX_RESPONSE:
                raise ConnectionAbortedError(f"an answer over {timestamp.MAX_RESPONSE} octets")
            return answer


def authority_of(settings: TimestampSettings) -> timestamp.Authority:
    """Return the authority of the settings, and read the TLS anchors.

    Raises:
        ConfigurationError: a file cannot be used.
    """
    try:
        _context(settings.ca_file)
        pem = settings.anchors_file.read_bytes()
    except OSError as exc:
        raise ConfigurationError(f"time-stamping authority {settings.name}: {exc}") from exc
    return timestamp.Authority.parse(settings.name, pem)


def _context(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
