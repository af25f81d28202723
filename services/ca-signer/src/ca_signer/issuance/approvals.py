"""Requests that await approval by an operator.

    waiting ──approve──► approved ──intent recorded──► used
       │                    ▲                            │ the intent is abandoned, or its
       └──reject──► rejected└────────────────────────────┘ generated key was lost

One row per enrollment, so a repeated request finds it under any request id, TLS session or front
end. A request of another client is another enrollment. An expired row makes room for a new request.
Using an approval and recording the intent is one transaction.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from ca_signer.model import IssuanceIntent, RequestFacts
from ca_signer.publishing.audit_records import request_actor, request_target
from ca_signer.publishing.outbox import OutboxSource
from ca_signer.publishing.publisher import EventPublisher
from ca_signer.settings import RequestHandlingSettings
from estcore import ids
from estcore.errors import Conflict, NotAuthorized
from estcore.messages.audit import AuditRecord, AuditRecordBuilder
from estcore.messages.envelope import decode, encode
from estcore.runtime.database import Connection

_LONGEST_WAIT_S = 3600
_SHARE_OF_AGE = 8
_LIMIT = 200

_ASK = """insert into approval (enrollment_id, approval_id, state, request_id, issuer_id, tenant,
  service, profile, subject, san, spki_sha256, context, expires_at)
values ($1, $2, 'waiting', $3, $4, $5, $6, $7, $8, $9, $10, $11, now() + $12::interval)
on conflict (enrollment_id) do update set approval_id = excluded.approval_id, state = 'waiting',
  request_id = excluded.request_id, profile = excluded.profile, context = excluded.context,
  requested_at = now(), expires_at = excluded.expires_at, decided_at = null, decided_by = null,
  reason = null, issuance_id = null, announced_at = null
where approval.state = 'used' or approval.expires_at <= now()"""


@dataclass(frozen=True)
class PendingApproval:
    """No operator has decided yet: the client asks again after so many seconds."""

    retry_after_s: int


@dataclass(frozen=True)
class ApprovalStore:
    """Requests that await approval, within limits of lifetime and number per owner."""

    lifetime: dt.timedelta = dt.timedelta(days=7)
    retry_after_s: int = 10
    max_waiting: int = 100

    @classmethod
    def of(cls, settings: RequestHandlingSettings) -> ApprovalStore:
        """Return the store with the configured limits."""
        return cls(
            lifetime=dt.timedelta(seconds=settings.approval_lifetime_s),
            retry_after_s=settings.approval_retry_after_s,
            max_waiting=settings.approval_max_waiting,
        )

    async def admit(self, connection: Connection, intent: IssuanceIntent) -> PendingApproval | None:
        """Return None where the enrollment may be recorded now, its approval used up.

        Raises:
            NotAuthorized: an operator rejected it.
            Conflict: the owner has too many requests waiting.
        """
        row = await connection.fetchrow(
            "select state, reason, expires_at > now() as live, "
            "extract(epoch from now() - requested_at)::float8 as age_s "
            "from approval where enrollment_id = $1 for update",
            intent.enrollment_id,
        )
        if row is not None and row["state"] == "used" and await _recorded(connection, intent):
            return None  # another signer was faster; recording finds its row
        if row is None or row["state"] == "used" or not row["live"]:
            return await self._ask(connection, intent)
        if row["state"] == "rejected":
            why = f": {row['reason']}" if row["reason"] else ""
            raise NotAuthorized(f"an operator rejected it{why}", code="approval.rejected")
        if row["state"] == "waiting":
            return PendingApproval(self._pause(row["age_s"]))
        await connection.execute(
            "update approval set state = 'used', issuance_id = $2 where enrollment_id = $1",
            intent.enrollment_id,
            intent.issuance_id,
        )
        return None

    async def _ask(self, connection: Connection, intent: IssuanceIntent) -> PendingApproval:
        context = intent.context
        waiting = await connection.fetchval(
            "select count(*) from approval where tenant = $1 and service = $2 "
            "and state = 'waiting' and expires_at > now()",
            intent.tenant,
            intent.service,
        )
        if waiting >= self.max_waiting:
            raise Conflict(
                f"{intent.tenant}/{intent.service} has {waiting} requests waiting already",
                code="approval.too_many",
            )
        generated = context.operation == "serverkeygen"
        approval_id = ids.uuid7()
        # Changes nothing where another signer recorded the same request a moment ago.
        await connection.execute(
            _ASK,
            intent.enrollment_id,
            approval_id,
            intent.request_id,
            intent.issuer_id,
            intent.tenant,
            intent.service,
            intent.profile,
            intent.subject,
            "\n".join(intent.san),
            None if generated else intent.spki_sha256,
            encode(context).decode(),
            self.lifetime,
        )
        return PendingApproval(self.retry_after_s)

    def _pause(self, age_s: float) -> int:
        """Longer the longer it waits already, an hour at most: people are slow."""
        return min(_LONGEST_WAIT_S, max(self.retry_after_s, int(age_s) // _SHARE_OF_AGE))


async def _recorded(connection: Connection, intent: IssuanceIntent) -> bool:
    recorded = await connection.fetchval(
        "select true from enrollment where enrollment_id = $1", intent.enrollment_id
    )
    return bool(recorded)


def approval_records(publisher: EventPublisher) -> OutboxSource:
    """Return the source of the audit records of requests that await approval."""
    build = publisher.audit_records.build

    async def publish(rows: Sequence[asyncpg.Record]) -> None:
        await publisher.records([_record(build, row) for row in rows])

    return OutboxSource(
        select="select approval_id, request_id, requested_at, issuer_id, tenant, service, profile, "
        "subject, san, spki_sha256, context from approval where announced_at is null "
        "order by requested_at limit $1",
        mark="update approval set announced_at = now() where approval_id = any($1::uuid[])",
        keys=("approval_id",),
        publish=publish,
    )


def _record(build: AuditRecordBuilder, row: asyncpg.Record) -> AuditRecord:
    context = decode(RequestFacts, row["context"].encode())
    approval_id = str(row["approval_id"])
    return build.success(
        "approval.waiting",
        record_id=ids.record_id("approval", approval_id),
        at=row["requested_at"],
        correlation_id=context.correlation_id,
        causation_id=str(row["request_id"]),
        actor=request_actor(context),
        origin=context.origin,
        target=request_target(row, context),
        details={"approval_id": approval_id},
    )
