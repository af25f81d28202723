"""Idempotency at an upstream CA: what the submission's row allows to be sent.

The rules for an enrollment that is issued, refused or of another owner are those of every issuer
(``ca_signer.issuance.idempotency``). A submission is never sent twice, unless the upstream CA
answers the same request with the same certificate.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import asyncpg

from ca_signer.issuance.certificate_source import RetryLater
from ca_signer.issuance.decision_context import Candidate
from ca_signer.issuance.idempotency import (
    EndedRequest,
    ExpiredIntent,
    InProgress,
    Resolution,
    Resume,
    StoredMeanwhile,
)
from ca_signer.model import OPEN_SUBMISSION_STATES, IssuanceIntent
from ca_signer.upstream import submissions
from ca_signer.upstream.submissions import COLUMNS, Submission, new_submission, submission_of
from estcore.clock import Clock
from estcore.errors import Conflict, NotAuthorized
from estcore.runtime.database import Connection

RESTARTED = "upstream.lease_expired"
RESTARTED_REASON = "the submitting process stopped before it received a response"


class OpenSubmissions:
    """Open requests of upstream issuers: rows of the submission table."""

    def __init__(
        self,
        clock: Clock,
        *,
        lease: dt.timedelta,
        repeatable_s: Callable[[str], float],
        unknown_retry_after_s: int,
    ) -> None:
        self._clock = clock
        self._lease = lease
        self._repeatable_s = repeatable_s
        self._unknown_retry_after_s = unknown_retry_after_s

    async def record(self, connection: Connection, candidate: Candidate) -> Submission | None:
        """Step 5: record the submission and return it; None where something is in the way."""
        submission = new_submission(candidate.intent, candidate.message.csr, self._clock.now())
        done = await submissions.record(connection, submission, self._lease)
        return submission if done else None

    async def winner(self, connection: Connection, intent: IssuanceIntent) -> str | None:
        """Return the request that recorded the same enrollment first."""
        request_id = await connection.fetchval(
            "select s.request_id from enrollment join submission s using (issuance_id) "
            "where enrollment.enrollment_id = $1",
            intent.enrollment_id,
        )
        return None if request_id is None else str(request_id)

    async def late(self, connection: Connection, row: asyncpg.Record) -> bool:
        """Return whether the certificate arrived while its client was waiting: returned once."""
        first = await connection.fetchval(
            "update submission set answered_at = now() "
            "where issuance_id = $1 and state = 'issued' and answered_at is null returning true",
            row["issuance_id"],
        )
        return bool(first)

    async def open(
        self, connection: Connection, candidate: Candidate, issuance_id: str
    ) -> Resolution[Submission] | EndedRequest | StoredMeanwhile:
        """Resolve an enrollment by its submission's state."""
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
            raise Conflict("the enrollment points nowhere", code="ledger.inconsistent")
        ours = str(row["request_id"]) == candidate.intent.request_id
        if row["state"] == "issued":
            # Stored between the first look at the ledger and the lock on this row.
            return StoredMeanwhile(redelivered=ours)
        if row["state"] == "unknown":
            return RetryLater(self._unknown_retry_after_s)
        if row["state"] not in OPEN_SUBMISSION_STATES:
            return _ended(row, ours=ours)
        if not row["lease_over"]:
            return InProgress(ours, candidate.intent.enrollment_id)
        return await self._unleased(connection, row)

    async def _unleased(
        self, connection: Connection, row: asyncpg.Record
    ) -> Resolution[Submission]:
        if row["state"] == "pending" and row["early_s"] > 0:
            return RetryLater(int(row["early_s"]) + 1)
        if row["state"] == "submitted" and not row["repeatable"]:
            await self._mark_unknown(connection, row["issuance_id"])
            return RetryLater(self._unknown_retry_after_s)
        leased = await self._lease_row(connection, row)
        # A generated key died with the request that made it.
        unsent = row["state"] == "recorded"
        expired = unsent and (row["stale"] or leased.generated)
        return ExpiredIntent(leased) if expired else Resume(leased)

    async def resume(
        self, connection: Connection, row: asyncpg.Record, *, ours: bool
    ) -> Resolution[Submission]:
        """Wait: only ca-signer takes up intents of the issuance table."""
        del connection
        return InProgress(ours, row["enrollment_id"])

    async def _lease_row(self, connection: Connection, row: asyncpg.Record) -> Submission:
        leased = submission_of(row)
        leased.fence = await connection.fetchval(
            "update submission set fence = fence + 1, lease_until = now() + $2::interval "
            "where issuance_id = $1 returning fence",
            row["issuance_id"],
            self._lease,
        )
        return leased

    async def _mark_unknown(self, connection: Connection, issuance_id: object) -> None:
        await connection.execute(
            "update submission set state = 'unknown', fence = fence + 1, changed_at = now(), "
            "code = $2, reason = $3, announced_at = null where issuance_id = $1",
            issuance_id,
            RESTARTED,
            RESTARTED_REASON,
        )


def _ended(row: asyncpg.Record, *, ours: bool) -> EndedRequest:
    """Begin anew for another request.

    Raises:
        RequestRejected: this request has ended, with the reason in its row.
    """
    if not ours:
        return EndedRequest()
    if row["state"] == "refused":
        raise NotAuthorized(row["reason"], code=row["code"])
    if row["state"] == "quarantined":
        raise wrong_certificate()
    raise Conflict("this request was given up; send a new one", code="request.abandoned")


def wrong_certificate() -> Conflict:
    """Return the refusal for a client whose upstream certificate was quarantined."""
    return Conflict(
        "the upstream CA sent another certificate than expected; it was quarantined",
        code="upstream.wrong_certificate",
    )
