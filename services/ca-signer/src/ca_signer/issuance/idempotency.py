"""Idempotency: resolve a request whose enrollment already exists.

One transaction per request, holding the enrollment row lock. This is the slow path; new
enrollments go through ``IssuanceStore.insert``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import asyncpg

from ca_signer.issuance import ledger_checks
from ca_signer.issuance.approvals import ApprovalStore, PendingApproval
from ca_signer.issuance.certificate_source import RetryLater
from ca_signer.issuance.decision_context import Candidate
from ca_signer.ledger.issuance_rows import INTENT_COLUMNS, STALE, intent_of
from ca_signer.ledger.issuances import IssuanceStore, give_back, insert_intents
from ca_signer.model import MANAGED, IssuanceIntent, IssuedCertificate, Refusal
from estcore.errors import Conflict, RequestRejected, rejection
from estcore.messages.envelope import decode
from estcore.runtime.database import Connection

IntentT = TypeVar("IntentT", bound=IssuanceIntent)
_MANAGED = "insert into managed_issuance (issuance_id, sealed_key) values ($1, $2)"


@dataclass(frozen=True)
class Resume(Generic[IntentT]):
    """The intent is leased to this process: take it through steps 6 to 10."""

    intent: IntentT


@dataclass(frozen=True)
class Answer:
    """The certificate is stored: answer with it. ``new`` is true for an unknown request."""

    issued: IssuedCertificate
    new: bool


@dataclass(frozen=True)
class Refuse:
    """Refused before; ``published`` returns whether the refusal was published."""

    error: RequestRejected
    refusal: Refusal
    published: bool


@dataclass(frozen=True)
class InProgress:
    """Another process holds the lease. ``ours`` means for this very request."""

    ours: bool
    enrollment_id: bytes


@dataclass(frozen=True)
class ExpiredIntent(Generic[IntentT]):
    """The intent of an earlier request is too old to be signed; leased to be abandoned."""

    intent: IntentT


@dataclass(frozen=True)
class KeyNotDelivered:
    """A generated key was requested again: the certificate of the earlier key is superseded."""

    issued: IssuedCertificate


Resolution = (
    Resume[IntentT]
    | Answer
    | Refuse
    | InProgress
    | ExpiredIntent[IntentT]
    | KeyNotDelivered
    | PendingApproval
    | RetryLater
)


@dataclass(frozen=True)
class EndedRequest:
    """The enrollment's earlier request ended without a certificate: a new one begins."""


@dataclass(frozen=True)
class StoredMeanwhile:
    """The certificate was stored between two looks; ``redelivered`` for this very request."""

    redelivered: bool


class OpenRequests(Protocol[IntentT]):
    """Where requests are recorded until their certificate is stored.

    The signing cycle keeps them in the issuance table, an upstream CA as submissions.
    """

    async def record(self, connection: Connection, candidate: Candidate) -> IntentT | None:
        """Step 5: record the intent and return it; None where something is in the way."""
        ...

    async def winner(self, connection: Connection, intent: IssuanceIntent) -> str | None:
        """Return the request that recorded the same enrollment first."""
        ...

    async def open(
        self, connection: Connection, candidate: Candidate, issuance_id: str
    ) -> Resolution[IntentT] | EndedRequest | StoredMeanwhile:
        """Resolve an enrollment whose issuance has no row in the issuance table.

        Raises:
            RequestRejected: this request has ended.
        """
        ...

    async def resume(
        self, connection: Connection, row: asyncpg.Record, *, ours: bool
    ) -> Resolution[IntentT]:
        """Resolve an intent of the issuance table; ``ours`` means of this very request."""
        ...

    async def late(self, connection: Connection, row: asyncpg.Record) -> bool:
        """Return whether a certificate outside its window is returned all the same."""
        ...


