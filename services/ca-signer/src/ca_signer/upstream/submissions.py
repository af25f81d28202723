"""Submissions to upstream CAs: states, and every statement of the cycle.

    recorded ──► submitted ──► issued (a row of ``issuance`` as well)
      ▲ │           │ ├──────► refused
      │ │           │ ├──────► quarantined
      │ │           │ └──────► pending ──► submitted …
      │ └► abandoned└──────► unknown ──┬─► issued (adopted by an operator, or a late response)
      └────────── retried by an operator ┴─► abandoned by one

``submitted`` is committed before anything is sent. Only the holder of the lease, with the current
fence, changes the state from there. When the lease has run out the outcome is unknown.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from hashlib import sha256

import asyncpg
from cryptography import x509

from ca_signer.ledger.issuance_rows import intent_of, intent_row, serial_octets
from ca_signer.ledger.issuances import CHECKED, give_back
from ca_signer.model import OPEN_SUBMISSION_STATES, IssuanceIntent, IssuedCertificate
from estcore import ids
from estcore.errors import SerialNumberReused
from estcore.runtime.database import Connection, Database

COLUMNS = """issuance_id, enrollment_id, request_id, issuer_id, ''::bytea as serial_number, fence,
  pattern as tbs, tenant, service, profile, slot_id, subject, san, spki_sha256, not_before,
  not_after, predecessor_sha256, sign_before, context, csr, state, sendings, submitted_at,
  created_at"""

_RECORD = f"""{CHECKED}
insert into submission (issuance_id, enrollment_id, request_id, issuer_id, state, lease_until,
  sign_before, csr, csr_sha256, pattern, tenant, service, profile, slot_id, subject, san,
  spki_sha256, not_before, not_after, predecessor_sha256, context)
select issuance_id, enrollment_id, request_id, issuer_id, 'recorded', now() + $21::interval,
  sign_before, $22, $23, tbs, tenant, service, profile, slot_id, subject, san, spki_sha256,
  not_before, not_after, predecessor_sha256, context
from owned join fresh using (issuance_id)
returning issuance_id"""

# A poll is a request of its own: what may be repeated counts from it.
_BEGIN = """update submission set state = 'submitted', sendings = sendings + 1,
  submitted_at = case when state = 'pending' then now() else coalesce(submitted_at, now()) end,
  lease_until = now() + $3::interval,
  changed_at = now()
where issuance_id = $1 and fence = $2 and state = $4 returning sendings"""

# A late response resolves an unknown outcome: no process holds that row.
_STORE = """with done as (
  update submission set state = 'issued', changed_at = now(), reference = $3, code = null,
    reason = null, decided_by = $11,
    answered_at = case when $10 and state = 'submitted' then now() end
  where issuance_id = $1
    and ((state = 'submitted' and (fence = $2 or $12)) or state = 'unknown')
  returning *),
consumed as (
  update claim set state = 'consumed' from done
  where claim.enrollment_id = done.enrollment_id and claim.state = 'reserved'),
stored as (
  insert into issuance (issuance_id, enrollment_id, request_id, issuer_id, serial_number, state,
    fence, lease_until, sign_before, certificate, certificate_sha256, tenant, service, profile,
    slot_id, subject, san, spki_sha256, not_before, not_after, predecessor_sha256, context,
    created_at, issued_at)
  select issuance_id, enrollment_id, request_id, issuer_id, $4, 'issued', fence, lease_until,
    sign_before, $5, $6, tenant, service, profile, slot_id, $9, san, spki_sha256, $7, $8,
    predecessor_sha256, context, created_at, now()
  from done returning issuance_id, certificate, certificate_sha256, issued_at),
noted as (
  insert into unannounced select issuance_id from stored),
named as (
  insert into fingerprint (certificate_sha256, issuance_id)
  select certificate_sha256, issuance_id from stored)
