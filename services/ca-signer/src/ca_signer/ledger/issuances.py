"""Issuances in PostgreSQL: every statement of the issuance cycle.

A batch of new enrollments takes one statement to record the intents (step 5) and one to store the
certificates (step 9); each commits by itself. Any other request goes through
``ca_signer.issuance.idempotency``, in a transaction of its own with the enrollment row locked.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import asyncpg

from ca_signer.ledger import certificate_index, revocations
from ca_signer.ledger.issuance_rows import (
    INTENT_COLUMNS,
    KNOWN_COLUMNS,
    STALE,
    intent_of,
    intent_row,
    known_certificate_of,
)
from ca_signer.model import IssuanceIntent, IssuedCertificate, KnownCertificate
from estcore.errors import SerialNumberReused
from estcore.runtime.database import Connection, Database

_INPUT = """input as (
  select * from unnest($1::uuid[], $2::bytea[], $3::uuid[], $4::text[], $5::bytea[], $6::bytea[],
    $7::text[], $8::text[], $9::text[], $10::uuid[], $11::text[], $12::text[], $13::bytea[],
    $14::timestamptz[], $15::timestamptz[], $16::bytea[], $17::bytea[], $18::text[],
    $19::timestamptz[], $20::text[])
  as t(issuance_id, enrollment_id, request_id, issuer_id, serial_number, tbs,
    tenant, service, profile, slot_id, subject, san, spki_sha256,
    not_before, not_after, predecessor_sha256, presented_sha256, secret_id,
    sign_before, context)
  order by enrollment_id)"""

# Nothing in this part trusts what was read before it: single use, revocation, key binding
# and repetition are decided by unique indexes and by rows as they are now.
CHECKED = f"""with {_INPUT},
allowed as (
  select i.*, coalesce(s.one_time, 0) as one_time
  from input i left join secret s using (secret_id)
  where not exists (select 1 from request r where r.request_id = i.request_id)
    and not exists (select 1 from issuance r where r.request_id = i.request_id)
    and not exists (select 1 from fingerprint f join issuance p using (issuance_id)
        where f.certificate_sha256 = i.presented_sha256 and p.revoked_at is not null)
    and not exists (select 1 from issuance c
        where c.spki_sha256 = i.spki_sha256 and c.revocation_reason = 'keyCompromise')
    and not exists (select 1 from generation g
        where g.issuer_id = i.issuer_id and g.state <> 'signing'
          and i.context::json->>'operation' <> 'ocsp')
    and (i.secret_id is null or (s.revoked_at is null and s.not_after > now()))),
bound as (
  insert into key_binding (spki_sha256, tenant, service)
  select spki_sha256, tenant, service from allowed
  on conflict do nothing returning spki_sha256, tenant, service),
owned as (
  select a.* from allowed a
  where exists (select 1 from bound b where (b.spki_sha256, b.tenant, b.service)
          = (a.spki_sha256, a.tenant, a.service))
     or exists (select 1 from key_binding k where (k.spki_sha256, k.tenant, k.service)
          = (a.spki_sha256, a.tenant, a.service))),
claimed as (
  insert into claim (kind, id, enrollment_id, state)
  select 'secret', secret_id, enrollment_id, 'reserved' from owned where one_time = 1
  on conflict do nothing returning enrollment_id),
fresh as (
  insert into enrollment (enrollment_id, issuance_id)
  select enrollment_id, issuance_id from owned o
  where one_time = 0 or exists (select 1 from claimed c
      where c.enrollment_id = o.enrollment_id)
  on conflict do nothing returning issuance_id)"""

_INTEND = f"""{CHECKED},
recorded as (
  insert into issuance (issuance_id, enrollment_id, request_id, issuer_id, serial_number, state,
    lease_until, sign_before, tbs, tenant, service, profile, slot_id, subject, san, spki_sha256,
    not_before, not_after, predecessor_sha256, context)
  select issuance_id, enrollment_id, request_id, issuer_id, serial_number, 'intended',
    now() + $21::interval, sign_before, tbs, tenant, service, profile, slot_id, subject, san,
    spki_sha256, not_before, not_after, predecessor_sha256, context
  from owned join fresh using (issuance_id)
  returning issuance_id)
