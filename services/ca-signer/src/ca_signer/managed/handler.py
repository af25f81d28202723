"""Consumer of ``pki.rotation.requested``: renew what is due, or say why not.

1. Read what the ledger has on the certificate, and decide (``ca_signer.managed.decision``).
2. Resolve: the certificate has one successor by managed renewal, whichever signer is asked, and
   however often.
3. Take the intent through the issuance cycle, as every other certificate.
4. Acknowledge. A crash before this delivers the request again, which finds the row.

A refusal that is final is put on record and published; renewal ends the rotation. Any other is put
on record, and renewal asks again when its lease is over. What is unavailable is retried here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from ca_signer import metrics
from ca_signer.issuance.decision_context import Candidate, DecisionContext
from ca_signer.issuance.idempotency import (
    Answer,
    ExpiredIntent,
    RequestResolver,
    Resume,
)
from ca_signer.ledger.issuances import IssuanceStore
from ca_signer.managed.decision import (
    RENEWAL,
    ManagedGrant,
    grant_managed,
    is_final,
    managed_candidate,
    managed_enrollment_id,
)
from ca_signer.managed.key_generator import KeyGenerator, SealedKey
from ca_signer.managed.store import ManagedStore
from ca_signer.model import EXPIRED, MANAGED, IssuanceIntent, IssuedCertificate
from ca_signer.publishing.publisher import EventPublisher
from ca_signer.settings import SERVICE
from ca_signer.signing.cycle import IssuanceCycle
from estcore import ids
from estcore.clock import SystemClock
from estcore.errors import InvariantBroken, MalformedRequest, RequestRejected, Unavailable
from estcore.messages import topics
from estcore.messages.audit import Actor, AuditRecord, Target
from estcore.messages.envelope import decode, encode
from estcore.messages.events import RenewalRefused, RotationEvent
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.consume import PullConsumer
from estcore.runtime.delivery import Delivery
from estcore.runtime.logs import fields
from estcore.runtime.tracing import trace_id
from estcore.runtime.worker import MessageWorker, publish_dead_letter

log = logging.getLogger(__name__)

_CLOCK = SystemClock()
_CREDIT = 64
_TOGETHER = 8
_RETRY_S = 3.0


class LaterError(Exception):
    """Another process works on the same renewal; ask again in a moment."""


@dataclass(kw_only=True, eq=False, slots=True)
class ManagedRenewals:
    """Runs in every signer; any number may run."""

    bus: Bus
    ledger: IssuanceStore
    store: ManagedStore
    resolver: RequestResolver[IssuanceIntent]
    cycle: IssuanceCycle
    publisher: EventPublisher
    key_generator: KeyGenerator
    decision_context: DecisionContext
    max_attempts: int

    async def run(self, stop: asyncio.Event) -> None:
        """Handle requests of renewal until ``stop``; none while the ledger is unavailable."""
        consumer = PullConsumer(
            self.bus, topics.PKI_EVENTS, topics.MANAGED_CONSUMER, credit=_CREDIT
        )

        async def handle_all(deliveries: Sequence[Delivery], _: asyncio.Event) -> None:
            for start in range(0, len(deliveries), _TOGETHER):
                await asyncio.gather(*map(self.handle, deliveries[start : start + _TOGETHER]))

        await MessageWorker(
            consumer,
            handle_all,
            batch_size=_CREDIT,
            active=lambda: self.ledger.database.available,
        ).run(stop)

    async def handle(self, delivery: Delivery) -> None:
        """End one delivery with ack, nak or term; no error escapes."""
        try:
            event = decode(RotationEvent, delivery.payload())
            await self.renew(event)
        except (MalformedRequest, InvariantBroken) as exc:
            await self._dead_letter(delivery, exc.code, exc.reason)
        except Unavailable as exc:
            log.warning("managed renewal deferred", extra=fields(code=exc.code))
            await delivery.nak(_RETRY_S)
        except LaterError:
            await delivery.nak(_RETRY_S)
        except Exception as exc:  # Bulkhead: NAK for redelivery; dead-lettered after max_attempts.
            log.error("managed renewal failed", exc_info=exc)
            await self._failed(delivery)
        else:
            await delivery.ack()

    async def renew(self, event: RotationEvent) -> None:
        """Renew the certificate an event names, or refuse it on record.

        Raises:
            MalformedRequest: the event asks for no renewal.
            Unavailable: nothing is lost; the event is handled again.
            LaterError: another process works on it.
        """
        fingerprint = _fingerprint(event)
        try:
            # 1. Read and decide.
            due = await self.store.due(fingerprint, managed_enrollment_id(fingerprint))
            if due is not None and due.succeeded and due.certificate.slot_id == event.slot_id:
                return
            granted = grant_managed(event, due, self.decision_context)
            generated = await self._generated(granted)
            candidate = managed_candidate(event, granted, self.decision_context, generated)
            # 2. Resolve. 3. Issue.
            await self._issue(candidate)
        except RequestRejected as exc:
            await self._refuse(event, exc)

    async def _generated(self, granted: ManagedGrant) -> SealedKey | None:
        """Return a new key, where the grant has a recipient; one that is not used is forgotten."""
        if granted.recipient is None:
            return None
        due = granted.due
        assert due.context.csr is not None  # noqa: S101 - granted
        family = self.decision_context.family(due.certificate.issuer_id)
        return await self.key_generator.make(
            due.context.csr, granted.profile, granted.recipient, family
        )

    async def _issue(self, candidate: Candidate) -> None:
        match await self.resolver.resolve(candidate):
            case Resume(intent=intent):
                if intent.fence > 1:
                    metrics.RESUMED.inc()
                outcome = await self.cycle.issue(intent)
                if not isinstance(outcome, IssuedCertificate):
                    raise LaterError
                await self.cycle.publish([outcome])
            case Answer():
                return
            case ExpiredIntent(intent=intent):
                await self.cycle.abandon(intent, EXPIRED)
                raise LaterError
            case _:
                raise LaterError

    async def _refuse(self, event: RotationEvent, error: RequestRejected) -> None:
        metrics.REJECTED.labels(error.code).inc()
        log.info(
            "managed renewal refused",
            extra=fields(slot=event.slot_id, code=error.code, reason=error.reason),
        )
        await self.publisher.denials([self._record(event, error)])
        if not is_final(error):
            return
        refused = RenewalRefused(
            id=ids.record_id("renewal-refused", event.id),
            source=self.publisher.audit_records.source,
            time=_CLOCK.now(),
            correlation_id=event.correlation_id,
            causation_id=event.id,
            traceparent=event.traceparent,
            tenant=event.tenant,
            service=event.service,
            slot_id=event.slot_id,
            rotation_id=event.rotation_id,
            fence=event.fence,
            kind=type(error).__name__,
            code=error.code,
            reason=error.reason,
        )
        topic = topics.certificate_topic("renewal-refused", event.tenant, event.service)
        await self.bus.publish_confirmed([Outgoing(topic, encode(refused), refused.id)])

    def _record(self, event: RotationEvent, error: RequestRejected) -> AuditRecord:
        old = event.old
        return self.publisher.audit_records.build.failure(
            "certificate.issue",
            record_id=ids.record_id("managed-refused", event.id),
            at=_CLOCK.now(),
            correlation_id=event.correlation_id,
            causation_id=event.id,
            trace_id=trace_id(event.traceparent),
            phase="denied",
            reason_code=error.code,
            reason=error.reason,
            severity="warning" if is_final(error) else "notice",
            actor=Actor(type="service", subject=RENEWAL, auth_method=MANAGED),
            target=Target(
                tenant=event.tenant,
                service=event.service,
                slot_id=event.slot_id,
                rotation_id=event.rotation_id,
                label=event.label,
                profile=event.profile,
                issuer_id=event.issuer_id,
                predecessor_serial=old.serial if old else None,
            ),
        )

    async def _failed(self, delivery: Delivery) -> None:
        try:
            attempts = await self.ledger.count_attempt(sha256(delivery.data).digest())
        except Unavailable:
            attempts = 0
        if attempts < self.max_attempts:
            await delivery.nak(_RETRY_S)
            return
        await self._dead_letter(delivery, "request.too_many_attempts", "given up")

    async def _dead_letter(self, delivery: Delivery, code: str, reason: str) -> None:
        """Keep a message for an operator; renewal's lease ends, and it asks again."""
        metrics.DEAD.labels(code).inc()
        log.error(
            "message dead-lettered", extra=fields(code=code, reason=reason, topic=delivery.topic)
        )
        try:
            await publish_dead_letter(
                self.bus,
                SERVICE,
                delivery,
                reason=code.replace(".", "-").replace("_", "-"),
                message_id=f"dead-{delivery.place}",
            )
            await self.publisher.dead_letter(delivery, code, reason, None)
        except Unavailable:
            await delivery.nak(_RETRY_S)
            return
        await delivery.term()


def _fingerprint(event: RotationEvent) -> bytes:
    """Return the SHA-256 of the certificate that is due.

    Raises:
        MalformedRequest: the event is about another step, or names none.
    """
    try:
        octets = bytes.fromhex(event.old.fingerprint_sha256 if event.old else "")
    except ValueError:
        octets = b""
    if event.step != "requested" or not octets:
        raise MalformedRequest("not a request for a renewal", code="message.malformed")
    return octets
