"""Sweeper: finish what a crash left.

It acquires intents whose lease ran out, publishes what was not confirmed, and deletes what expired.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from ca_signer import metrics
from ca_signer.issuance.decision import recheck
from ca_signer.issuance.decision_context import DecisionContext
from ca_signer.ledger.issuances import IssuanceStore, TakenOver
from ca_signer.ledger.refusals import RefusalStore
from ca_signer.model import EXPIRED, IssuanceIntent
from ca_signer.publishing.publisher import EventPublisher
from ca_signer.signing.cycle import IssuanceCycle
from estcore.clock import monotonic_s
from estcore.errors import InvariantBroken, NotAuthorized, RequestRejected, Unavailable
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop

log = logging.getLogger(__name__)

_LIMIT = 64
_OBJECTIONS = {
    EXPIRED.code: EXPIRED.reason,
    "auth.certificate_revoked": "the presented certificate is revoked",
    "key.compromised": "the key is known to be lost",
    "secret.invalid": "the secret is not valid any more",
}
_QUIET_S = 5
_PURGE_EVERY_S = 600


@dataclass(kw_only=True, eq=False, slots=True)
class Sweeper:
    """Runs beside the worker in every signer process; any number may run."""

    ledger: IssuanceStore
    refusals: RefusalStore
    cycle: IssuanceCycle
    publisher: EventPublisher
    decision_context: DecisionContext
    every_s: float
    _purge_at: float = field(default=0.0, init=False)

    async def run(self, stop: asyncio.Event) -> None:
        """Sweep until ``stop``."""
        while not await sleep_or_stop(stop, self.every_s):
            try:
                await self.sweep()
            except Unavailable as exc:
                log.warning("sweep deferred", extra=fields(code=exc.code, reason=exc.reason))
            except InvariantBroken as exc:
                log.error("sweep stopped", extra=fields(code=exc.code, reason=exc.reason))

    async def sweep(self) -> None:
        """Do everything that is due once.

        Raises:
            Unavailable: database or bus unavailable; the next sweep goes on.
        """
        unfinished = await self.ledger.unfinished()
        takeovers = await self.ledger.take_over(_LIMIT) if unfinished.intents else []
        if takeovers:
            await self._resume(takeovers)
        late = (
            await self.ledger.unannounced(older_than_s=_QUIET_S, limit=_LIMIT)
            if unfinished.certificates
            else []
        )
        if late:
            await self.publisher.left_behind(late)
            await self.ledger.mark_announced([i.intent.issuance_id for i in late])
            metrics.REANNOUNCED.labels("all").inc(len(late))
        refused = (
            await self.refusals.unpublished(older_than_s=_QUIET_S, limit=_LIMIT)
            if unfinished.refusals
            else []
        )
        if refused:
            await self.publisher.refusals(refused)
            await self.refusals.mark_published([r.event.id for r in refused])
        if monotonic_s() > self._purge_at:
            await self.refusals.delete_expired()
            self._purge_at = monotonic_s() + _PURGE_EVERY_S

    async def _resume(self, takeovers: list[TakenOver]) -> None:
        good = []
        for takeover in takeovers:
            try:
                if takeover.rejection_code is not None:
                    raise NotAuthorized(
                        _OBJECTIONS[takeover.rejection_code], code=takeover.rejection_code
                    )
                recheck(takeover.intent, self.decision_context)
            except RequestRejected as exc:
                await self.cycle.abandon(takeover.intent, exc)
                continue
            good.append(takeover.intent)
        metrics.RESUMED.inc(len(good))
        log.info("leases acquired from another signer", extra=fields(count=len(good)))
        try:
            await self._finish(good)
        except Unavailable:
            raise
        except Exception as exc:  # Bulkhead: one poisoned intent must not hold up others.
            log.warning("intents failed as a batch, processing them one by one", exc_info=exc)
            for intent in good:
                await self._finish_alone(intent)

    async def _finish(self, intents: list[IssuanceIntent]) -> None:
        stored = await self.cycle.sign_and_store(intents)
        if stored:
            await self.cycle.publish(stored)

    async def _finish_alone(self, intent: IssuanceIntent) -> None:
        try:
            await self._finish([intent])
        except InvariantBroken as exc:
            log.error(
                "internal check failed, nothing was signed",
                extra=fields(code=exc.code, reason=exc.reason),
            )
        except Unavailable:
            raise
        except Exception as exc:  # Bulkhead: it stays intended until it is stale, then ends.
            log.error("intent not finished", exc_info=exc)