insert into open_intent select issuance_id from recorded returning issuance_id"""

_STORE = """with input as (
  select * from unnest($1::uuid[], $2::int[], $3::bytea[], $4::bytea[])
  as t(issuance_id, fence, certificate, certificate_sha256)),
stored as (
  update issuance s set state = 'issued', certificate = i.certificate,
    certificate_sha256 = i.certificate_sha256, issued_at = now(), tbs = null
  from input i
  where s.issuance_id = i.issuance_id and s.state = 'intended' and s.fence = i.fence
  returning s.issuance_id, s.certificate, s.certificate_sha256, s.issued_at, s.enrollment_id),
closed as (
  delete from open_intent o using stored where o.issuance_id = stored.issuance_id),
noted as (
  insert into unannounced select issuance_id from stored),
named as (
  insert into fingerprint (certificate_sha256, issuance_id)
  select certificate_sha256, issuance_id from stored),
consumed as (
  update claim set state = 'consumed' from stored
  where claim.enrollment_id = stored.enrollment_id and claim.state = 'reserved')
select issuance_id, certificate, issued_at from stored"""

_TAKE_OVER = f"""update issuance set fence = fence + 1, lease_until = now() + $1::interval
where issuance_id in (
  select issuance_id from open_intent join issuance i using (issuance_id)
  where i.state = 'intended' and i.lease_until < now()
  order by i.lease_until limit $2 for update of i skip locked)
returning {INTENT_COLUMNS}, case
  when {STALE} or issuance.context::json->>'operation' in ('serverkeygen', 'ocsp', 'key-generator')
    then 'request.expired'
  when exists (select 1 from fingerprint f join issuance p using (issuance_id)
      where f.certificate_sha256 = decode(issuance.context::json->>'presented_sha256', 'hex')
        and p.revoked_at is not null)
    then 'auth.certificate_revoked'
  when exists (select 1 from issuance c where c.spki_sha256 = issuance.spki_sha256
      and c.revocation_reason = 'keyCompromise')
    then 'key.compromised'
  when issuance.context::json->>'auth_method' = 'secret' and not exists (select 1 from secret s
      where 'secret:' || s.secret_id = issuance.context::json->>'principal'
        and s.revoked_at is null and s.not_after > now())
    then 'secret.invalid' end as objection"""

_UNANNOUNCED = f"""select {INTENT_COLUMNS}, certificate, issued_at
from unannounced join issuance using (issuance_id)
where issued_at < now() - $1::interval order by issuance_id limit $2"""

_IN_WINDOW = f"""select {INTENT_COLUMNS}, certificate, issued_at from issuance
where state = 'issued' and issued_at >= $1 and issued_at < $2 order by issued_at"""

_KNOWN = f"""select {KNOWN_COLUMNS}
from fingerprint join issuance using (issuance_id, certificate_sha256)
where certificate_sha256 = any($1::bytea[])"""

_HEADS = f"""select {KNOWN_COLUMNS} from issuance i
where slot_id = any($1::uuid[]) and state = 'issued' and revoked_at is null and not_after > now()
  and not exists (select 1 from issuance s where s.slot_id = i.slot_id
    and s.predecessor_sha256 = i.certificate_sha256 and s.state = 'issued'
    and s.revoked_at is null)
