"""Audit records and how they travel: many in one message.

A record says who did what to which identity with which outcome. Never in a record: private
keys, secrets, tokens, passwords, challengePassword values.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from estcore.messages.envelope import CorrelationId, Part, Token

Phase = Literal["intent", "outcome", "denied", "error"]
Severity = Literal["info", "notice", "warning", "error", "critical"]
MAX_REASON = 500
Id = Annotated[str, Field(max_length=128)]
"""An id as the log indexes it; a longer one fits into no index."""


class Producer(Part):
    """Who wrote the record."""

    service: Token
    instance: Token
    boot_id: Id = Field(description="new at every start")


class Actor(Part):
    """On whose behalf."""

    type: Literal["service", "human", "system"]
    subject: str | None = None
    auth_method: str | None = None
    certificate_serial: str | None = None
    certificate_fingerprint: str | None = None
    rule: str | None = Field(default=None, description="policy rule that matched")


class Target(Part):
    """What it was about. Only what is known is given."""

    tenant: str | None = None
    service: str | None = None
    slot_id: Id | None = None
    request_id: Id | None = None
    issuance_id: Id | None = None
    rotation_id: Id | None = None
    label: str | None = None
    profile: str | None = None
    issuer_id: str | None = None
    policy_version: str | None = None
    profile_version: str | None = None
    subject: str | None = None
    san: tuple[str, ...] | None = None
    csr_sha256: str | None = None
    spki_sha256: str | None = None
    key_algorithm: str | None = None
    serial: str | None = None
    not_before: dt.datetime | None = None
    not_after: dt.datetime | None = None
    certificate_sha256: str | None = None
    certificate: str | None = Field(
        default=None, description="DER, base64: outcome records can restore a ledger"
    )
    tbs_sha256: str | None = None
    issued_at: dt.datetime | None = Field(
        default=None, description="ledger commit time; the audit service compares windows by it"
    )
    predecessor_serial: str | None = None


class Origin(Part):
    """Network facts of the request."""

    peer: str | None = None
    tls_version: str | None = None
    tls_cipher: str | None = None
    user_agent: str | None = None
    client_correlation_id: str | None = None


class RecordItem(Part):
    """One of several facts of a kind that a record says at once; the record has the rest."""

    correlation_id: CorrelationId
    causation_id: Id | None = None
    trace_id: Id | None = None
    actor: Actor | None = None
    origin: Origin | None = None
    target: Target = Target()
    details: dict[str, JsonValue] | None = None


class AuditRecord(Part):
    """One audited fact, or several of a kind (``items``) that came about together.

    ``producer_seq`` is gapless per producer and boot for records without a ledger row behind
    them; records derived from a row leave it out and are checked by windows instead.
    """

    record_id: Id
    schema_version: int = 1
    producer: Producer
    producer_seq: int | None = None
    occurred_at: dt.datetime
    correlation_id: CorrelationId
    causation_id: Id | None = None
    trace_id: Id | None = None
    action: str = Field(pattern=r"^[a-z][a-z0-9_.-]{0,79}$")
    phase: Phase
    outcome: Literal["success", "failure", "unknown"]
    reason_code: str | None = None
    reason: str | None = None
    severity: Severity = "info"
    actor: Actor
    origin: Origin | None = None
    target: Target = Target()
    details: dict[str, JsonValue] | None = Field(
        default=None, description="flat extras: strings, booleans and integers only"
    )
    items: tuple[RecordItem, ...] | None = Field(
        default=None, description="facts of this kind, where there is more than one"
    )


class AuditRecordBuilder:
    """Builds the records of one process: fills in who wrote them, and what failed."""

    def __init__(self, service: str, instance: str, boot_id: str) -> None:
        self.producer = Producer(service=service, instance=instance, boot_id=boot_id)

    def success(
        self,
        action: str,
        *,
        record_id: str,
        at: dt.datetime,
        correlation_id: str,
        actor: Actor,
        severity: Severity = "notice",
        **more: Any,
    ) -> AuditRecord:
        """Return the record of something that was done; ``more`` are fields of AuditRecord."""
        return AuditRecord(
            record_id=record_id,
            producer=self.producer,
            occurred_at=at,
            correlation_id=correlation_id,
            action=action,
            phase="outcome",
            outcome="success",
            severity=severity,
            actor=actor,
            **more,
        )

    def failure(  # noqa: PLR0913 - the fields of a record
        self,
        action: str,
        *,
        record_id: str,
        at: dt.datetime,
        correlation_id: str,
        actor: Actor,
        phase: Phase = "error",
        reason_code: str | None = None,
        reason: str | None = None,
        severity: Severity = "error",
        **more: Any,
    ) -> AuditRecord:
        """Return the record of something refused (``denied``) or failed (``error``)."""
        return AuditRecord(
            record_id=record_id,
            producer=self.producer,
            occurred_at=at,
            correlation_id=correlation_id,
            action=action,
            phase=phase,
            outcome=more.pop("outcome", "failure"),
            reason_code=reason_code,
            reason=None if reason is None else reason[:MAX_REASON],
            severity=severity,
            actor=actor,
            **more,
        )


_REPORTS = {
    "est-frontend": ("est.", "service.", "config.", "audit.record_replaced"),
    "renewal": ("renewal.", "rotation.", "service.", "config."),
    "audit": ("audit.", "service.", "config."),
    "check-store": ("certificates.checked",),
}
_RESERVED = ("est.", "renewal.", "rotation.", "audit.")
"""ca-signer reports everything but what only these others do."""


def may_report(service: str, action: str) -> bool:
    """Return whether a sending service may report an action: only what it does itself."""
    if service in {"ca-signer", "ca-signer-upstream"}:
        return not action.startswith(_RESERVED)
    return action.startswith(_REPORTS.get(service, ()))


def producer_of(service: str) -> str:
    """Return the producer in the records of a sending service.

    ca-signer-upstream is ca-signer for other issuers, check-store is a verb of it: both report
    in its name.
    """
    return "ca-signer" if service in {"ca-signer-upstream", "check-store"} else service


class AuditBatch(Part):
    """What one message on ``audit.issue.>`` or ``audit.refusal.>`` holds, in order.

    ``traceparents`` are the sampled traces among the records; the audit service links to them.
    """

    records: tuple[AuditRecord, ...] = Field(min_length=1, max_length=512)
    traceparents: tuple[str, ...] = ()
