"""Request handling shared by local and upstream issuers: decode, authorize, reply, acknowledge."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Generic, TypeVar

import asyncpg

from ca_signer import metrics
from ca_signer.issuance.approvals import PendingApproval
from ca_signer.issuance.certificate_source import CertificateSource, LeaseLost, RetryLater
from ca_signer.issuance.decision import decide
from ca_signer.issuance.decision_context import Candidate, DecisionContext, presented_fingerprint
from ca_signer.issuance.idempotency import (
    Answer,
    ExpiredIntent,
    InProgress,
    KeyNotDelivered,
    Refuse,
    RequestResolver,
    Resume,
)
from ca_signer.issuance.registration_authority import renewed_slots
from ca_signer.ledger.issuances import IssuanceStore
from ca_signer.ledger.refusals import RefusalStore
from ca_signer.ledger.repeats import note_repeats
from ca_signer.model import (
    EXPIRED,
    IssuanceIntent,
    IssuedCertificate,
    KnownCertificate,
    request_origin,
)
from ca_signer.publishing.publisher import EventPublisher
from ca_signer.publishing.replies import issued_answer, rejected_answer
from ca_signer.settings import SERVICE
from estcore.clock import monotonic_s
from estcore.errors import (
    InvariantBroken,
    MalformedRequest,
    RequestRejected,
    Unavailable,
)
from estcore.ids import record_id
from estcore.messages import topics
from estcore.messages.audit_batches import Record
from estcore.messages.enrollment import EnrollmentAnswered, EnrollmentRequested, ReplyAddress
from estcore.messages.envelope import decode, encode
from estcore.messages.events import EnrollmentPending
from estcore.runtime import faults
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.delivery import Delivery
from estcore.runtime.logs import fields
from estcore.runtime.worker import publish_dead_letter

log = logging.getLogger(__name__)

IntentT = TypeVar("IntentT", bound=IssuanceIntent)
P = TypeVar("P", EnrollmentRequested, ReplyAddress)

_KNOWN_LIMIT = 20_000
_RETRY_S = 1.0
_LEASED_S = 3.0
_LEASED_RETRY_S = 2
_REPEATED = RequestRejected(
    "the enrollment was made before; the stored certificate was returned",
    code="enrollment.repeated",
)
_GIVEN_UP = RequestRejected(
    "the request cannot be processed; it was kept for an operator", code="request.given_up"
)


@dataclass
class ReceivedRequest:
    """A delivery and the request in it."""

    delivery: Delivery
    message: EnrollmentRequested


@dataclass(kw_only=True, eq=False, slots=True)
class RequestHandler(Generic[IntentT]):
    """Handles single requests; one instance serves all deliveries of a process.

    Every delivery ends with exactly one of ack, nak, term, and its request is answered.
    """

    bus: Bus
    ledger: IssuanceStore
    refusals: RefusalStore
    resolver: RequestResolver[IntentT]
    source: CertificateSource[IntentT]
    publisher: EventPublisher
    decision_context: DecisionContext
    max_attempts: int
    _certificates: OrderedDict[bytes, KnownCertificate] = field(
        default_factory=OrderedDict, init=False
    )
    _minute: int = field(default=0, init=False)
    _counted: Counter[str] = field(default_factory=Counter, init=False)
    """Requests of each group in this minute."""

    async def read(self, delivery: Delivery) -> ReceivedRequest | None:
        """Decode a delivery; None where it is ended or deferred already."""
        try:
            if delivery.attempt > 1:
                attempts = await self.ledger.count_attempt(_key(delivery))
                if attempts >= self.max_attempts:
                    await self._dead_letter(delivery, "request.too_many_attempts", "given up")
                    return None
            message = decode(EnrollmentRequested, delivery.payload())
        except MalformedRequest as exc:
            await self._dead_letter(delivery, exc.code, exc.reason)
        except Unavailable as exc:
            await self.nak_all([delivery], exc.code)
        else:
            self.publisher.replies.note(message)
            return ReceivedRequest(delivery, message)
        return None

    async def decide_all(
        self, items: Sequence[ReceivedRequest]
    ) -> tuple[list[Candidate], dict[str, ReceivedRequest]]:
        """Decide requests; returns the allowed ones, and their requests by id."""
        await self._learn([f for i in items if (f := presented_fingerprint(i.message))])
        candidates = []
        routed: dict[str, ReceivedRequest] = {}
        for item in items:
            try:
                candidates.append(await self._decide(item))
            except RequestRejected as exc:
                await self._refuse(item, exc)
            except Unavailable as exc:
                await self.nak_all([item.delivery], exc.code)
            else:
                routed[item.message.id] = item
        return candidates, routed

    def _count(self, topic: str) -> None:
        """Count a request against the cap per minute of the group whose topic it came on.

        NATS lets a group publish on topics of its own only; the message could name any group.

        Raises:
            Unavailable: over the cap; the request waits.
        """
        group = topics.group_of_request(topic)
        minute = int(monotonic_s() // 60)
        if minute != self._minute:
            self._minute = minute
            self._counted.clear()
        self._counted[group] += 1
        caps = self.decision_context.groups.get(group)
        if caps is not None and self._counted[group] > caps.max_per_minute:
            raise Unavailable(f"group {group} asks too often", code="frontend.rate")

    async def _decide(self, item: ReceivedRequest) -> Candidate:
        self._count(item.delivery.topic)
        fingerprint = presented_fingerprint(item.message)
        presented = self._certificates.get(fingerprint) if fingerprint else None
        slots = renewed_slots(item.message, self.decision_context, presented)
        latest_certificates = (
            None if slots is None else await self.ledger.latest_certificates(slots)
        )
        return decide(
            item.message, item.delivery.topic, self.decision_context, presented, latest_certificates
        )

    async def _learn(self, fingerprints: Sequence[bytes]) -> None:
        """Fetch ledger facts not yet known. They never change; revocation is checked apart."""
        missing = list({f for f in fingerprints if f not in self._certificates})
        if missing:
            for certificate in await self.ledger.known_certificates(missing):
                self._certificates[certificate.fingerprint] = certificate
            while len(self._certificates) > _KNOWN_LIMIT:
                self._certificates.popitem(last=False)

    async def handle(self, item: ReceivedRequest) -> None:
        """Take one request from the decision to its end; no error escapes."""
        try:
            candidates, _ = await self.decide_all([item])
            for candidate in candidates:
                await self.resolve(item, candidate)
        except Unavailable as exc:
            await self.nak_all([item.delivery], exc.code)
        except InvariantBroken as exc:
            log.error(
                "internal check failed, nothing was signed",
                extra=fields(code=exc.code, reason=exc.reason),
            )
            await self._dead_letter(item.delivery, exc.code, exc.reason)
        except asyncpg.PostgresError as exc:
            error = f"{type(exc).__name__}: {exc}".splitlines()[0]
            log.error("ledger refused a request", extra=fields(error=error))
            await self.nak_all([item.delivery], "ledger.refused", counted=True)
        except Exception as exc:  # Bulkhead: NAK for redelivery; dead-lettered after max_attempts.
            log.error("request failed", exc_info=exc)
            await self.nak_all([item.delivery], "internal", counted=True)

    async def resolve(self, item: ReceivedRequest, candidate: Candidate) -> None:
        """Find out what a decided request is, and do it.

        Raises:
            Unavailable: the request is to be deferred.
        """
        try:
            self.source.check(candidate)
            resolution = await self.resolver.resolve(candidate)
        except RequestRejected as exc:
            await self._refuse(item, exc)
            return
        match resolution:
            case Resume(intent=intent):
                await self._issue(item, intent)
            case Answer(issued=issued, new=new):
                await self._answer(item, issued, new=new)
            case Refuse(error=error):
                await self._refuse(item, error)
            case ExpiredIntent(intent=intent):
                await self.source.abandon(intent, EXPIRED)
                await self.resolve(item, candidate)
            case KeyNotDelivered(issued=issued):
                await self.source.supersede(issued)
                await self.resolve(item, candidate)
            case InProgress(ours=ours):
                await self._leased(item, candidate.intent, ours=ours)
            case PendingApproval(retry_after_s=retry_after_s):
                await self._pending(item, candidate.intent, retry_after_s)
            case RetryLater(retry_after_s=retry_after_s):
                await self._pending(item, candidate.intent, retry_after_s)

    async def _issue(self, item: ReceivedRequest, intent: IntentT) -> None:
        if intent.fence > 1:
            metrics.RESUMED.inc()
        outcome = await self.source.issue(intent)
        match outcome:
            case IssuedCertificate() as issued:
                await self._deliver(item, issued)
            case RequestRejected() as error:
                await self._refuse(item, error)
            case RetryLater(retry_after_s=retry_after_s):
                await self._pending(item, intent, retry_after_s)
            case LeaseLost():
                await item.delivery.nak(_LEASED_S)

    async def _deliver(self, item: ReceivedRequest, issued: IssuedCertificate) -> None:
        message = item.message
        if issued.intent.request_id != message.id:
            # The intent of an earlier request; this one is answered with its certificate.
            await self.publisher.mappings([self._returned(message, issued)])
            answer = issued_answer(message.id, issued.certificate)
            await self.publisher.replies.send(message.group, message.instance, answer)
        await self.source.publish([issued])
        # 11. Ack.
        await self._ack(item.delivery)
        faults.hit(f"{self.source.name}.11.acked")

    async def _answer(self, item: ReceivedRequest, issued: IssuedCertificate, *, new: bool) -> None:
        message = item.message
        if new:
            metrics.REPEATED.inc()
        # Delivered again: it may have been noted without its record having been confirmed.
        again = item.delivery.attempt > 1 and issued.intent.request_id != message.id
        if new or again:
            await self.publisher.mappings([self._returned(message, issued)])
        answer = issued_answer(message.id, issued.certificate)
        await self.publisher.replies.send(message.group, message.instance, answer)
        await self._ack(item.delivery)

    async def answer_repeats(self, items: Sequence[tuple[ReceivedRequest, Candidate]]) -> set[str]:
        """Answer those requests that repeat an enrollment, together; returns their ids.

        Raises:
            Unavailable: none of them is answered; they are noted, or not, and come again.
        """
        plain = {
            candidate.message.id: (item, candidate)
            for item, candidate in items
            if not candidate.needs_own_transaction and candidate.message.operation != "serverkeygen"
        }
        if not plain:
            return set()
        repeats = [(candidate.intent, candidate.window) for _, candidate in plain.values()]
        stored = await note_repeats(self.ledger.database, repeats)
        if not stored:
            return set()
        records = [
            self._returned(plain[request_id][0].message, issued)
            for request_id, issued in stored.items()
        ]
        await self.publisher.joined(records)
        metrics.REPEATED.inc(len(stored))
        await self.publisher.replies.send_certificates(
            [(plain[request_id][0].message, issued) for request_id, issued in stored.items()]
        )
        for request_id in stored:
            await self._ack(plain[request_id][0].delivery)
        return set(stored)

    def _returned(self, message: EnrollmentRequested, issued: IssuedCertificate) -> Record:
        record = self.publisher.audit_records.about_intent(
            issued.intent,
            record_id=record_id("repeated", message.id),
            action="certificate.returned",
            error=_REPEATED,
            phase="outcome",
        )
        return record | {
            "correlation_id": message.correlation_id,
            "causation_id": message.id,
            "origin": request_origin(message.origin),
        }

    async def _leased(self, item: ReceivedRequest, intent: IssuanceIntent, *, ours: bool) -> None:
        if ours or item.delivery.attempt > 1:
            await item.delivery.nak(_LEASED_S)
            return
        # Another request for the same enrollment: its client asks again by itself.
        await self._pending(item, intent, _LEASED_RETRY_S)

    async def _pending(
        self, item: ReceivedRequest, intent: IssuanceIntent, retry_after_s: int
    ) -> None:
        message = item.message
        until = self.decision_context.clock.now() + dt.timedelta(seconds=retry_after_s)
        event = EnrollmentPending(
            id=f"pending-{message.id}",
            source="ca-signer",
            time=self.decision_context.clock.now(),
            correlation_id=message.correlation_id,
            tenant=intent.tenant,
            service=intent.service,
            enrollment_id=intent.enrollment_id.hex(),
            until=until,
        )
        topic = topics.certificate_topic("pending", intent.tenant, intent.service)
        await self.bus.publish_confirmed([Outgoing(topic, encode(event), event.id)])
        await self.publisher.replies.send(
            message.group,
            message.instance,
            EnrollmentAnswered(
                request_id=message.id, outcome="pending", retry_after_s=retry_after_s
            ),
        )
        await self._ack(item.delivery)

    async def _refuse(self, item: ReceivedRequest, error: RequestRejected) -> None:
        message = item.message
        refusal = self.publisher.audit_records.refusal(message, error)
        if await self.refusals.record(refusal, error, message.claims):
            metrics.REJECTED.labels(error.code).inc()
            log.info(
                "request refused",
                extra=fields(
                    correlation_id=message.correlation_id, code=error.code, reason=error.reason
                ),
            )
        await self.publisher.refusals([refusal])
        await self.refusals.mark_published([message.id])
        await self.publisher.replies.send(
            message.group, message.instance, rejected_answer(message.id, error)
        )
        await self._ack(item.delivery)

    async def _ack(self, delivery: Delivery) -> None:
        """Say that a request is done, which is no failure of its message.

        One that came with others comes again with them where one of them is deferred.
        """
        if delivery.attempt > 1:
            with contextlib.suppress(Unavailable):
                await self.ledger.forget_attempts([_key(delivery)])
        await delivery.ack()

    async def nak_all(
        self, deliveries: Sequence[Delivery], code: str, *, counted: bool = False
    ) -> None:
        """Defer deliveries for redelivery; ``counted`` is a failure of the message itself."""
        metrics.DELAYED.labels(code).inc(len(deliveries))
        log.warning(
            "requests deferred for redelivery", extra=fields(code=code, count=len(deliveries))
        )
        repeated = [_key(delivery) for delivery in deliveries if delivery.attempt > 1]
        if repeated and not counted:
            with contextlib.suppress(Unavailable):
                await self.ledger.forget_attempts(repeated)
        for delivery in deliveries:
            await delivery.nak(_RETRY_S)

    async def _dead_letter(self, delivery: Delivery, code: str, reason: str) -> None:
        """Keep a message for an operator, record that, answer its request, end the delivery."""
        metrics.DEAD.labels(code).inc()
        log.error(
            "message dead-lettered", extra=fields(code=code, reason=reason, topic=delivery.topic)
        )
        reason_token = code.replace(".", "-").replace("_", "-")
        message = _readable(EnrollmentRequested, delivery)
        try:
            message_id = f"dead-{delivery.place}"
            await publish_dead_letter(
                self.bus, SERVICE, delivery, reason=reason_token, message_id=message_id
            )
            await self.publisher.dead_letter(delivery, code, reason, message)
        except Unavailable as exc:
            await self.nak_all([delivery], exc.code)
            return
        address = message or _readable(ReplyAddress, delivery)
        if address is not None:
            answer = rejected_answer(address.id, _GIVEN_UP)
            await self.publisher.replies.send(address.group, address.instance, answer)
        await delivery.term()


def _key(delivery: Delivery) -> bytes:
    """Return what deliveries of one message have in common, also after its stream was lost."""
    return sha256(delivery.data).digest()


def _readable(model: type[P], delivery: Delivery) -> P | None:
    try:
        return decode(model, delivery.payload())
    except MalformedRequest:
        return None
