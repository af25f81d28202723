"""Batches of deliveries: new requests take the issuance cycle together, all others alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from opentelemetry.trace import SpanKind

from ca_signer import metrics
from ca_signer.issuance.decision_context import Candidate, DecisionContext
from ca_signer.issuance.request_handler import ReceivedRequest, RequestHandler
from ca_signer.ledger.issuances import IssuanceStore
from ca_signer.model import IssuanceIntent
from ca_signer.signing.cycle import IssuanceCycle
from estcore.clock import unix_ms
from estcore.errors import Unavailable
from estcore.runtime import faults
from estcore.runtime.delivery import Delivery
from estcore.runtime.tracing import Tracing, step

log = logging.getLogger(__name__)

_LINKS = 32


class BatchHandler:
    """Takes deliveries through the cycle together; one instance serves a whole process."""

    def __init__(
        self,
        handler: RequestHandler[IssuanceIntent],
        ledger: IssuanceStore,
        cycle: IssuanceCycle,
        tracing: Tracing,
    ) -> None:
        self._handler = handler
        self._tracing = tracing
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
            with self._span(new):
                await self._together(new)
        except Unavailable as exc:
            await self._handler.nak_all([i.delivery for i in new], exc.code)
        except Exception as exc:  # Bulkhead: a poisoned request harms no other of its batch.
            log.warning("batch failed, processing its requests one by one", exc_info=exc)
            for item in new:
                await self._handler.handle(item)

    def _span(self, items: Sequence[ReceivedRequest]) -> AbstractContextManager[str | None]:
        """Return the span of a batch, in the trace of its first sampled request.

        Those of the others are linked.
        """
        traced = [item for item in items if item.message.traceparent]
        if not traced:
            return nullcontext()
        first = traced[0]
        waited_ms = max(unix_ms() - int(first.delivery.stored_s() * 1000), 0)
        return self._tracing.span(
            "issue certificates",
            first.message.traceparent,
            kind=SpanKind.CONSUMER,
            links=[item.message.traceparent or "" for item in traced[1:_LINKS]],
            batch=len(items),
            waited_in_stream_ms=waited_ms,
        )

    async def _together(self, items: Sequence[ReceivedRequest]) -> None:
        with step("decide"):
            candidates, requests = await self._handler.decide_all(items)
        first: dict[bytes, Candidate] = {}
        alone = []
        for candidate in candidates:
            key = candidate.intent.enrollment_id
            if candidate.needs_own_transaction or first.setdefault(key, candidate) is not candidate:
                alone.append(candidate)
        faults.hit("signer.4.decided")
        # 5. Record all that are new in one statement; the others are resolved alone.
        with step("record intents"):
            new = [c.intent for c in first.values()]
            recorded = await self._ledger.insert(new) if new else set()
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
