"""Step 10: what the rest of the world is told, made from the ledger's row alone.

Record and event ids are derived from the row, so that announcing again after a crash, a lost
stream or a request of another service repeats the same facts under the same ids.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

from ca_signer.context import EXPIRED, Context, Intent, Issued
from estcore import ids
from estcore.clock import Clock
from estcore.errors import BusUnavailable, RequestRejected
from estcore.messages import topics
from estcore.messages.audit import (
    Actor,
    AuditRecord,
    Origin,
    Phase,
    Producer,
    Target,
)
from estcore.messages.enrollment import EnrollmentAnswered, EnrollmentRequested
from estcore.messages.envelope import Part, encode, encode_mapping, present
from estcore.messages.events import EnrollmentRejected
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.consume import Delivery
from estcore.runtime.logs import fields
from estcore.runtime.tracing import trace_id

log = logging.getLogger(__name__)

SERVICE = "ca-signer"
Record = dict[str, Any]
"""An AuditRecord as a mapping, absent values left out."""
_BATCH = 256
_EXPIRED_RETRY_S = 1


class Refusal(Part):
    """A refused request as the ledger keeps it: enough to announce it again."""

    event: EnrollmentRejected
    record: AuditRecord


class Announcer:
    """Publishes audit records, events and replies of one signer process."""

    def __init__(self, bus: Bus, clock: Clock, instance: str) -> None:
        self._bus = bus
        self._clock = clock
        self.source = f"{SERVICE}/{instance}"
        self._refusal_topic = topics.audit_refusal_topic(SERVICE, instance)
        self.producer = {"service": SERVICE, "instance": instance, "boot_id": ids.uuid7()}

    async def intents(self, intents: Sequence[Intent]) -> None:
        """Step 6: publish the intents and await the PubAck; without it nothing is signed.

        Raises:
            BusUnavailable: not confirmed.
        """
        await self.records([self._intent_record(i) for i in intents])

    async def issued(self, issued: Sequence[Issued]) -> None:
        """Step 10: publish outcome records and events, await every PubAck.

        Raises:
            BusUnavailable: not confirmed; announcing again is harmless.
        """
        await self._bus.publish_confirmed(
            [
                *self._batches([self._outcome_record(i) for i in issued]),
                *(self._issued_event(i) for i in issued),
            ]
        )

    async def outcome_records(self, issued: Sequence[Issued]) -> None:
        """Publish intent and outcome records again, for the audit service."""
        records = [r for i in issued for r in (self._intent_again(i), self._outcome_record(i))]
        await self.records(records)

    async def issued_events(self, issued: Sequence[Issued]) -> None:
        """Publish the events again, for renewal."""
        await self._bus.publish_confirmed([self._issued_event(i, again=True) for i in issued])

    async def records(self, records: Sequence[Record]) -> None:
        """Publish audit records and await their PubAcks.

        Raises:
            BusUnavailable: not confirmed.
        """
        if records:
            await self._bus.publish_confirmed(self._batches(records))

    async def decided(self, records: Sequence[AuditRecord]) -> None:
        """Publish records of what operators did.

        Raises:
            BusUnavailable: not confirmed.
        """
        await self.records([r.model_dump(exclude_none=True) for r in records])

    async def denials(self, records: Sequence[AuditRecord]) -> None:
        """Publish records of refusals that are no enrollments.

        Raises:
            BusUnavailable: not confirmed.
        """
        found = [r.model_dump(exclude_none=True) for r in records]
        if found:
            await self._bus.publish_confirmed(self._batches(found, self._refusal_topic))

    async def refused(self, refusals: Sequence[Refusal]) -> None:
        """Publish event and audit record of refused requests.

        Raises:
            BusUnavailable: not confirmed.
        """
        events = [
            Outgoing(
                topics.certificate_topic("rejected", r.event.tenant, r.event.service),
                encode(r.event),
                f"rejected-{r.event.id}",
            )
            for r in refusals
        ]
        records = [r.record.model_dump(exclude_none=True) for r in refusals]
        # On the stream of refusals: a flood of them cannot fill the one that issuing waits on.
        batches = self._batches(records, self._refusal_topic)
        await self._bus.publish_confirmed([*batches, *events])

    async def given_up(
        self,
        delivery: Delivery,
        code: str,
        reason: str,
        message: EnrollmentRequested | None,
    ) -> None:
        """Publish the audit record of a dead letter; ``message`` is None where unreadable.

        Raises:
            BusUnavailable: not confirmed.
        """
        name = ids.record_id("dead", delivery.topic, str(delivery.sequence))
        principal = message.principal if message else None
        record = present(
            record_id=name,
            schema_version=1,
            producer=self.producer,
            occurred_at=self._clock.now(),
            correlation_id=message.correlation_id if message else name,
            causation_id=message.id if message else None,
            action="request.dead_letter",
            phase="error",
            outcome="failure",
            reason_code=code,
            reason=reason[:500],
            severity="error",
            actor=present(type="service", subject=principal.key if principal else None),
            target=present(request_id=message.id if message else None),
            details={"topic": delivery.topic, "sequence": delivery.sequence},
        )
        await self._bus.publish_confirmed(self._batches([record], self._refusal_topic))

    async def event(self, action: str, details: dict[str, str]) -> None:
        """Record something the service did by itself; without the bus it is in the log alone."""
        name = ids.uuid7()
        record = present(
            record_id=name,
            schema_version=1,
            producer=self.producer,
            occurred_at=self._clock.now(),
            correlation_id=name,
            action=action,
            phase="outcome",
            outcome="failure" if action.endswith("refused") else "success",
            severity="notice",
            actor={"type": "system", "subject": SERVICE},
            details=details,
        )
        try:
            await self._bus.publish_confirmed(self._batches([record], self._refusal_topic))
        except BusUnavailable:
            log.warning("a record was not sent", extra=fields(action=action, **details))

    async def reply(self, group: str, instance: str, answer: EnrollmentAnswered) -> None:
        """Answer the front end that asked. A lost answer is repeated at the client's retry."""
        topic = topics.reply_topic(group, instance, answer.request_id)
        try:
            await self._bus.hint(topic, encode(answer))
        except BusUnavailable:
            return

    async def reply_abandoned(self, intent: Intent, why: RequestRejected) -> None:
        """Answer the request of an intent that is not signed.

        An expired one may be sent again, so its client is told to; any other is refused.
        """
        request_id, context = intent.request_id, intent.context
        if why.code == EXPIRED.code:
            answer = EnrollmentAnswered(
                request_id=request_id, outcome="pending", retry_after_s=_EXPIRED_RETRY_S
            )
        else:
            answer = rejected_answer(request_id, why)
        await self.reply(context.group, context.instance, answer)

    def refusal(self, message: EnrollmentRequested, error: RequestRejected) -> Refusal:
        """Return what is kept and announced of a refused request."""
        now = self._clock.now()
        kind = type(error).__name__
        principal = message.principal
        record = AuditRecord(
            record_id=ids.record_id("rejected", message.id),
            producer=Producer.model_validate(self.producer),
            occurred_at=now,
            correlation_id=message.correlation_id,
            causation_id=message.id,
            trace_id=trace_id(message.traceparent),
            action="certificate.issue",
            phase="denied",
            outcome="failure",
            reason_code=error.code,
            reason=error.reason,
            severity="notice",
            actor=Actor(type="service", subject=principal.key, auth_method=principal.method),
            origin=Origin(peer=message.origin.peer, user_agent=message.origin.user_agent),
            target=Target(
                request_id=message.id,
                label=message.label,
                issuer_id=message.issuer,
                csr_sha256=sha256(message.csr).hexdigest(),
            ),
        )
        event = EnrollmentRejected(
            id=message.id,
            source=self.source,
            time=now,
            correlation_id=message.correlation_id,
            causation_id=message.id,
            tenant="unknown",
            service="unknown",
            kind=kind,
            code=error.code,
            reason=error.reason,
        )
        return Refusal(event=event, record=record)

    def note(
        self, intent: Intent, *, record_id: str, action: str, error: RequestRejected, phase: Phase
    ) -> Record:
        """Return a record about an intent other than its two regular ones."""
        record = self._record(intent, record_id, phase)
        outcome = "failure" if phase == "error" else "success"
        return record | {
            "action": action,
            "reason_code": error.code,
            "reason": error.reason,
            "outcome": outcome,
        }

    def _batches(self, records: Sequence[Record], topic: str | None = None) -> list[Outgoing]:
        topic = topic or topics.audit_issue_topic(SERVICE)
        found = []
        for start in range(0, len(records), _BATCH):
            part = records[start : start + _BATCH]
            traced = [t for r in part if (t := r.pop("traceparent", None))]
            body = encode_mapping({"records": part, "traceparents": traced})
            found.append(Outgoing(topic, body))
        return found

    def _intent_record(self, intent: Intent) -> Record:
        # One record per attempt: a resumed intent shows both.
        record_id = ids.record_id("intent", intent.issuance_id, str(intent.fence))
        record = self._record(intent, record_id, "intent")
        if intent.serial_number:
            record["target"]["tbs_sha256"] = sha256(intent.tbs).hexdigest()
        return record

    def _intent_again(self, issued: Issued) -> Record:
        record = self._intent_record(replace(issued.intent, tbs=issued.tbs))
        return record | {"occurred_at": issued.issued_at}

    def _outcome_record(self, issued: Issued) -> Record:
        intent = issued.intent
        record = self._record(intent, ids.record_id("issued", intent.issuance_id), "outcome")
        record["occurred_at"] = issued.issued_at
        record["target"].update(
            issued_at=issued.issued_at,
            certificate_sha256=issued.fingerprint,
            certificate=base64.b64encode(issued.certificate).decode(),
        )
        # With these a ledger restored from a backup can be completed (ca_signer.reconciling).
        predecessor = intent.predecessor_sha256
        record["details"] = present(
            enrollment_id=intent.enrollment_id.hex(),
            operation=intent.context.operation,
            predecessor_sha256=predecessor.hex() if predecessor else None,
        )
        return record

    def _record(self, intent: Intent, record_id: str, phase: Phase) -> Record:
        context = intent.context
        return present(
            record_id=record_id,
            schema_version=1,
            producer=self.producer,
            occurred_at=self._clock.now(),
            correlation_id=context.correlation_id,
            causation_id=intent.request_id,
            trace_id=trace_id(context.traceparent),
            traceparent=context.traceparent,
            action="certificate.issue",
            phase=phase,
            outcome="unknown" if phase == "intent" else "success",
            severity="info",
            actor=present(
                type="service",
                subject=context.principal,
                auth_method=context.auth_method,
                certificate_serial=context.presented_serial,
                rule=context.rule,
            ),
            origin=context.origin,
            target=_target(intent, context),
        )

    def _issued_event(self, issued: Issued, *, again: bool = False) -> Outgoing:
        intent, context = issued.intent, issued.intent.context
        predecessor = intent.predecessor_sha256
        event = present(
            id=intent.issuance_id,
            source=self.source,
            time=issued.issued_at,
            correlation_id=context.correlation_id,
            causation_id=intent.request_id,
            traceparent=context.traceparent,
            schema_version=1,
            tenant=intent.tenant,
            service=intent.service,
            slot_id=intent.slot_id,
            issuer_id=intent.issuer_id,
            profile=intent.profile,
            priority=context.priority,
            label=context.label,
            subject=intent.subject,
            san=intent.san,
            serial=ids.serial_hex(intent.serial_number),
            not_before=intent.not_before,
            not_after=intent.not_after,
            issued_at=issued.issued_at,
            spki_sha256=intent.spki_sha256.hex(),
            fingerprint_sha256=issued.fingerprint,
            certificate=base64.b64encode(issued.certificate).decode(),
            predecessor_serial=context.predecessor_serial,
            predecessor_fingerprint=predecessor.hex() if predecessor else None,
            same_key=context.same_key,
            mode=context.mode,
            reaction_time_s=context.reaction_time_s,
            overlap_s=context.overlap_s,
            spread=context.spread,
        )
        topic = topics.certificate_topic("issued", intent.tenant, intent.service)
        # JetStream drops a message id it has seen lately; announcing again on request must
        # arrive even then, so it goes without one.
        message_id = None if again else f"issued-{intent.issuance_id}"
        return Outgoing(topic, encode_mapping(event), message_id)