limit 2"""


_UNFINISHED = """select exists (select from open_intent), exists (select from unannounced),
exists (select from request where announced_at is null)"""


@dataclass(frozen=True)
class Unfinished:
    """Whether there are intents, and certificates and refusals that are not published."""

    intents: bool
    certificates: bool
    refusals: bool


@dataclass(frozen=True)
class TakenOver:
    """An intent whose lease had run out and that is now ours.

    ``rejection_code`` is the code of what in the ledger forbids it by now: it is too old, or the
    certificate or secret that asked for it has ended.
    """

    intent: IssuanceIntent
    rejection_code: str | None


class IssuanceStore:
    """The statements, on one database."""

    def __init__(self, database: Database, *, lease_s: int) -> None:
        self.database = database
        self.lease = dt.timedelta(seconds=lease_s)

    async def insert(self, intents: Sequence[IssuanceIntent]) -> set[str]:
        """Step 5 for fresh enrollments: record all that are; return the ids of those recorded.

        Raises:
            SerialNumberReused: a serial number exists already.
            LedgerUnavailable: PostgreSQL is unavailable; nothing or everything was recorded.
        """
        async with self.database.connection() as connection:
            return await insert_intents(connection, intents, self.lease)

    async def store(
        self, signed: Sequence[tuple[IssuanceIntent, bytes, bytes]]
    ) -> list[IssuedCertificate]:
        """Step 9: store certificates whose fence is still ours; the others are not returned.

        ``signed`` holds (intent, certificate, its SHA-256).
        """
        by_id = {intent.issuance_id: intent for intent, _, _ in signed}
        async with self.database.connection() as connection:
            rows = await connection.fetch(
                _STORE,
                [intent.issuance_id for intent, _, _ in signed],
                [intent.fence for intent, _, _ in signed],
                [certificate for _, certificate, _ in signed],
                [sha256 for _, _, sha256 in signed],
            )
        return [
            IssuedCertificate(by_id[str(row["issuance_id"])], row["certificate"], row["issued_at"])
            for row in rows
        ]

    async def known_certificates(self, fingerprints: Sequence[bytes]) -> list[KnownCertificate]:
        """Return the ledger's facts of certificates by SHA-256; unknown ones are left out."""
        async with self.database.connection() as connection:
            rows = await connection.fetch(_KNOWN, list(fingerprints))
        return [known_certificate_of(row) for row in rows]

    async def latest_certificates(self, slots: Sequence[str]) -> list[KnownCertificate]:
        """Return live certificates of the slots that nothing has succeeded yet; two at most."""
        async with self.database.connection() as connection:
            rows = await connection.fetch(_HEADS, list(slots))
        return [known_certificate_of(row) for row in rows]

    async def unfinished(self) -> Unfinished:
        """Return whether anything is under way, in any signer: what a sweeper looks for first."""
        async with self.database.connection() as connection:
            (row,) = await connection.fetch(_UNFINISHED)
        return Unfinished(*row)

    async def take_over(self, limit: int) -> list[TakenOver]:
        """Take intents whose lease has run out, each under a new fence."""
        async with self.database.connection() as connection:
            rows = await connection.fetch(_TAKE_OVER, self.lease, limit)
        return [TakenOver(intent_of(row), row["objection"]) for row in rows]

    async def abandon(self, intent: IssuanceIntent) -> bool:
        """Give an intent up for good, release its claims; its serial is never used again."""

        async def work(connection: Connection) -> bool:
            done = await connection.fetchval(
                "update issuance set state = 'abandoned', tbs = null, abandoned_at = now() "
                "where issuance_id = $1 and state = 'intended' and fence = $2 returning true",
                intent.issuance_id,
                intent.fence,
            )
            if done:
                await connection.execute(
                    "delete from open_intent where issuance_id = $1", intent.issuance_id
                )
                await connection.execute(
                    "delete from claim where enrollment_id = $1 and state = 'reserved'",
                    intent.enrollment_id,
                )
                await give_back(connection, intent.issuance_id)
            return bool(done)

        return await self.database.run(work)

    async def revoke(self, issuance_id: str, reason: str) -> bool:
        """Revoke a certificate; False when it was revoked before or is none."""

        async def work(connection: Connection) -> bool:
            live = await connection.fetchval(
                "select true from issuance where issuance_id = $1 and state = 'issued' "
                "and revoked_at is null for update",
                issuance_id,
            )
            if live:
                await revocations.set_revocation(connection, issuance_id, reason, None)
            await give_back(connection, issuance_id)
            return bool(live)

        return await self.database.run(work)

    async def release(self, intents: Sequence[IssuanceIntent]) -> None:
        """End our leases at once, so that a retry need not wait for them."""
        async with self.database.connection() as connection:
            await connection.execute(
                "update issuance s set lease_until = now() from unnest($1::uuid[], $2::int[]) "
                "as i(id, fence) where s.issuance_id = i.id and s.fence = i.fence "
                "and s.state = 'intended'",
                [i.issuance_id for i in intents],
                [i.fence for i in intents],
            )

    async def extend(self, fences: Mapping[str, int]) -> None:
        """Lengthen leases that are still ours: fences by issuance id."""
        async with self.database.connection() as connection:
            await connection.execute(
                "update issuance s set lease_until = now() + $3::interval "
                "from unnest($1::uuid[], $2::int[]) as i(id, fence) "
                "where s.issuance_id = i.id and s.fence = i.fence and s.state = 'intended'",
                list(fences),
                list(fences.values()),
                self.lease,
            )

    async def unannounced(self, *, older_than_s: float, limit: int) -> list[IssuedCertificate]:
        """Return certificates whose publication was not confirmed."""
        async with self.database.connection() as connection:
            rows = await connection.fetch(_UNANNOUNCED, dt.timedelta(seconds=older_than_s), limit)
        return [IssuedCertificate(intent_of(r), r["certificate"], r["issued_at"]) for r in rows]

    async def issued_between(self, start: dt.datetime, end: dt.datetime) -> list[IssuedCertificate]:
        """Return every certificate committed in [start, end)."""
        async with self.database.connection() as connection:
            rows = await connection.fetch(_IN_WINDOW, start, end)
        return [IssuedCertificate(intent_of(r), r["certificate"], r["issued_at"]) for r in rows]

    async def mark_announced(self, issuance_ids: Sequence[str]) -> None:
        """Record that event and audit outcome have their PubAcks; they can be searched then."""
        async with self.database.connection() as connection:
            await certificate_index.enter(connection, list(issuance_ids))

    async def count_attempt(self, message_sha256: bytes) -> int:
        """Count one more delivery of a message, before it is read; returns how many."""
        async with self.database.connection() as connection:
            count: int = await connection.fetchval(
                "insert into attempt (message_sha256, attempts) values ($1, 1) "
                "on conflict (message_sha256) do update set attempts = attempt.attempts + 1 "
                "returning attempts",
                message_sha256,
            )
        return count

    async def forget_attempts(self, messages_sha256: Sequence[bytes]) -> None:
        """Count deliveries anew: what failed was not the messages' fault."""
        async with self.database.connection() as connection:
            await connection.execute(
                "delete from attempt where message_sha256 = any($1::bytea[])", messages_sha256
            )


async def give_back(connection: Connection, issuance_id: str) -> None:
    """Make an operator's approval usable again: what it was used for came to nothing."""
    await connection.execute(
        "update approval set state = 'approved', issuance_id = null "
        "where issuance_id = $1 and state = 'used' and expires_at > now()",
        issuance_id,
    )


async def insert_intents(
    connection: Connection, intents: Sequence[IssuanceIntent], lease: dt.timedelta
) -> set[str]:
    """Run step 5 on a connection; returns the ids recorded.

    Raises:
        SerialNumberReused: the unique index refused a serial number.
    """
    columns = list(zip(*(intent_row(intent) for intent in intents), strict=True))
    try:
        rows = await connection.fetch(_INTEND, *columns, lease)
    except asyncpg.UniqueViolationError as exc:
        if exc.constraint_name == "issuance_serial":
            raise SerialNumberReused("a serial number was used before") from exc
        raise
    return {str(row["issuance_id"]) for row in rows}