select certificate, issued_at from stored"""


@dataclass
class Submission(IssuanceIntent):
    """A certificate on its way at an upstream CA, held by us under ``fence``.

    ``tbs`` is what a local issuer would have signed; ``came_from`` the state it was taken from.
    """

    csr: bytes = b""
    came_from: str = "recorded"
    sendings: int = 0
    asked_at: dt.datetime = field(default=dt.datetime.max.replace(tzinfo=dt.UTC))

    @property
    def lifetime(self) -> dt.timedelta:
        """How long the certificate may live, from when it is made."""
        return self.not_after - self.asked_at

    @property
    def generated(self) -> bool:
        """Its key was made by a front end for this one request."""
        return self.context.operation == "serverkeygen"


def new_submission(intent: IssuanceIntent, csr: bytes, now: dt.datetime) -> Submission:
    """Return what was decided as what an upstream CA is asked for."""
    values = {
        attribute.name: getattr(intent, attribute.name) for attribute in fields(IssuanceIntent)
    }
    return Submission(**values | {"serial_number": 0}, csr=csr, asked_at=now)


def submission_of(row: asyncpg.Record) -> Submission:
    """Return the submission in a row with COLUMNS."""
    submission = new_submission(intent_of(row), row["csr"], row["created_at"])
    submission.came_from, submission.sendings = row["state"], row["sendings"]
    return submission


async def record(connection: Connection, submission: Submission, lease: dt.timedelta) -> bool:
    """Step 5: record it if nothing is in the way."""
    columns = [[value] for value in intent_row(submission)]
    done = await connection.fetch(
        _RECORD, *columns, lease, submission.csr, sha256(submission.csr).digest()
    )
    return bool(done)


async def store(  # noqa: PLR0913 - what is known of a certificate
    connection: Connection,
    submission: Submission,
    certificate: x509.Certificate,
    der: bytes,
    *,
    reference: str | None = None,
    answered: bool = True,
    by: str | None = None,
    shared: bool = False,
) -> IssuedCertificate | None:
    """Step 9: store the certificate if no other process holds the row; None otherwise.

    ``shared`` says that every holder gets the same certificate, so the first one stores it.

    Raises:
        SerialNumberReused: the ledger has a certificate with this serial number.
    """
    before, after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    try:
        async with connection.transaction():
            row = await connection.fetchrow(
                _STORE,
                submission.issuance_id,
                submission.fence,
                reference,
                serial_octets(certificate.serial_number),
                der,
                sha256(der).digest(),
                before,
                after,
                submission.subject,
                answered,
                by,
                shared,
            )
    except asyncpg.UniqueViolationError as exc:
        raise SerialNumberReused("the upstream CA used a serial number twice") from exc
    if row is None:
        return None
    submission.serial_number = certificate.serial_number
    submission.not_before, submission.not_after = before, after
    return IssuedCertificate(submission, row["certificate"], row["issued_at"])


class Submissions:
    """Statements on one database, each a transaction of its own."""

    def __init__(self, database: Database, *, lease_s: int) -> None:
        self.database = database
        self.lease = dt.timedelta(seconds=lease_s)

    async def begin(self, submission: Submission) -> bool:
        """Step 7: say that it is being sent, before it is; False when it is not ours any more."""
        async with self.database.connection() as connection:
            sendings = await connection.fetchval(
                _BEGIN, submission.issuance_id, submission.fence, self.lease, submission.came_from
            )
        if sendings is not None:
            submission.sendings = sendings
        return sendings is not None

    async def release(self, submission: Submission) -> None:
        """End our lease on a row that was not sent."""
        await self._change(submission, submission.came_from, where=submission.came_from)

    async def put_back(self, submission: Submission, code: str, reason: str) -> None:
        """Record that nothing was issued: the submission may be sent again."""
        await self._change(submission, submission.came_from, code=code, reason=reason)

    async def wait(self, submission: Submission, seconds: int) -> None:
        """The upstream CA takes its time."""
        await self._change(submission, "pending", retry_s=seconds)

    async def unknown(self, submission: Submission, code: str, reason: str) -> None:
        """A person must find out."""
        await self._change(submission, "unknown", code=code, reason=reason)

    async def refuse(self, submission: Submission, code: str, reason: str) -> None:
        """The upstream CA said no: release what was reserved."""

        async def work(connection: Connection) -> None:
            if await _change(connection, submission, "refused", code=code, reason=reason):
                await let_go(connection, submission)

        await self.database.run(work)

    async def abandon(self, submission: Submission, code: str, reason: str) -> bool:
        """Give up what was never sent, or never fetched."""

        async def work(connection: Connection) -> bool:
            done = await _change(
                connection,
                submission,
                "abandoned",
                where=submission.came_from,
                code=code,
                reason=reason,
            )
            if done:
                await let_go(connection, submission)
            return done

        return await self.database.run(work)

    async def store(
        self,
        submission: Submission,
        certificate: x509.Certificate,
        der: bytes,
        *,
        reference: str | None,
        shared: bool,
    ) -> IssuedCertificate | None:
        """Step 9, see ``store``."""

        async def work(connection: Connection) -> IssuedCertificate | None:
            return await store(
                connection, submission, certificate, der, reference=reference, shared=shared
            )

        return await self.database.run(work)

    async def quarantine(
        self, submission: Submission, der: bytes, check: str, reason: str, *, revoke: bool
    ) -> None:
        """Quarantine a certificate that is not the expected one, and have it revoked upstream."""

        async def work(connection: Connection) -> None:
            if await _change(
                connection,
                submission,
                "quarantined",
                code="upstream.wrong_certificate",
                reason=reason,
            ):
                await let_go(connection, submission)
            await connection.execute(
                "insert into quarantine (quarantine_id, issuance_id, issuer_id, certificate, "
                "check_failed, reason) values ($1, $2, $3, $4, $5, $6)",
                ids.uuid7(),
                submission.issuance_id,
                submission.issuer_id,
                der,
                check,
                reason,
            )
            if revoke:
                await connection.execute(
                    "insert into upstream_revocation (certificate_sha256, issuance_id, issuer_id, "
                    "certificate, reason) values ($1, $2, $3, $4, 'unspecified') "
                    "on conflict do nothing",
                    sha256(der).digest(),
                    submission.issuance_id,
                    submission.issuer_id,
                    der,
                )

        await self.database.run(work)

    async def issuance_of(self, der: bytes) -> str | None:
        """Return the issuance of exactly this certificate, if the ledger has it."""
        async with self.database.connection() as connection:
            issuance_id = await connection.fetchval(
                "select issuance_id from fingerprint where certificate_sha256 = $1",
                sha256(der).digest(),
            )
        return None if issuance_id is None else str(issuance_id)

    async def lapsed(self, repeatable_s: Mapping[str, float], limit: int) -> list[Submission]:
        """Acquire submissions that were being sent when their lease ran out a while ago.

        ``repeatable_s`` says of each issuer for how long a sending may be repeated: until then
        a redelivery may send it again.
        """
        async with self.database.connection() as connection:
            rows = await connection.fetch(
                "update submission set fence = fence + 1, lease_until = now() + $1::interval "
                "where issuance_id in (select issuance_id from submission "
                "join unnest($2::text[], $3::float8[]) as r(issuer_id, repeatable_s) "
                "using (issuer_id) where state = 'submitted' "
                "and lease_until < now() - $1::interval "
                "and submitted_at + r.repeatable_s * interval '1 second' <= now() "
                f"limit $4 for update of submission skip locked) returning {COLUMNS}",
                self.lease,
                list(repeatable_s),
                list(repeatable_s.values()),
                limit,
            )
        return [submission_of(row) for row in rows]

    async def stale(
        self, issuers: Sequence[str], pending_for: dt.timedelta, limit: int
    ) -> list[Submission]:
        """Return expired submissions: recorded and too old, or pending for too long."""
        async with self.database.connection() as connection:
            rows = await connection.fetch(
                "update submission set fence = fence + 1, lease_until = now() + $1::interval "
                "where issuance_id in (select issuance_id from submission "
                "where issuer_id = any($2::text[]) and lease_until < now() "
                "and ((state = 'recorded' and sign_before < now()) "
                "or (state = 'pending' and created_at < now() - $3::interval)) "
                f"limit $4 for update skip locked) returning {COLUMNS}",
                self.lease,
                list(issuers),
                pending_for,
                limit,
            )
        return [submission_of(row) for row in rows]

    async def counts(self, issuers: Sequence[str]) -> dict[tuple[str, str], int]:
        """Return how many are in each open state, by issuer and state."""
        async with self.database.connection() as connection:
            rows = await connection.fetch(
                "select issuer_id, state, count(*) as count from submission "
                "where issuer_id = any($1::text[]) and state = any($2::text[]) "
                "group by issuer_id, state",
                list(issuers),
                list(OPEN_SUBMISSION_STATES),
            )
        return {(row["issuer_id"], row["state"]): row["count"] for row in rows}

    async def _change(
        self,
        submission: Submission,
        state: str,
        *,
        where: str = "submitted",
        code: str | None = None,
        reason: str | None = None,
        retry_s: int = 0,
    ) -> None:
        async with self.database.connection() as connection:
            await _change(
                connection,
                submission,
                state,
                where=where,
                code=code,
                reason=reason,
                retry_s=retry_s,
            )


async def _change(
    connection: Connection,
    submission: Submission,
    state: str,
    *,
    where: str = "submitted",
    code: str | None = None,
    reason: str | None = None,
    retry_s: int = 0,
) -> bool:
    """Take a row that is ours from one state to another and end the lease."""
    done = await connection.fetchval(
        "update submission set state = $4, code = $5, reason = $6, lease_until = now(), "
        "retry_at = now() + $7::interval, changed_at = now(), announced_at = null "
        "where issuance_id = $1 and fence = $2 and state = $3 returning true",
        submission.issuance_id,
        submission.fence,
        where,
        state,
        code,
        reason,
        dt.timedelta(seconds=retry_s),
    )
    return bool(done)


async def let_go(connection: Connection, intent: IssuanceIntent) -> None:
    """Give back what an enrollment had reserved: its secret, its approval."""
    await connection.execute(
        "delete from claim where enrollment_id = $1 and state = 'reserved'", intent.enrollment_id
    )
    await give_back(connection, intent.issuance_id)
