"""What renewal says on the bus about rotations: events and their audit records.

Every id is derived from the rotation and the step, so that saying it again after a crash is
saying the same thing.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from pydantic import JsonValue

from estcore.clock import Clock
from estcore.ids import ROTATION_NAMESPACE, record_id, uuid7
from estcore.messages.audit import (
    Actor,
    AuditRecord,
    AuditRecordBuilder,
    Origin,
    Target,
)
from estcore.messages.audit_batches import (
    Record,
    batch_id,
    encode_records,
    join_records,
    parts,
)
from estcore.messages.envelope import encode, without_none
from estcore.messages.events import CertificateRef, RotationEvent, RotationStep
from estcore.messages.topics import PROOF_REFUSALS_TOPIC, audit_issue_topic, rotation_topic
from estcore.runtime.bus import Outgoing
from estcore.runtime.tracing import parse_traceparent, trace_id
from renewal.rotation.slot import Scheduled
from renewal.settings import SERVICE

_RECORDS = audit_issue_topic(SERVICE)
_ACTOR = Actor(type="system", subject=SERVICE)
_SEVERITY = {
    "stalled": "warning",
    "expired": "error",
    "lease_expired": "warning",
    "failed": "error",
}


@dataclass(frozen=True)
class RotationMessage:
    """One event to publish, with what only the audit record says."""

    event: RotationEvent
    certificate: CertificateRef | None
    issuance_id: str | None = None
    key: str = ""
    details: tuple[tuple[str, JsonValue], ...] = ()
    peer: str | None = None


def event_id(rotation: str, step: RotationStep, key: str) -> str:
    """Return the id of a rotation event; ``key`` is the fence or the issuance id."""
    return str(uuid.uuid5(ROTATION_NAMESPACE, f"{rotation}/{step}/{key}"))


class MessageBuilder:
    """Makes messages of this process."""

    def __init__(self, instance: str, clock: Clock, boot_id: str | None = None) -> None:
        self._clock = clock
        self.source = f"{SERVICE}/{instance}"
        self._build = AuditRecordBuilder(SERVICE, instance, boot_id or uuid7())
        self._producer = self._build.producer.model_dump()

    def messages(self, messages_to_send: Sequence[RotationMessage]) -> list[Outgoing]:
        """Return the events, in order, and the audit records that go with them."""
        out = [
            Outgoing(
                rotation_topic(t.event.step, t.event.tenant, t.event.service),
                encode(t.event),
                t.event.id,
            )
            for t in messages_to_send
        ]
        records = [self._record(t) for t in messages_to_send]
        return [*batches(records, [t.event.traceparent for t in messages_to_send]), *out]

    def scheduled(self, projections: Iterable[Scheduled]) -> list[Outgoing]:
        """Return audit records of projected certificates, many of them in each record."""
        items = list(projections)
        encoded = join_records([self._scheduled(item) for item in items])
        sampled = _sampled(item.event.traceparent for item in items)
        # Record ids follow from what is in them, so a repeated message is the same message.
        return [
            Outgoing(
                _RECORDS,
                encode_records(encoded[part], sampled),
                sha256(b"".join(encoded[part])).hexdigest()[:32],
            )
            for part in parts(encoded)
        ]

    def refusals(self, records: Sequence[AuditRecord]) -> list[Outgoing]:
        """Return records of refused proofs as messages.

        On the stream of refusals: a flood of them cannot fill the one that issuing waits for.
        """
        return list(batches(records, [], PROOF_REFUSALS_TOPIC))

    def proof_refused(
        self,
        *,
        request_id: str,
        correlation_id: str,
        code: str,
        reason: str,
        label: str,
        peer: str | None,
    ) -> AuditRecord:
        """Return the record of a proof of use that was not accepted."""
        return self._build.failure(
            "rotation.proof",
            record_id=record_id("proof", request_id),
            at=self._clock.now(),
            correlation_id=correlation_id,
            phase="denied",
            reason_code=code,
            reason=reason,
            severity="notice",
            actor=Actor(type="service"),
            origin=Origin(peer=peer),
            target=Target(request_id=request_id, label=label),
        )

    def _record(self, message: RotationMessage) -> AuditRecord:
        event, about = message.event, message.certificate
        details: dict[str, JsonValue] = {"generation": event.generation, "fence": event.fence}
        details.update(message.details)
        # The record is about the new certificate, or about the old one at its end.
        predecessor = event.old if about == event.new else None
        if event.old and event.new and about == event.old:
            details["successor_serial"] = event.new.serial
        about_event: dict[str, Any] = {
            "record_id": record_id("rotation", event.rotation_id, event.step, message.key),
            "at": event.time,
            "correlation_id": event.correlation_id,
            "causation_id": event.id,
            "trace_id": trace_id(event.traceparent),
            "severity": _SEVERITY.get(event.step, "info"),
            "actor": _ACTOR,
            "origin": Origin(peer=message.peer) if message.peer else None,
            "target": Target(
                tenant=event.tenant,
                service=event.service,
                slot_id=event.slot_id,
                rotation_id=event.rotation_id,
                issuance_id=message.issuance_id,
                label=event.label,
                profile=event.profile,
                issuer_id=event.issuer_id,
                serial=about.serial if about else None,
                certificate_sha256=about.fingerprint_sha256 if about else None,
                not_before=about.not_before if about else None,
                not_after=about.not_after if about else None,
                predecessor_serial=predecessor.serial if predecessor else None,
            ),
            "details": details,
        }
        action = f"rotation.{event.step}"
        if event.step in _SEVERITY:
            return self._build.failure(action, phase="outcome", **about_event)
        return self._build.success(action, **about_event)

    def _scheduled(self, item: Scheduled) -> Record:
        event = item.event
        return without_none(
            record_id=record_id("scheduled", event.id),
            schema_version=1,
            producer=self._producer,
            occurred_at=event.issued_at,
            correlation_id=event.correlation_id,
            causation_id=event.id,
            trace_id=trace_id(event.traceparent),
            action="renewal.scheduled",
            phase="outcome",
            outcome="success",
            severity="info",
            actor={"type": "system", "subject": SERVICE},
            target={
                "tenant": event.tenant,
                "service": event.service,
                "slot_id": event.slot_id,
                "issuance_id": event.id,
                "profile": event.profile,
                "issuer_id": event.issuer_id,
                "serial": event.serial,
            },
            details={"due_at": item.due_at.isoformat(), "generation": item.generation},
        )


def batches(
    records: Sequence[AuditRecord], traceparents: Iterable[str | None], topic: str = _RECORDS
) -> Iterator[Outgoing]:
    """Yield the records in as few messages as fit; the same records make the same message."""
    sampled = _sampled(traceparents)
    encoded = [encode(record) for record in records]
    for part in parts(encoded):
        name = batch_id(r.record_id for r in records[part])
        yield Outgoing(topic, encode_records(encoded[part], sampled), name)


def _sampled(traceparents: Iterable[str | None]) -> tuple[str, ...]:
    return tuple({t for t in traceparents if t and _is_sampled(t)})


def _is_sampled(traceparent: str) -> bool:
    context = parse_traceparent(traceparent)
    return context is not None and bool(context.trace_flags.sampled)
