"""What renewal says on the bus about rotations: events and their audit records.

Every id is derived from the rotation and the step, so that saying it again after a crash is
saying the same thing.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256

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
from estcore.messages.envelope import encode, encode_mapping, without_none
from estcore.messages.events import CertificateRef, RotationEvent, RotationStep
from estcore.messages.topics import PROOF_REFUSALS_TOPIC, audit_issue_topic, rotation_topic
from estcore.runtime.bus import Outgoing
from estcore.runtime.tracing import parse_traceparent, trace_id
from renewal.rotation.slot import Scheduled
from renewal.settings import SERVICE

_RECORDS = audit_issue_topic(SERVICE)
_ACTOR = {"type": "system", "subject": SERVICE}
_SEVERITY = {
    "stalled": "warning",
    "expired": "error",
    "lease_expired": "warning",
    "failed": "error",
}


@dataclass(frozen=True)
class RotationMessage:
    """One event to publish, with what only the audit record says.

    ``recorded`` is False where a step of the same moment has the facts on record.
    """

    event: RotationEvent
    certificate: CertificateRef | None
    issuance_id: str | None = None
    key: str = ""
    details: tuple[tuple[str, JsonValue], ...] = ()
    peer: str | None = None
    recorded: bool = True


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
        """Return the events, in order, and the audit records that go with them.

        Records of one step travel in one record with items, failures in one each.
        """
        out = [
            Outgoing(
                rotation_topic(t.event.step, t.event.tenant, t.event.service),
                encode(t.event),
                t.event.id,
            )
            for t in messages_to_send
        ]
        return [*self._records([t for t in messages_to_send if t.recorded]), *out]

    def scheduled(self, projections: Iterable[Scheduled]) -> list[Outgoing]:
        """Return audit records of projected certificates, many of them in each record."""
        items = list(projections)
        encoded = join_records([self._scheduled(item) for item in items])
        return _in_messages(encoded, [item.event.traceparent for item in items])

    def refusals(self, records: Sequence[AuditRecord]) -> list[Outgoing]:
        """Return records of refused proofs as messages.

        On the stream of refusals: a flood of them cannot fill the one that issuing waits for.
        """
        encoded = [encode(record) for record in records]
        return [
            Outgoing(
                PROOF_REFUSALS_TOPIC,
                encode_records(encoded[part]),
                batch_id(record.record_id for record in records[part]),
            )
            for part in parts(encoded)
        ]

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

    def _records(self, messages: Sequence[RotationMessage]) -> list[Outgoing]:
        by_step: dict[RotationStep, list[Record]] = {}
        for message in messages:
            by_step.setdefault(message.event.step, []).append(self._record(message))
        encoded = [
            record
            for step, records in by_step.items()
            for record in (
                map(encode_mapping, records) if step in _SEVERITY else join_records(records)
            )
        ]
        return _in_messages(encoded, [message.event.traceparent for message in messages])

    def _record(self, message: RotationMessage) -> Record:
        event, about = message.event, message.certificate
        details: dict[str, JsonValue] = {"generation": event.generation, "fence": event.fence}
        details.update(message.details)
        # The record is about the new certificate, or about the old one at its end.
        predecessor = event.old if about == event.new else None
        if event.old and event.new and about == event.old:
            details["successor_serial"] = event.new.serial
        return without_none(
            record_id=record_id("rotation", event.rotation_id, event.step, message.key),
            schema_version=1,
            producer=self._producer,
            occurred_at=event.time,
            correlation_id=event.correlation_id,
            causation_id=event.id,
            trace_id=trace_id(event.traceparent),
            action=f"rotation.{event.step}",
            phase="outcome",
            outcome="failure" if event.step in _SEVERITY else "success",
            severity=_SEVERITY.get(event.step, "info"),
            actor=_ACTOR,
            origin={"peer": message.peer} if message.peer else None,
            target=without_none(
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
            details=details,
        )

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
            actor=_ACTOR,
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


def _in_messages(encoded: Sequence[bytes], traceparents: Iterable[str | None]) -> list[Outgoing]:
    """Return encoded records in as few messages as fit; the same records make the same message."""
    sampled = _sampled(traceparents)
    return [
        Outgoing(
            _RECORDS,
            encode_records(encoded[part], sampled),
            sha256(b"".join(encoded[part])).hexdigest()[:32],
        )
        for part in parts(encoded)
    ]


def _sampled(traceparents: Iterable[str | None]) -> tuple[str, ...]:
    return tuple({t for t in traceparents if t and _is_sampled(t)})


def _is_sampled(traceparent: str) -> bool:
    context = parse_traceparent(traceparent)
    return context is not None and bool(context.trace_flags.sampled)
