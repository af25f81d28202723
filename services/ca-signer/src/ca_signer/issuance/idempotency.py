"""Requests that are not fresh: repeated, redelivered, resumed, refused by the ledger.

One transaction a request, the enrollment row locked ``FOR UPDATE``; slow on purpose and rare.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from ca_signer.issuance.approvals import ApprovalStore, PendingApproval
from ca_signer.issuance.decision_context import Candidate
from ca_signer.ledger.issuances import (
    INTENT_COLUMNS,
    IssuanceStore,
    give_back,
    insert_intents,
    intent_of,
)
from ca_signer.model import OPEN_SUBMISSIONS, IssuanceIntent, IssuedCertificate, Refusal
from estcore.errors import (
    Conflict,
    IssuerUnavailable,
    NotAuthenticated,
    NotAuthorized,
    RequestRejected,
    WeakKey,
    rejection,
)
from estcore.messages.envelope import decode, encode
from estcore.runtime.database import Connection


@dataclass(frozen=True)
class Resume:
    """The intent is ours now: take it through steps 6 to 10."""

    intent: IssuanceIntent


@dataclass(frozen=True)
class Answer:
    """The certificate is stored: answer with it. ``new`` tells whether this request was unknown."""

    issued: IssuedCertificate
    new: bool


@dataclass(frozen=True)
class Refuse:
    """Refused before; ``announced`` tells whether that was told."""

    error: RequestRejected
    refusal: Refusal
    announced: bool


@dataclass(frozen=True)
class InProgress:
    """Another signer has it under a live lease. ``ours`` means by this very request."""

    ours: bool
    enrollment_id: bytes


@dataclass(frozen=True)
class ExpiredIntent:
    """The intent of an earlier request is too old to be signed; ours now, to be abandoned."""

    intent: IssuanceIntent


@dataclass(frozen=True)
class KeyNotDelivered:
    """A generated key was asked for again: the certificate of the one before is of no use."""

    issued: IssuedCertificate


Resolution = (
    Resume | Answer | Refuse | InProgress | ExpiredIntent | KeyNotDelivered | PendingApproval
)


class RequestResolver:
    """Settles one request at a time against the ledger."""

    def __init__(self, ledger: IssuanceStore, tickets: ApprovalStore | None = None) -> None:
        self._ledger = ledger
        self._tickets = tickets or ApprovalStore()

    async def resolve(self, candidate: Candidate) -> Resolution:
        """Find out what this request is and what is to be done.

        Raises:
            RequestRejected: the ledger refuses it (spent secret, revoked certificate, key of
                another owner); not yet recorded.
        """

        async def work(connection: Connection) -> Resolution:
            return await self._resolve(connection, candidate)

        return await self._ledger.database.run(work)

    async def _resolve(self, connection: Connection, candidate: Candidate) -> Resolution:
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
            # This request has its certificate, whatever happened to anything since.
            return Answer(
                IssuedCertificate(intent_of(own), own["certificate"], own["issued_at"]), new=False
            )
        await self._check_presented(connection, intent)
        await self._check_secret(connection, intent)
        if own is None:
            await self._spend(connection, candidate)
        locked = await connection.fetchrow(
            "select issuance_id from enrollment where enrollment_id = $1 for update",
            intent.enrollment_id,
        )
        if locked is None:
            return await self._first(connection, candidate)
        current = await self._current(connection, candidate, locked["issuance_id"])
        if current is None:
            return await self._without_row(connection, candidate, str(locked["issuance_id"]))
        return await self._known(connection, candidate, current, redelivered=own is not None)

    async def _current(
        self, connection: Connection, candidate: Candidate, issuance_id: object
    ) -> asyncpg.Record | None:
        return await connection.fetchrow(
            f"select {INTENT_COLUMNS}, certificate, issued_at, state, revoked_at, "  # noqa: S608
            "lease_until < now() as lease_over, sign_before < now() as stale, "
            "issued_at + $2::interval > now() as in_window "
            "from issuance where issuance_id = $1 for update",
            issuance_id,
            candidate.window,
        )

    async def _known(
        self,
        connection: Connection,
        candidate: Candidate,
        current: asyncpg.Record,
        *,
        redelivered: bool,
    ) -> Resolution:
        intent = candidate.intent
        state = current["state"]
        ours = str(current["request_id"]) == intent.request_id
        if state == "intended":
            if not current["lease_over"]:
                return InProgress(ours, intent.enrollment_id)
            taken = await self._take_over(connection, current)
            # A generated key died with the request that made it.
            over = current["stale"] or taken.context.operation == "serverkeygen"
            return ExpiredIntent(taken) if over else Resume(taken)
        if state == "issued" and ours:
            # Stored between our first look and the lock.
            issued = IssuedCertificate(
                intent_of(current), current["certificate"], current["issued_at"]
            )
            return Answer(issued, new=False)
        if redelivered:
            raise Conflict("this request was given up; send a new one", code="request.abandoned")
        live = state == "issued" and current["revoked_at"] is None
        if live and (current["in_window"] or await self._late(connection, current)):
            if candidate.message.operation == "serverkeygen":
                return KeyNotDelivered(
                    IssuedCertificate(
                        intent_of(current), current["certificate"], current["issued_at"]
                    )
                )
            new = await self._note_repeat(connection, intent, current)
            issued = IssuedCertificate(
                intent_of(current), current["certificate"], current["issued_at"]
            )
            return Answer(issued, new)
        return await self._next_generation(connection, candidate)

    async def _first(self, connection: Connection, candidate: Candidate) -> Resolution:
        intent = candidate.intent
        await self._check_quota(connection, candidate)
        await self._check_active(connection, candidate)
        if candidate.approval:
            waiting = await self._tickets.admit(connection, intent)
            if waiting is not None:
                return waiting
        if await self._record(connection, candidate):
            return Resume(intent)
        raced = await self._raced(connection, intent)
        if raced is not None:
            await give_back(connection, intent.issuance_id)
            # Another signer recorded the same enrollment between our look and our insert.
            return InProgress(str(raced) == intent.request_id, intent.enrollment_id)
        raise await self._why_not(connection, intent)

    # What issuers elsewhere do another way (``ca_signer.upstream.idempotency``).

    async def _record(self, connection: Connection, candidate: Candidate) -> bool:
        """Step 5; False where something is in the way."""
        return bool(await insert_intents(connection, [candidate.intent], self._ledger.lease))

    async def _raced(self, connection: Connection, intent: IssuanceIntent) -> Any:
        return await connection.fetchval(
            "select i.request_id from enrollment join issuance i using (issuance_id) "
            "where enrollment.enrollment_id = $1",
            intent.enrollment_id,
        )

    async def _without_row(
        self, connection: Connection, candidate: Candidate, issuance_id: str
    ) -> Resolution:
        """Settle an enrollment whose issuance has no row."""
        raise Conflict("the enrollment points nowhere", code="ledger.inconsistent")

    async def _late(self, connection: Connection, current: asyncpg.Record) -> bool:
        """Whether a certificate out of its window is returned all the same."""
        return False

    async def _next_generation(self, connection: Connection, candidate: Candidate) -> Resolution:
        intent = candidate.intent
        await connection.execute(
            "delete from claim where enrollment_id = $1 and state = 'reserved'",
            intent.enrollment_id,
        )
        await connection.execute(
            "delete from enrollment where enrollment_id = $1", intent.enrollment_id
        )
        return await self._first(connection, candidate)

    async def _spend(self, connection: Connection, candidate: Candidate) -> None:
        """Use up what is good for one request only (DPoP proofs, Digest nonces)."""
        for claim in candidate.message.claims:
            spent = await connection.fetchval(
                "insert into claim (kind, id, enrollment_id, state) "
                "values ($1, $2, $3, 'consumed') on conflict (kind, id) do update "
                "set state = 'consumed' where claim.enrollment_id = excluded.enrollment_id "
                "returning true",
                claim.kind,
                claim.id,
                # Good for this request, however often it is delivered, and for no other.
                UUID(candidate.intent.request_id).bytes,
            )
            if not spent:
                raise NotAuthenticated(
                    f"the {claim.kind} proof was used before", code="auth.replayed"
                )

    async def _check_quota(self, connection: Connection, candidate: Candidate) -> None:
        intent, limit = candidate.intent, candidate.max_per_day
        if limit is None:
            return
        # One at a time per owner, so that two signers cannot both see the last place free.
        await connection.execute(
            "select pg_advisory_xact_lock(hashtextextended($1, 0))",
            f"quota/{intent.tenant}/{intent.service}",
        )
        count = await connection.fetchval(
            "select (select count(*) from issuance "  # noqa: S608 - our constant
            "where tenant = $1 and service = $2 "
            "and state <> 'abandoned' and created_at > now() - interval '1 day') "
            "+ (select count(*) from submission where tenant = $1 and service = $2 "
            f"and {OPEN_SUBMISSIONS})",
            intent.tenant,
            intent.service,
        )
        if count >= limit:
            raise NotAuthorized(
                f"{intent.tenant}/{intent.service} had its {limit} certificates of 24 hours",
                code="policy.quota",
            )

    async def _check_active(self, connection: Connection, candidate: Candidate) -> None:
        intent, limit = candidate.intent, candidate.max_active
        if limit is None:
            return
        await connection.execute(
            "select pg_advisory_xact_lock(hashtextextended($1, 0))", f"active/{intent.slot_id}"
        )
        count = await connection.fetchval(
            "select (select count(*) from issuance "  # noqa: S608 - our constant
            "where slot_id = $1 and state <> 'abandoned' "
            "and revoked_at is null and not_after > now()) "
            "+ (select count(*) from submission where slot_id = $1 "
            f"and {OPEN_SUBMISSIONS})",
            intent.slot_id,
        )
        if count >= limit:
            raise NotAuthorized(
                f"this identity has {count} certificates that are good, the most of profile "
                f"{intent.profile}; revoke one or wait",
                code="profile.max_active",
            )

    async def _take_over(self, connection: Connection, current: asyncpg.Record) -> IssuanceIntent:
        fence = await connection.fetchval(
            "update issuance set fence = fence + 1, lease_until = now() + $2::interval "
            "where issuance_id = $1 returning fence",
            current["issuance_id"],
            self._ledger.lease,
        )
        taken = intent_of(current)
        taken.fence = fence
        return taken

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

    async def _check_presented(self, connection: Connection, intent: IssuanceIntent) -> None:
        if intent.presented_sha256 is None:
            return
        revoked = await connection.fetchval(
            "select true from issuance where certificate_sha256 = $1 "
            "and certificate is not null and revoked_at is not null",
            intent.presented_sha256,
        )
        if revoked:
            raise NotAuthenticated(
                "the presented certificate is revoked", code="auth.certificate_revoked"
            )

    async def _check_secret(self, connection: Connection, intent: IssuanceIntent) -> None:
        if intent.secret_id is None:
            return
        live = await connection.fetchval(
            "select true from secret where secret_id = $1 "
            "and revoked_at is null and not_after > now()",
            intent.secret_id,
        )
        if not live:
            raise NotAuthenticated("the secret is not valid any more", code="secret.invalid")

    async def _why_not(
        self, connection: Connection, intent: IssuanceIntent
    ) -> RequestRejected | IssuerUnavailable:
        state = await connection.fetchval(
            "select state from generation where issuer_id = $1", intent.issuer_id
        )
        if state not in {None, "signing"} and intent.context.operation != "ocsp":
            # Decided a moment before or after a switch: decided again, by who signs now.
            return IssuerUnavailable(
                f"issuer {intent.issuer_id} does not sign now", code="issuer.generation"
            )
        owner = await connection.fetchrow(
            "select tenant, service from key_binding where spki_sha256 = $1", intent.spki_sha256
        )
        if owner is not None and (owner["tenant"], owner["service"]) != (
            intent.tenant,
            intent.service,
        ):
            return Conflict("this key belongs to another owner", code="key.bound")
        lost = await connection.fetchval(
            "select true from issuance where spki_sha256 = $1 "
            "and revocation_reason = 'keyCompromise' limit 1",
            intent.spki_sha256,
        )
        if lost:
            return WeakKey("this key is known to be lost; make a new one", code="key.compromised")
        if intent.secret_id is not None:
            return NotAuthorized("the one-time secret is spent", code="secret.spent")
        return Conflict("the request collides with another one", code="request.conflict")

    async def remember_refusal(self, refusal: Refusal, error: RequestRejected) -> bool:
        """Record that a request was refused; False when it was recorded before."""
        async with self._ledger.database.connection() as connection:
            done = await connection.fetchval(
                "insert into request (request_id, outcome, kind, code, reason, announcement) "
                "values ($1, 'rejected', $2, $3, $4, $5) on conflict do nothing returning true",
                refusal.event.id,
                type(error).__name__,
                error.code,
                error.reason,
                encode(refusal).decode(),
            )
        return bool(done)

    async def forget_spent(self) -> None:
        """Drop proofs that are too old to be accepted by anybody (a day; they live minutes).

        And tickets that ended long ago; what became of them is in the log.
        """
        async with self._ledger.database.connection() as connection:
            await connection.execute(
                "delete from approval where expires_at < now() - interval '90 days' "
                "and announced_at is not null"
            )
            await connection.execute(
                "delete from claim where kind in ('dpop', 'digest') "
                "and created_at < now() - interval '1 day'"
            )

    async def refusals_announced(self, request_ids: list[str]) -> None:
        """Record that refusals were told."""
        async with self._ledger.database.connection() as connection:
            await connection.execute(
                "update request set announced_at = now() where request_id = any($1::uuid[])",
                request_ids,
            )

    async def unannounced_refusals(self, *, older_than_s: float, limit: int) -> list[Refusal]:
        """Return refusals nobody has confirmed to have heard of."""
        async with self._ledger.database.connection() as connection:
            rows = await connection.fetch(
                "select announcement from request where announced_at is null "
                "and created_at < now() - $1::interval order by created_at limit $2",
                dt.timedelta(seconds=older_than_s),
                limit,
            )
        return [decode(Refusal, row["announcement"].encode()) for row in rows]


def _refuse(row: asyncpg.Record) -> Refuse:
    return Refuse(
        error=rejection(row["kind"], row["reason"], row["code"]),
        refusal=decode(Refusal, row["announcement"].encode()),
        announced=row["announced_at"] is not None,
    )
