"""Audit records and events of issuance, built from the ledger's row or the request alone (pure).

Record and event ids are derived from the row, so that publishing again after a crash, a lost
stream or a request of another service repeats the same facts under the same ids.
"""

from __future__ import annotations

import base64
from dataclasses import replace
from hashlib import sha256
from typing import Any

import asyncpg

from ca_signer.model import IssuanceIntent, IssuedCertificate, Refusal, RequestFacts, request_origin
from ca_signer.settings import SERVICE
from estcore import ids
from estcore.clock import Clock
from estcore.errors import RequestRejected
from estcore.messages.audit import Actor, AuditRecordBuilder, Phase, Target
from estcore.messages.audit_batches import Record
from estcore.messages.enrollment import EnrollmentRequested
from estcore.messages.envelope import without_none
from estcore.messages.events import EnrollmentRejected
from estcore.runtime.delivery import Delivery
from estcore.runtime.tracing import trace_id


class AuditRecords:
    """Builds the audit records and events of one signer process."""

    def __init__(self, clock: Clock, instance: str, boot_id: str) -> None:
        self._clock = clock
        self.source = f"{SERVICE}/{instance}"
        self.build = AuditRecordBuilder(SERVICE, instance, boot_id)
        self.producer = self.build.producer.model_dump()

    def intent(self, intent: IssuanceIntent) -> Record:
        """Return the record of step 6; one per attempt, so a resumed intent shows both."""
        record_id = ids.record_id("intent", intent.issuance_id, str(intent.fence))
        record = self._record(intent, record_id, "intent")
        if intent.serial_number:
            record["target"]["tbs_sha256"] = sha256(intent.tbs).hexdigest()
        return record

    def intent_of_issued(self, issued: IssuedCertificate) -> Record:
        """Return the record of step 6 again, from a stored certificate."""
        record = self.intent(replace(issued.intent, tbs=issued.tbs))
        return record | {"occurred_at": issued.issued_at}

    def outcome(self, issued: IssuedCertificate) -> Record:
        """Return the record of step 10."""
        intent = issued.intent
        record = self._record(intent, ids.record_id("issued", intent.issuance_id), "outcome")
        record["occurred_at"] = issued.issued_at
        record["target"].update(
            issued_at=issued.issued_at,
            certificate_sha256=issued.fingerprint,
            certificate=base64.b64encode(issued.certificate).decode(),
        )
        # ca_signer.recovery.audit_log completes a restored ledger with these.
        predecessor = intent.predecessor_sha256
        record["details"] = without_none(
            enrollment_id=intent.enrollment_id.hex(),
            operation=intent.context.operation,
            predecessor_sha256=predecessor.hex() if predecessor else None,
            linked=intent.context.linked,
            frontend=f"{intent.context.group}/{intent.context.instance}",
        )
        return record

    def about_intent(
        self,
        intent: IssuanceIntent,
        *,
        record_id: str,
        action: str,
        error: RequestRejected,
        phase: Phase,
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

    def refusal(self, message: EnrollmentRequested, error: RequestRejected) -> Refusal:
        """Return the event and the record of a refused request."""
        now = self._clock.now()
        kind = type(error).__name__
        principal = message.principal
        record = self.build.failure(
            "certificate.issue",
            record_id=ids.record_id("rejected", message.id),
            at=now,
            correlation_id=message.correlation_id,
            causation_id=message.id,
            trace_id=trace_id(message.traceparent),
            phase="denied",
            reason_code=error.code,
            reason=error.reason,
            severity="notice",
            actor=Actor(type="service", subject=principal.key, auth_method=principal.method),
            origin=request_origin(message.origin),
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

    def dead_letter(
        self, delivery: Delivery, code: str, reason: str, message: EnrollmentRequested | None
    ) -> Record:
        """Return the record of a dead letter; ``message`` is None where it is unreadable."""
        name = ids.record_id("dead", delivery.topic, delivery.place)
        principal = message.principal if message else None
        return without_none(
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
            actor=without_none(type="service", subject=principal.key if principal else None),
            target=without_none(request_id=message.id if message else None),
            details={"topic": delivery.topic, "sequence": delivery.sequence},
        )

    def issued_event(self, issued: IssuedCertificate) -> dict[str, Any]:
        """Return the event of step 10, a ``CertificateIssued``."""
        intent, context = issued.intent, issued.intent.context
        predecessor = intent.predecessor_sha256
        return without_none(
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
            expiry=context.expiry,
            reaction_time_s=context.reaction_time_s,
            overlap_s=context.overlap_s,
            spread=context.spread,
        )

    def _record(self, intent: IssuanceIntent, record_id: str, phase: Phase) -> Record:
        context = intent.context
        return without_none(
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
            actor=without_none(
                type="service",
                subject=context.principal,
                auth_method=context.auth_method,
                certificate_serial=context.presented_serial,
                rule=context.rule,
            ),
            origin=context.origin,
            target=_target(intent, context),
        )


def _target(intent: IssuanceIntent, context: RequestFacts) -> dict[str, Any]:
    return without_none(
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


def request_actor(context: RequestFacts) -> Actor:
    """Return the client of a recorded request."""
    return Actor(
        type="service",
        subject=context.principal,
        auth_method=context.auth_method,
        certificate_serial=context.presented_serial,
        rule=context.rule,
    )


def certificate_target(row: asyncpg.Record) -> Target:
    """Return how a record names an issued certificate, from its row."""
    return Target(
        tenant=row["tenant"],
        service=row["service"],
        issuance_id=str(row["issuance_id"]),
        issuer_id=row["issuer_id"],
        profile=row["profile"],
        subject=row["subject"],
        serial=ids.serial_hex(int.from_bytes(row["serial_number"], "big")),
        certificate_sha256=row["certificate_sha256"].hex(),
        not_after=row["not_after"],
    )


def request_target(row: asyncpg.Record, context: RequestFacts, **more: str | None) -> Target:
    """Return how a record names a request that has no certificate, from its row."""
    spki = row["spki_sha256"]
    return Target(
        tenant=row["tenant"],
        service=row["service"],
        request_id=str(row["request_id"]),
        label=context.label,
        profile=row["profile"],
        issuer_id=row["issuer_id"],
        subject=row["subject"],
        san=tuple(filter(None, row["san"].split("\n"))),
        csr_sha256=context.csr_sha256,
        spki_sha256=spki.hex() if spki else None,
        key_algorithm=context.key_algorithm,
        **more,
    )
