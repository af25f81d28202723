"""Audit records of submissions and revocations at upstream CAs: sources of the outbox."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import asyncpg
from pydantic import JsonValue

from ca_signer.model import RequestFacts
from ca_signer.publishing.audit_records import request_actor, request_target
from ca_signer.publishing.outbox import OutboxSource
from ca_signer.publishing.publisher import EventPublisher
from ca_signer.settings import SERVICE
from estcore import ids
from estcore.messages.audit import Actor, AuditRecord, AuditRecordBuilder, Severity, Target
from estcore.messages.envelope import decode

_LIMIT = 100
_SEVERITIES: dict[str, Severity] = {
    "unknown": "error",
    "quarantined": "critical",
    "abandoned": "notice",
}


def submission_records(publisher: EventPublisher) -> OutboxSource:
    """Return the source of records of submissions that ended unknown, wrong or abandoned."""
    build = publisher.audit_records.build

    async def publish(rows: Sequence[asyncpg.Record]) -> None:
        await publisher.records([_submission(build, row) for row in rows])

    return OutboxSource(
        select="select s.*, q.check_failed, q.certificate as came from submission s "
        "left join lateral (select check_failed, certificate from quarantine q "
        "where q.issuance_id = s.issuance_id order by q.created_at desc limit 1) q on true "
        "where s.announced_at is null and s.state in ('unknown', 'quarantined', 'abandoned') "
        "order by s.changed_at limit $1",
        mark="update submission s set announced_at = now() "
        "from unnest($1::uuid[], $2::text[]) as i(id, state) "
        "where s.issuance_id = i.id and s.state = i.state",
        keys=("issuance_id", "state"),
        publish=publish,
        limit=_LIMIT,
    )


def submission_target(row: asyncpg.Record) -> Target:
    """Return how a record names a submission."""
    context = decode(RequestFacts, row["context"].encode())
    return request_target(
        row, context, slot_id=str(row["slot_id"]), issuance_id=str(row["issuance_id"])
    )


def _submission(build: AuditRecordBuilder, row: asyncpg.Record) -> AuditRecord:
    context = decode(RequestFacts, row["context"].encode())
    details: dict[str, JsonValue] = {
        "submission": str(row["issuance_id"]),
        "sendings": row["sendings"],
    }
    if row["came"] is not None:
        details |= {
            "check": row["check_failed"],
            "certificate_sha256": sha256(row["came"]).hexdigest(),
        }
    state = row["state"]
    return build.failure(
        f"submission.{state}",
        record_id=ids.record_id(state, str(row["issuance_id"]), str(row["fence"])),
        at=row["changed_at"],
        correlation_id=context.correlation_id,
        causation_id=str(row["request_id"]),
        outcome="unknown" if state == "unknown" else "failure",
        reason_code=row["code"],
        reason=row["reason"],
        severity=_SEVERITIES[state],
        actor=request_actor(context),
        origin=context.origin,
        target=submission_target(row),
        details=details,
    )


def revocation_records(publisher: EventPublisher) -> OutboxSource:
    """Return the source of records of what an upstream CA did about a revocation."""
    build = publisher.audit_records.build

    async def publish(rows: Sequence[asyncpg.Record]) -> None:
        await publisher.records([_revocation(build, row) for row in rows])

    return OutboxSource(
        select="select certificate_sha256, issuance_id, issuer_id, state, code, reason, attempts, "
        "ended_at from upstream_revocation where announced_at is null and state <> 'due' "
        "order by ended_at limit $1",
        mark="update upstream_revocation set announced_at = now() "
        "where certificate_sha256 = any($1::bytea[])",
        keys=("certificate_sha256",),
        publish=publish,
        limit=_LIMIT,
    )


def _revocation(build: AuditRecordBuilder, row: asyncpg.Record) -> AuditRecord:
    fingerprint = row["certificate_sha256"].hex()
    about: dict[str, Any] = {
        "record_id": ids.record_id("upstream-revocation", fingerprint),
        "at": row["ended_at"],
        "correlation_id": str(row["issuance_id"]),
        "reason_code": row["code"],
        "actor": Actor(type="system", subject=SERVICE),
        "target": Target(
            issuance_id=str(row["issuance_id"]),
            issuer_id=row["issuer_id"],
            certificate_sha256=fingerprint,
        ),
        "details": {"reason": row["reason"], "attempts": row["attempts"]},
    }
    if row["state"] == "done":
        return build.success("certificate.revoke_upstream", **about)
    return build.failure("certificate.revoke_upstream", **about)
