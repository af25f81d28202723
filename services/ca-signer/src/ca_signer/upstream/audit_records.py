"""Audit records of what only a person can settle, made from the rows: parts of the outbox."""

from __future__ import annotations

from hashlib import sha256

import asyncpg
from pydantic import JsonValue

from ca_signer.model import RequestFacts
from ca_signer.publishing.outbox import Part
from ca_signer.publishing.publisher import EventPublisher
from ca_signer.settings import SERVICE
from estcore import ids
from estcore.messages.audit import Actor, AuditRecord, Producer, Severity, Target
from estcore.messages.envelope import decode
from estcore.runtime.database import Database

_LIMIT = 100
_SEVERITIES: dict[str, Severity] = {
    "unknown": "error",
    "quarantined": "critical",
    "abandoned": "notice",
}


def submission_records(database: Database, publisher: EventPublisher) -> Part:
    """Return the part that tells of submissions whose end is unknown, wrong or none."""

    async def part() -> bool:
        async with database.connection() as connection:
            rows = await connection.fetch(
                "select s.*, q.check_failed, q.certificate as came from submission s "
                "left join lateral (select * from quarantine q "
                "where q.issuance_id = s.issuance_id order by q.created_at desc limit 1) q on true "
                "where s.announced_at is null "
                "and s.state in ('unknown', 'quarantined', 'abandoned') "
                "order by s.changed_at limit $1",
                _LIMIT,
            )
        if not rows:
            return False
        await publisher.records([_submission(publisher, row) for row in rows])
        async with database.connection() as connection:
            await connection.execute(
                "update submission s set announced_at = now() "
                "from unnest($1::uuid[], $2::text[]) as i(id, state) "
                "where s.issuance_id = i.id and s.state = i.state",
                [row["issuance_id"] for row in rows],
                [row["state"] for row in rows],
            )
        return len(rows) == _LIMIT

    return part


def submission_target(row: asyncpg.Record) -> Target:
    """Return how a record names a submission."""
    context = decode(RequestFacts, row["context"].encode())
    return Target(
        tenant=row["tenant"],
        service=row["service"],
        slot_id=str(row["slot_id"]),
        request_id=str(row["request_id"]),
        issuance_id=str(row["issuance_id"]),
        label=context.label,
        profile=row["profile"],
        issuer_id=row["issuer_id"],
        subject=row["subject"],
        san=tuple(filter(None, row["san"].split("\n"))),
        csr_sha256=row["csr_sha256"].hex(),
        spki_sha256=row["spki_sha256"].hex(),
    )


def _submission(publisher: EventPublisher, row: asyncpg.Record) -> AuditRecord:
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
    return AuditRecord(
        record_id=ids.record_id(state, str(row["issuance_id"]), str(row["fence"])),
        producer=Producer.model_validate(publisher.audit_records.producer),
        occurred_at=row["changed_at"],
        correlation_id=context.correlation_id,
        causation_id=str(row["request_id"]),
        action=f"submission.{state}",
        phase="error",
        outcome="unknown" if state == "unknown" else "failure",
        reason_code=row["code"],
        reason=row["reason"],
        severity=_SEVERITIES[state],
        actor=Actor(
            type="service",
            subject=context.principal,
            auth_method=context.auth_method,
            certificate_serial=context.presented_serial,
            rule=context.rule,
        ),
        origin=context.origin,
        target=submission_target(row),
        details=details,
    )


def revocation_records(database: Database, publisher: EventPublisher) -> Part:
    """Return the part that tells what another CA did about a revocation."""

    async def part() -> bool:
        async with database.connection() as connection:
            rows = await connection.fetch(
                "select * from upstream_revocation where announced_at is null and state <> 'due' "
                "order by ended_at limit $1",
                _LIMIT,
            )
        if not rows:
            return False
        await publisher.records([_revocation(publisher, row) for row in rows])
        async with database.connection() as connection:
            await connection.execute(
                "update upstream_revocation set announced_at = now() "
                "where certificate_sha256 = any($1::bytea[])",
                [row["certificate_sha256"] for row in rows],
            )
        return len(rows) == _LIMIT

    return part


def _revocation(publisher: EventPublisher, row: asyncpg.Record) -> AuditRecord:
    done = row["state"] == "done"
    fingerprint = row["certificate_sha256"].hex()
    return AuditRecord(
        record_id=ids.record_id("upstream-revocation", fingerprint),
        producer=Producer.model_validate(publisher.audit_records.producer),
        occurred_at=row["ended_at"],
        correlation_id=str(row["issuance_id"]),
        action="certificate.revoke_upstream",
        phase="outcome" if done else "error",
        outcome="success" if done else "failure",
        reason_code=row["code"],
        severity="notice" if done else "error",
        actor=Actor(type="system", subject=SERVICE),
        target=Target(
            issuance_id=str(row["issuance_id"]),
            issuer_id=row["issuer_id"],
            certificate_sha256=fingerprint,
        ),
        details={"reason": row["reason"], "attempts": row["attempts"]},
    )
