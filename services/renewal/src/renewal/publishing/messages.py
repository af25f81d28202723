"""What renewal says on the bus about rotations: events and their audit records.

Every id is derived from the rotation and the step, so that saying it again after a crash is
saying the same thing.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
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
from estcore.messages.audit_batches import batch_id, encode_records, parts
from estcore.messages.envelope import encode
from estcore.messages.events import CertificateRef, RotationEvent, RotationStep
from estcore.messages.topics import PROOF_REFUSALS_TOPIC, audit_issue_topic, rotation_topic
from estcore.runtime.bus import Outgoing
from estcore.runtime.tracing import parse_traceparent, trace_id
from renewal.rotation.slot import Scheduled
from renewal.settings import SERVICE

_RECORDS = audit_issue_topic(SERVICE)
_IN_A_RECORD = 100
_ACTOR = Actor(type="system", subject=SERVICE)
_SEVERITY = {"stalled": "warning", "expired": "error", "lease_expired": "warning"}


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
        records = [
            self._scheduled(items[start : start + _IN_A_RECORD])
            for start in range(0, len(items), _IN_A_RECORD)
        ]
        return list(batches(records, [item.event.traceparent for item in items]))

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

    def _scheduled(self, items: Sequence[Scheduled]) -> AuditRecord:
        events = [item.event for item in items]
        name = record_id("scheduled", *(event.id for event in events))
        return self._build.success(
            "renewal.scheduled",
            record_id=name,
            at=max(event.issued_at for event in events),
            # A certificate's own, if it is alone.
            correlation_id=events[0].correlation_id if len(events) == 1 else name,
            severity="info",
            actor=_ACTOR,
            details={
                "issuances": [event.id for event in events],
                "correlation_ids": [event.correlation_id for event in events],
                "due_at": [item.due_at.isoformat() for item in items],
                "generations": [item.generation for item in items],
            },
        )


def batches(
    records: Sequence[AuditRecord], traceparents: Iterable[str | None], topic: str = _RECORDS
) -> Iterator[Outgoing]:
    """Yield the records in as few messages as fit; the same records make the same message."""
    sampled = tuple({t for t in traceparents if t and _is_sampled(t)})
    encoded = [encode(record) for record in records]
    for part in parts(encoded):
        name = batch_id(r.record_id for r in records[part])
        yield Outgoing(topic, encode_records(encoded[part], sampled), name)


def _is_sampled(traceparent: str) -> bool:
    context = parse_traceparent(traceparent)
    return context is not None and bool(context.trace_flags.sampled)
