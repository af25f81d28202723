"""Finishes what a crash left: intents without a signer, facts without an announcement."""

from __future__ import annotations

import asyncio
import logging

from ca_signer import metrics
from ca_signer.announcing import Announcer
from ca_signer.context import Intent
from ca_signer.cycle import Cycle
from ca_signer.deciding import Authority, still_allowed
from ca_signer.ledger import Ledger, TakenOver
from ca_signer.repeats import Repeats
from estcore.errors import InvariantBroken, NotAuthorized, RequestRejected, Unavailable
from estcore.ids import record_id
from estcore.runtime.logs import fields
from estcore.runtime.service import until

log = logging.getLogger(__name__)

_LIMIT = 64
_QUIET_S = 5


class Sweeper:
    """Runs beside the worker in every signer process; any number may run."""

    def __init__(
        self,
        ledger: Ledger,
        repeats: Repeats,
        cycle: Cycle,
        announcer: Announcer,
        authority: Authority,
        *,
        every_s: float,
    ) -> None:
        self._ledger = ledger
        self._repeats = repeats
        self._cycle = cycle
        self._announcer = announcer
        self._authority = authority
        self._every_s = every_s

    async def run(self, stop: asyncio.Event) -> None:
        """Sweep until ``stop``."""
        while not await until(stop, self._every_s):
            try:
                await self.sweep()
            except Unavailable as exc:
                log.warning("sweep put off", extra=fields(code=exc.code, reason=exc.reason))
            except InvariantBroken as exc:
                log.error("sweep stopped", extra=fields(code=exc.code, reason=exc.reason))

    async def sweep(self) -> None:
        """Do everything that is due once.

        Raises:
            Unavailable: database or bus is away; the next sweep goes on.
        """
        taken = await self._ledger.take_over(_LIMIT)
        if taken:
            await self._resume(taken)
        late = await self._ledger.unannounced(older_than_s=_QUIET_S, limit=_LIMIT)
        if late:
            await self._announcer.issued(late)
            await self._ledger.mark_announced([i.intent.issuance_id for i in late])
            metrics.REANNOUNCED.labels("all").inc(len(late))
        refused = await self._repeats.unannounced_refusals(older_than_s=_QUIET_S, limit=_LIMIT)
        if refused:
            await self._announcer.refused(refused)
            await self._repeats.refusals_announced([r.event.id for r in refused])

    async def _resume(self, taken: list[TakenOver]) -> None:
        good = []
        for one in taken:
            try:
                if one.stale:
                    raise NotAuthorized("nobody waits for it any more", code="intent.stale")
                still_allowed(one.intent, self._authority)
            except RequestRejected as exc:
                await self._abandon(one.intent, exc)
                continue
            good.append(one.intent)
        metrics.RESUMED.inc(len(good))
        log.info("intents taken over", extra=fields(count=len(good)))
        stored = await self._cycle.finish(good)
        if stored:
            await self._cycle.announce(stored)

    async def _abandon(self, intent: Intent, why: RequestRejected) -> None:
        # Audited first: if we die in between, it is abandoned and audited again.
        record = self._announcer.note(
            intent,
            record_id=record_id("abandoned", intent.issuance_id),
            action="certificate.abandoned",
            error=why,
            phase="error",
        )
        await self._announcer.records([record])
        if await self._ledger.abandon(intent):
            metrics.ABANDONED.labels(why.code).inc()
            log.warning("intent abandoned", extra=fields(code=why.code, reason=why.reason))
