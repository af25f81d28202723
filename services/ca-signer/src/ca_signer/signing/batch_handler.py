"""What happens to one batch of deliveries, from the first look to the last ack."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from typing_extensions import override

from ca_signer import metrics
from ca_signer.issuance.approvals import PendingApproval
from ca_signer.issuance.decision_context import Candidate, DecisionContext
from ca_signer.issuance.idempotency import (
    Answer,
    ExpiredIntent,
    InProgress,
    KeyNotDelivered,
    Refuse,
    RequestResolver,
    Resume,
)
from ca_signer.issuance.request_handler import LEASED_S, ReceivedRequest, RequestHandler
from ca_signer.ledger.issuances import IssuanceStore
from ca_signer.model import EXPIRED, IssuanceIntent, IssuedCertificate
from ca_signer.publishing.publisher import EventPublisher
from ca_signer.publishing.replies import issued_answer
from ca_signer.signing.cycle import IssuanceCycle
from estcore.errors import RequestRejected, Unavailable
from estcore.runtime import faults
from estcore.runtime.bus import Bus
from estcore.runtime.consume import Delivery
from estcore.runtime.tracing import Tracing

log = logging.getLogger(__name__)


class BatchHandler(RequestHandler):
    """Takes deliveries through the cycle together; one instance serves a whole process."""

    def __init__(  # noqa: PLR0913 - the parts of the signer, joined in main
        self,
        *,
        bus: Bus,
        ledger: IssuanceStore,
        resolver: RequestResolver,
        cycle: IssuanceCycle,
        publisher: EventPublisher,
        decision_context: DecisionContext,
        tracing: Tracing,
        max_attempts: int,
    ) -> None:
        super().__init__(
            bus=bus,
            ledger=ledger,
            resolver=resolver,
            publisher=publisher,
            decision_context=decision_context,
            max_attempts=max_attempts,
        )
        self._cycle = cycle
        self._tracing = tracing

    @override
    async def process(self, deliveries: Sequence[Delivery]) -> None:
        """End every delivery with exactly one of ack, nak, term."""
        fresh: list[ReceivedRequest] = []
        for delivery in deliveries:
            item = await self._read(delivery)
            if item is None:
                continue
            if delivery.attempt == 1:
                fresh.append(item)
            else:
                # Delivered before: alone, so that a poisoned request harms nobody else.
                await self._alone(item)
        if not fresh:
            return
        metrics.BATCH.observe(len(fresh))
        try:
            await self._together(fresh)
        except Unavailable as exc:
            await self._nak_all([i.delivery for i in fresh], exc.code)
        except Exception as exc:  # Bulkhead: one poisoned request must harm nobody else.
            log.warning("batch failed, processing its requests one by one", exc_info=exc)
            for item in fresh:
                await self._alone(item)

    async def _together(self, items: Sequence[ReceivedRequest]) -> None:
        candidates, routed = await self._decide_all(items)
        fresh: dict[bytes, Candidate] = {}
        doubled = []
        for candidate in candidates:
            key = candidate.intent.enrollment_id
            if candidate.needs_own_transaction or fresh.setdefault(key, candidate) is not candidate:
                doubled.append(candidate)
        faults.hit("signer.4.decided")
        # 5. Record all that are fresh in one statement; the others are looked at alone.
        recorded = await self._ledger.intend([c.intent for c in fresh.values()]) if fresh else set()
        intents = [c.intent for c in fresh.values() if c.intent.issuance_id in recorded]
        waiting = {c.message.id: routed[c.message.id] for c in candidates}
        stored = await self._finish(intents)
        if stored:
            await self._cycle.announce(stored)
        done = {i.intent.request_id for i in stored}
        # 11. Ack.
        for request_id in done:
            await waiting.pop(request_id).delivery.ack()
        faults.hit("signer.11.acked")
        rest = [c for c in (*fresh.values(), *doubled) if c.message.id in waiting]
        for candidate in rest:
            item = routed[candidate.message.id]
            try:
                await self._resolve(item, candidate)
            except Unavailable as exc:
                await self._nak_all([item.delivery], exc.code)

    async def _finish(self, intents: Sequence[IssuanceIntent]) -> list[IssuedCertificate]:
        traced = next((i.context.traceparent for i in intents if i.context.traceparent), None)
        with self._tracing.span("issue certificates", traced, batch=len(intents)):
            return await self._cycle.sign_and_store(intents)

    @override
    async def _resolve(self, item: ReceivedRequest, candidate: Candidate) -> None:
        try:
            settled = await self._resolver.resolve(candidate)
        except RequestRejected as exc:
            await self._refuse(item, exc)
            return
        match settled:
            case Resume(intent=intent):
                await self._resume(item, intent)
            case Answer(issued=issued, new=new):
                await self._answer(item, issued, new=new)
            case Refuse(error=error):
                await self._refuse(item, error)
            case ExpiredIntent(intent=intent):
                await self._cycle.abandon(intent, EXPIRED)
                await self._resolve(item, candidate)
            case KeyNotDelivered(issued=issued):
                await self._cycle.supersede(issued)
                await self._resolve(item, candidate)
            case InProgress(ours=ours):
                await self._leased(item, candidate.intent, ours=ours)
            case PendingApproval(retry_after_s=retry_after_s):
                await self._pending(item, candidate.intent, retry_after_s)

    async def _resume(self, item: ReceivedRequest, intent: IssuanceIntent) -> None:
        if intent.fence > 1:
            metrics.RESUMED.inc()
        stored = await self._finish([intent])
        if not stored:
            await item.delivery.nak(LEASED_S)
            return
        await self._cycle.announce(stored)
        message = item.message
        if intent.request_id != message.id:
            # The intent of an earlier request; this one is answered with its certificate.
            answer = issued_answer(message.id, stored[0].certificate)
            await self._publisher.replies.send(message.group, message.instance, answer)
        await item.delivery.ack()
