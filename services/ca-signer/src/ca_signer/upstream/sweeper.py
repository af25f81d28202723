"""Sweeper of submissions: resolve lapsed leases, abandon expired ones, count open ones."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Callable, Mapping

from ca_signer.model import EXPIRED, OPEN_SUBMISSION_STATES
from ca_signer.upstream import metrics
from ca_signer.upstream.cycle import UpstreamCycle
from ca_signer.upstream.idempotency import RESTARTED, RESTARTED_REASON
from ca_signer.upstream.issuer import UpstreamIssuer
from ca_signer.upstream.plugin import Retryable, Unknown
from ca_signer.upstream.submissions import Submissions
from estcore.errors import Unavailable
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop

log = logging.getLogger(__name__)

_LIMIT = 64
_LOOK_EVERY_S = 300.0


class UpstreamSweeper:
    """Runs beside the request handler in every process; any number may run."""

    def __init__(
        self,
        submissions: Submissions,
        cycle: UpstreamCycle,
        issuers: Mapping[str, UpstreamIssuer],
        *,
        pending_for: dt.timedelta,
        every_s: float,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._submissions = submissions
        self._cycle = cycle
        self._issuers = issuers
        self._pending_for = pending_for
        self._every_s = every_s
        self._changed = changed

    async def run(self, stop: asyncio.Event) -> None:
        """Sweep until ``stop``."""
        while not await sleep_or_stop(stop, self._every_s):
            try:
                await self.sweep()
            except Unavailable as exc:
                log.warning("sweep deferred", extra=fields(code=exc.code, reason=exc.reason))

    async def sweep(self) -> None:
        """Do everything that is due once.

        Raises:
            Unavailable: database or bus unavailable; the next sweep goes on.
        """
        issuers = list(self._issuers)
        repeatable = {name: issuer.plugin.repeatable_s for name, issuer in self._issuers.items()}
        for submission in await self._submissions.lapsed(repeatable, _LIMIT):
            # Not redelivered within a lease: its message or its process is gone.
            await self._submissions.unknown(submission, RESTARTED, RESTARTED_REASON)
        for submission in await self._submissions.stale(issuers, self._pending_for, _LIMIT):
            await self._cycle.abandon(submission, EXPIRED)
        counts = await self._submissions.counts(issuers)
        for issuer_id in issuers:
            for state in OPEN_SUBMISSION_STATES:
                metrics.OPEN.labels(issuer_id, state).set(counts.get((issuer_id, state), 0))
        self._changed()

    async def watch(self, stop: asyncio.Event) -> None:
        """Compare the upstream CAs' certificates with the configured ones, to notice a rollover."""
        stopping = False
        while not stopping:
            await self._compare()
            stopping = await sleep_or_stop(stop, _LOOK_EVERY_S)

    async def _compare(self) -> None:
        for issuer in self._issuers.values():
            if not issuer.usable:
                continue
            try:
                async with asyncio.timeout(issuer.settings.timeout_s):
                    same = await issuer.shows_itself()
            except (Retryable, Unknown, TimeoutError) as exc:
                log.warning(
                    "upstream CA certificates not available",
                    extra=fields(issuer=issuer.issuer_id, error=str(exc)),
                )
                continue
            metrics.CHAIN_DIFFERS.labels(issuer.issuer_id).set(0 if same else 1)
            if not same:
                log.error(
                    "upstream CA does not present the configured issuer",
                    extra=fields(issuer=issuer.issuer_id),
                )
