"""Batches of deliveries: new requests take the issuance cycle together, all others alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ca_signer import metrics
from ca_signer.issuance.decision_context import Candidate, DecisionContext
from ca_signer.issuance.request_handler import ReceivedRequest, RequestHandler
from ca_signer.ledger.issuances import IssuanceStore
from ca_signer.model import IssuanceIntent
from ca_signer.signing.cycle import IssuanceCycle
from estcore.errors import Unavailable
from estcore.runtime import faults
from estcore.runtime.delivery import Delivery

log = logging.getLogger(__name__)


class BatchHandler:
    """Takes deliveries through the cycle together; one instance serves a whole process."""

    def __init__(
        self,
        handler: RequestHandler[IssuanceIntent],
        ledger: IssuanceStore,
        cycle: IssuanceCycle,
    ) -> None:
        self._handler = handler
        self._ledger = ledger
        self._cycle = cycle

    @property
    def decision_context(self) -> DecisionContext:
        """The rules in force."""
        return self._handler.decision_context

    async def process(self, deliveries: Sequence[Delivery]) -> None:
        """End every delivery with exactly one of ack, nak, term."""
        new: list[ReceivedRequest] = []
        for delivery in deliveries:
            item = await self._handler.read(delivery)
            if item is None:
                continue
            if delivery.attempt == 1:
                new.append(item)
            else:
                # Delivered before: alone, so that a poisoned request harms no other.
                await self._handler.handle(item)
        if not new:
            return
        metrics.BATCH.observe(len(new))
        try:
            await self._together(new)
        except Unavailable as exc:
            await self._handler.nak_all([i.delivery for i in new], exc.code)
        except Exception as exc:  # Bulkhead: a poisoned request harms no other of its batch.
            log.warning("batch failed, processing its requests one by one", exc_info=exc)
            for item in new:
                await self._handler.handle(item)

    async def _together(self, items: Sequence[ReceivedRequest]) -> None:
        candidates, requests = await self._handler.decide_all(items)
        first: dict[bytes, Candidate] = {}
        alone = []
        for candidate in candidates:
            key = candidate.intent.enrollment_id
            if candidate.needs_own_transaction or first.setdefault(key, candidate) is not candidate:
                alone.append(candidate)
        faults.hit("signer.4.decided")
        # 5. Record all that are new in one statement; the others are resolved alone.
        recorded = await self._ledger.insert([c.intent for c in first.values()]) if first else set()
        intents = [c.intent for c in first.values() if c.intent.issuance_id in recorded]
        open_requests = {c.message.id: requests[c.message.id] for c in candidates}
        stored = await self._cycle.sign_and_store(intents)
        if stored:
            await self._cycle.publish(stored)
        # 11. Ack.
        for issued in stored:
            await open_requests.pop(issued.intent.request_id).delivery.ack()
        faults.hit("signer.11.acked")
        rest = [c for c in (*first.values(), *alone) if c.message.id in open_requests]
        if len(rest) > 1:
            answered = await self._handler.answer_repeats(
                [(open_requests[c.message.id], c) for c in rest]
            )
            rest = [c for c in rest if c.message.id not in answered]
        for candidate in rest:
            item = open_requests[candidate.message.id]
            try:
                await self._handler.resolve(item, candidate)
            except Unavailable as exc:
                await self._handler.nak_all([item.delivery], exc.code)