class RequestResolver(Generic[IntentT]):
    """Resolves one request at a time against the ledger."""

    def __init__(
        self,
        ledger: IssuanceStore,
        requests: OpenRequests[IntentT],
        approvals: ApprovalStore | None = None,
    ) -> None:
        self._ledger = ledger
        self._requests = requests
        self._approvals = approvals or ApprovalStore()

    async def resolve(self, candidate: Candidate) -> Resolution[IntentT]:
        """Return what this request is and what is to be done.

        Raises:
            RequestRejected: the ledger refuses it (spent secret, revoked certificate, key of
                another owner); not yet recorded.
        """

        async def work(connection: Connection) -> Resolution[IntentT]:
            return await self._resolve(connection, candidate)

        return await self._ledger.database.run(work)

    async def _resolve(self, connection: Connection, candidate: Candidate) -> Resolution[IntentT]:
        intent = candidate.intent
        refused = await connection.fetchrow(
            "select kind, code, reason, announcement, announced_at from request "
            "where request_id = $1 and outcome = 'rejected'",
            intent.request_id,
        )
        if refused is not None:
            return _refuse(refused)
        own = await connection.fetchrow(
            f"select {INTENT_COLUMNS}, certificate, issued_at, state "  # noqa: S608
            "from issuance where request_id = $1",
            intent.request_id,
        )
        if own is not None and own["state"] == "issued":
            # This request has its certificate, even if it was revoked or replaced since.
            return Answer(_issued(own), new=False)
        await ledger_checks.check_presented_certificate(connection, intent)
        await ledger_checks.check_secret(connection, intent)
        if own is None:
            await ledger_checks.consume_single_use(connection, candidate)
        locked = await connection.fetchrow(
            "select issuance_id from enrollment where enrollment_id = $1 for update",
            intent.enrollment_id,
        )
        if locked is None:
            return await self._first(connection, candidate)
        current = await self._current(connection, candidate, locked["issuance_id"])
        if current is None:
            return await self._open(connection, candidate, str(locked["issuance_id"]))
        return await self._existing(connection, candidate, current, redelivered=own is not None)

    async def _current(
        self, connection: Connection, candidate: Candidate, issuance_id: object
    ) -> asyncpg.Record | None:
        return await connection.fetchrow(
            f"select {INTENT_COLUMNS}, certificate, issued_at, state, revoked_at, "  # noqa: S608
            f"lease_until < now() as lease_over, {STALE} as stale, "
            "issued_at + $2::interval > now() as in_window "
            "from issuance where issuance_id = $1 for update",
            issuance_id,
            candidate.window,
        )

    async def _existing(
        self,
        connection: Connection,
        candidate: Candidate,
        current: asyncpg.Record,
        *,
        redelivered: bool,
    ) -> Resolution[IntentT]:
        intent = candidate.intent
        state = current["state"]
        ours = str(current["request_id"]) == intent.request_id
        if state == "intended":
            return await self._requests.resume(connection, current, ours=ours)
        if state == "issued" and ours:
            # Stored between our first look and the lock.
            issued = _issued(current)
            return Answer(issued, new=False)
        if redelivered:
            raise Conflict("this request was given up; send a new one", code="request.abandoned")
        live = state == "issued" and current["revoked_at"] is None
        if live and (current["in_window"] or await self._requests.late(connection, current)):
            if candidate.message.operation == "serverkeygen":
                return KeyNotDelivered(_issued(current))
            new = await self._note_repeat(connection, intent, current)
            issued = _issued(current)
            return Answer(issued, new)
        return await self._next_generation(connection, candidate)

    async def _first(self, connection: Connection, candidate: Candidate) -> Resolution[IntentT]:
        intent = candidate.intent
        await ledger_checks.check_quota(connection, candidate)
        await ledger_checks.check_max_active(connection, candidate)
        if candidate.approval:
            waiting = await self._approvals.admit(connection, intent)
            if waiting is not None:
                return waiting
        recorded = await self._requests.record(connection, candidate)
        if recorded is not None:
            return Resume(recorded)
        winner = await self._requests.winner(connection, intent)
        if winner is not None:
            await give_back(connection, intent.issuance_id)
            # Another signer recorded the same enrollment between our look and our insert.
            return InProgress(winner == intent.request_id, intent.enrollment_id)
        raise await ledger_checks.why_not_recorded(connection, intent)

    async def _open(
        self, connection: Connection, candidate: Candidate, issuance_id: str
    ) -> Resolution[IntentT]:
        resolution = await self._requests.open(connection, candidate, issuance_id)
        match resolution:
            case EndedRequest():
                return await self._next_generation(connection, candidate)
            case StoredMeanwhile(redelivered=redelivered):
                current = await self._current(connection, candidate, issuance_id)
                if current is None:
                    raise Conflict("the enrollment points nowhere", code="ledger.inconsistent")
                return await self._existing(connection, candidate, current, redelivered=redelivered)
            case _:
                return resolution

    async def _next_generation(
        self, connection: Connection, candidate: Candidate
    ) -> Resolution[IntentT]:
        intent = candidate.intent
        await connection.execute(
            "delete from claim where enrollment_id = $1 and state = 'reserved'",
            intent.enrollment_id,
        )
        await connection.execute(
            "delete from enrollment where enrollment_id = $1", intent.enrollment_id
        )
        return await self._first(connection, candidate)

    async def _note_repeat(
        self, connection: Connection, intent: IssuanceIntent, current: asyncpg.Record
    ) -> bool:
        done = await connection.fetchval(
            "insert into request (request_id, enrollment_id, outcome, issuance_id, announced_at) "
            "values ($1, $2, 'repeated', $3, now()) on conflict do nothing returning true",
            intent.request_id,
            intent.enrollment_id,
            current["issuance_id"],
        )
        return bool(done)


