"""Requests that are not fresh, at an issuer elsewhere: what the row says may be sent, or not.

The rules for what is issued already, refused, or of another owner are those of every issuer
(``ca_signer.issuance.idempotency``); here is what a row on its way adds.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import asyncpg
from typing_extensions import override

from ca_signer.issuance.approvals import ApprovalStore, PendingApproval
from ca_signer.issuance.decision_context import Candidate
from ca_signer.issuance.idempotency import (
    ExpiredIntent,
    InProgress,
    RequestResolver,
    Resolution,
    Resume,
)
from ca_signer.ledger.issuances import IssuanceStore
from ca_signer.model import OPEN_SUBMISSION_STATES
from ca_signer.upstream import submissions
from ca_signer.upstream.submissions import COLUMNS, Submission, submission_of
from estcore.errors import Conflict, NotAuthorized
from estcore.runtime.database import Connection

RESTARTED = "upstream.lease_over"


class SubmissionResolver(RequestResolver):
    """Settles one request at a time against ledger and submissions."""

    def __init__(
        self,
        ledger: IssuanceStore,
        tickets: ApprovalStore,
        *,
        repeatable_s: Callable[[str], float],
        unknown_retry_after_s: int,
    ) -> None:
        super().__init__(ledger, tickets)
        self._repeatable_s = repeatable_s
        self._unknown_retry_after_s = unknown_retry_after_s

    @override
    async def _record(self, connection: Connection, candidate: Candidate) -> bool:
        assert isinstance(candidate.intent, Submission)  # noqa: S101 - made by the desk
        return await submissions.record(connection, candidate.intent, self._ledger.lease)

    @override
    async def _raced(self, connection: Connection, intent: Any) -> Any:
        return await connection.fetchval(
            "select s.request_id from enrollment join submission s using (issuance_id) "
            "where enrollment.enrollment_id = $1",
            intent.enrollment_id,
        )

    @override
    async def _late(self, connection: Connection, current: asyncpg.Record) -> bool:
        """A certificate that came while its client was told to wait is there when it comes."""
        first = await connection.fetchval(
            "update submission set answered_at = now() "
            "where issuance_id = $1 and state = 'issued' and answered_at is null returning true",
            current["issuance_id"],
        )
        return bool(first)

    @override
    async def _without_row(
        self, connection: Connection, candidate: Candidate, issuance_id: str
    ) -> Resolution:
        row = await connection.fetchrow(
            f"select {COLUMNS}, lease_until < now() as lease_over, "  # noqa: S608 - our constants
            "sign_before < now() as stale, code, reason, "
            "extract(epoch from retry_at - now())::float8 as early_s, "
            "submitted_at + $2::interval > now() as repeatable "
            "from submission where issuance_id = $1 for update",
            issuance_id,
            dt.timedelta(seconds=self._repeatable_s(candidate.intent.issuer_id)),
        )
        if row is None:
            return await super()._without_row(connection, candidate, issuance_id)
        ours = str(row["request_id"]) == candidate.intent.request_id
        if row["state"] == "issued":
            # Stored between the first look at the ledger and the lock on this row.
            stored = await self._current(connection, candidate, issuance_id)
            if stored is not None:
                return await self._known(connection, candidate, stored, redelivered=ours)
        if row["state"] == "unknown":
            return PendingApproval(self._unknown_retry_after_s)
        if row["state"] not in OPEN_SUBMISSION_STATES:
            return await self._ended(connection, candidate, row, ours=ours)
        if not row["lease_over"]:
            return InProgress(ours, candidate.intent.enrollment_id)
        return await self._free(connection, row)

    async def _free(self, connection: Connection, row: asyncpg.Record) -> Resolution:
        """Settle what is on its way and nobody holds."""
        if row["state"] == "pending" and row["early_s"] > 0:
            return PendingApproval(int(row["early_s"]) + 1)
        if row["state"] == "submitted" and not row["repeatable"]:
            await self._mark_unknown(connection, row["issuance_id"])
            return PendingApproval(self._unknown_retry_after_s)
        taken = await self._take(connection, row)
        # A generated key died with the request that made it.
        unsent = row["state"] == "recorded"
        over = unsent and (row["stale"] or taken.generated)
        return ExpiredIntent(taken) if over else Resume(taken)

    async def _take(self, connection: Connection, row: asyncpg.Record) -> Submission:
        taken = submission_of(row)
        taken.fence = await connection.fetchval(
            "update submission set fence = fence + 1, lease_until = now() + $2::interval "
            "where issuance_id = $1 returning fence",
            row["issuance_id"],
            self._ledger.lease,
        )
        return taken

    async def _mark_unknown(self, connection: Connection, issuance_id: object) -> None:
        await connection.execute(
            "update submission set state = 'unknown', fence = fence + 1, changed_at = now(), "
            "code = $2, reason = 'whoever sent it did not live to see the answer', "
            "announced_at = null where issuance_id = $1",
            issuance_id,
            RESTARTED,
        )

    async def _ended(
        self, connection: Connection, candidate: Candidate, row: asyncpg.Record, *, ours: bool
    ) -> Resolution:
        if ours and row["state"] == "refused":
            raise NotAuthorized(row["reason"], code=row["code"])
        if ours and row["state"] == "quarantined":
            raise wrong_certificate()
        if ours:
            raise Conflict("this request was given up; send a new one", code="request.abandoned")
        return await self._next_generation(connection, candidate)


def wrong_certificate() -> Conflict:
    """Return what a client is told when another CA sent something else than was asked for."""
    return Conflict(
        "the other CA sent a certificate that is not what was decided; it was set aside",
        code="upstream.wrong_certificate",
    )