def _target(intent: Intent, context: Context) -> dict[str, Any]:
    return present(
        tenant=intent.tenant,
        service=intent.service,
        slot_id=intent.slot_id,
        request_id=intent.request_id,
        issuance_id=intent.issuance_id,
        label=context.label,
        profile=intent.profile,
        issuer_id=intent.issuer_id,
        policy_version=context.policy_version,
        profile_version=context.profile_version,
        subject=intent.subject,
        san=intent.san,
        csr_sha256=context.csr_sha256,
        spki_sha256=intent.spki_sha256.hex(),
        key_algorithm=context.key_algorithm,
        serial=ids.serial_hex(intent.serial_number) if intent.serial_number else None,
        not_before=intent.not_before,
        not_after=intent.not_after,
        predecessor_serial=context.predecessor_serial,
    )


def issued_answer(request_id: str, certificate: bytes) -> EnrollmentAnswered:
    """Return the answer with the stored certificate."""
    return EnrollmentAnswered(request_id=request_id, outcome="issued", certificate=certificate)


def rejected_answer(request_id: str, error: RequestRejected) -> EnrollmentAnswered:
    """Return the answer to a refused request."""
    return EnrollmentAnswered(
        request_id=request_id,
        outcome="rejected",
        kind=type(error).__name__,
        code=error.code,
        reason=error.reason,
    )