class IntendedIssuances:
    """Open requests of the signing cycle: rows of the issuance table in state ``intended``."""

    def __init__(self, ledger: IssuanceStore) -> None:
        self._ledger = ledger

    async def record(self, connection: Connection, candidate: Candidate) -> IssuanceIntent | None:
        """Step 5: record the intent and return it; None where something is in the way."""
        intent = candidate.intent
        done = await insert_intents(connection, [intent], self._ledger.lease)
        if done and intent.context.operation == MANAGED:
            await connection.execute(_MANAGED, intent.issuance_id, candidate.sealed_key)
        return intent if done else None

    async def winner(self, connection: Connection, intent: IssuanceIntent) -> str | None:
        """Return the request that recorded the same enrollment first."""
        request_id = await connection.fetchval(
            "select i.request_id from enrollment join issuance i using (issuance_id) "
            "where enrollment.enrollment_id = $1",
            intent.enrollment_id,
        )
        return None if request_id is None else str(request_id)

    async def open(
        self, connection: Connection, candidate: Candidate, issuance_id: str
    ) -> Resolution[IssuanceIntent] | EndedRequest | StoredMeanwhile:
        """Refuse: every enrollment of the signing cycle has its issuance row."""
        del connection, candidate, issuance_id
        raise Conflict("the enrollment points nowhere", code="ledger.inconsistent")

    async def resume(
        self, connection: Connection, row: asyncpg.Record, *, ours: bool
    ) -> Resolution[IssuanceIntent]:
        """Acquire the lease if it has run out; otherwise another signer works on the intent."""
        if not row["lease_over"]:
            return InProgress(ours, row["enrollment_id"])
        leased = intent_of(row)
        leased.fence = await connection.fetchval(
            "update issuance set fence = fence + 1, lease_until = now() + $2::interval "
            "where issuance_id = $1 returning fence",
            row["issuance_id"],
            self._ledger.lease,
        )
        # A generated key died with the request that made it.
        expired = row["stale"] or leased.context.operation == "serverkeygen"
        return ExpiredIntent(leased) if expired else Resume(leased)

    async def late(self, connection: Connection, row: asyncpg.Record) -> bool:
        """Never: outside its window a certificate is issued anew."""
        del connection, row
        return False


def _issued(row: asyncpg.Record) -> IssuedCertificate:
    return IssuedCertificate(intent_of(row), row["certificate"], row["issued_at"])


def _refuse(row: asyncpg.Record) -> Refuse:
    return Refuse(
        error=rejection(row["kind"], row["reason"], row["code"]),
        refusal=decode(Refusal, row["announcement"].encode()),
        published=row["announced_at"] is not None,
    )
