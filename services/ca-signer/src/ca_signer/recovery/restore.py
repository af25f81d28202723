"""Restore the contents of the audit log into the ledger, in batches, each all or nothing.

Idempotent: it adds missing rows, never deletes, never overwrites newer state. What is restored
counts as unpublished, so the sweeper publishes it again under the same ids: renewal and audit know
it already, the certificate search index learns it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any

import asyncpg

from ca_signer.ledger import certificate_index
from ca_signer.ledger.issuance_rows import certified_values, serial_octets
from ca_signer.ledger.revocations import RELEASED
from ca_signer.model import OPEN_SUBMISSIONS, IssuanceIntent, IssuedCertificate
from ca_signer.recovery.audit_log import ROLLOVER, AuditLogContents, Change
from ca_signer.recovery.ledger_check import REVOKED, read_event_ref
from ca_signer.recovery.rollover_history import Replayed, replay
from estcore.errors import Conflict, MalformedRequest
from estcore.messages import topics
from estcore.messages.audit import AuditRecord
from estcore.messages.envelope import decode, encode
from estcore.messages.events import CertificateRevoked
from estcore.messages.state import RevocationList
from estcore.runtime.bus import Bus
from estcore.runtime.database import Connection, Database
from estcore.runtime.stored_messages import last_sequence, last_values, stored_from

_PIECE = 500
_CLOCKS = dt.timedelta(seconds=5)
"""A record is dated by the signer, its row by the database; less than that is one moment."""

_ROW = """with stored as (
  insert into issuance as known (issuance_id, enrollment_id, request_id, issuer_id,
    serial_number, state, lease_until, sign_before, certificate, certificate_sha256, tenant,
    service, profile, slot_id, subject, san, spki_sha256, not_before, not_after,
    predecessor_sha256, context, created_at, issued_at, abandoned_at)
  values ($1, $2, $3, $4, $5, $6, $7, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19,
    $20, $7, case when $6 = 'issued' then $7::timestamptz end,
    case when $6 = 'issued' then null else now() end)
  on conflict (issuance_id) do update set state = 'issued', tbs = null,
    certificate = excluded.certificate, certificate_sha256 = excluded.certificate_sha256,
    issued_at = excluded.issued_at, abandoned_at = null, fence = known.fence + 1
  where excluded.state = 'issued' and known.state <> 'issued'
    and known.serial_number = excluded.serial_number
  returning issuance_id, certificate_sha256),
closed as (
  delete from open_intent o using stored where o.issuance_id = stored.issuance_id),
noted as (
  insert into unannounced select issuance_id from stored where certificate_sha256 is not null),
named as (
  insert into fingerprint (certificate_sha256, issuance_id)
  select certificate_sha256, issuance_id from stored where certificate_sha256 is not null)
select true from stored"""
_BIND = """insert into key_binding (spki_sha256, tenant, service, created_at)
values ($1, $2, $3, $4) on conflict (spki_sha256) do update
set created_at = least(key_binding.created_at, excluded.created_at)
where (key_binding.tenant, key_binding.service) = (excluded.tenant, excluded.service)
returning true"""
_POINT = """insert into enrollment as known (enrollment_id, issuance_id) values ($1, $2)
on conflict (enrollment_id) do update set issuance_id = excluded.issuance_id
where not exists (select 1 from issuance i where i.issuance_id = known.issuance_id
  and i.state = 'issued' and i.issued_at >= $3)"""
_SUBMITTED = f"""update submission set state = 'issued', changed_at = now()
where issuance_id = $1 and {OPEN_SUBMISSIONS}"""  # noqa: S608 - our constant
_SPEND = """insert into claim (kind, id, enrollment_id, state)
select 'secret', secret_id, $2, 'consumed' from secret where secret_id = $1 and one_time = 1
on conflict (kind, id) do update set state = 'consumed', enrollment_id = excluded.enrollment_id"""
_CHANGE = """update issuance set revoked_at = case when $2::text is null then null
    else coalesce(revoked_at, $3) end, revocation_reason = $2, revoked_by = $4,
  revocation_seq = greatest(revocation_seq + 1, $5), revocation_changed_at = $3,
  revocation_announced_at = null
where issuance_id = $1 and state = 'issued' and revocation_reason is distinct from $2
  and coalesce(revocation_changed_at, '-infinity') < $3 returning true"""
_ROLLOVER = """insert into rollover as known (rollover_id, family, from_issuer, to_issuer, state,
  planned_at, published_at, signing_at, ended_at, changed_by, fleet, fetched)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
on conflict (rollover_id) do update set state = excluded.state,
  published_at = coalesce(known.published_at, excluded.published_at),
  signing_at = coalesce(known.signing_at, excluded.signing_at),
  ended_at = coalesce(known.ended_at, excluded.ended_at), changed_by = excluded.changed_by,
  fleet = excluded.fleet, fetched = excluded.fetched"""
_GENERATION = """insert into generation as known (issuer_id, family, state) values ($1, $2, $3)
on conflict (issuer_id) do update set state = excluded.state, changed_at = now()
where known.state <> excluded.state"""
_FORGOTTEN = """insert into command (command_id, digest, operator_sha256, operator, verb,
  created_at, announced_at) values ($1, $2, $3, $4, $5, $6, now()) on conflict do nothing"""
_NUMBER = """insert into crl (issuer_id, partition, last_number) values ($1, $2, $3)
on conflict (issuer_id, partition) do update
set last_number = greatest(crl.last_number, excluded.last_number)"""


@dataclass
class Restored:
    """What was restored, and what could not be.

    ``sent_upstream`` are submissions to upstream CAs without a known outcome.
    ``unrecoverable_commands`` are commands whose effect is not in the audit log.
    """

    issued: int = 0
    given_up: int = 0
    revocations: int = 0
    rollovers: int = 0
    sent_upstream: list[str] = field(default_factory=list)
    unrecoverable_commands: list[str] = field(default_factory=list)


class Restorer:
    """Writes into one ledger."""

    def __init__(self, bus: Bus, database: Database) -> None:
        self._bus = bus
        self._database = database

    async def restore(self, contents: AuditLogContents) -> Restored:
        """Put back what is missing.

        Raises:
            Conflict: a key belongs to another owner here; that piece was not written.
            Unavailable: bus or database is unavailable; what was written stays.
        """
        done = Restored()
        issued = list(contents.issued.values())
        for piece in _pieces(issued):
            done.issued += await self._database.run(partial(_put_issued, piece=piece))
        for lost in _pieces(list(contents.given_up.values())):
            done.given_up += await self._database.run(partial(_put_given_up, piece=lost))
        changes = await self._with_announced(contents.changes)
        for changed in _pieces(list(changes.items())):
            done.revocations += await self._database.run(partial(_put_changes, piece=changed))
        await self._raise_crl_numbers()
        played = replay(contents.moves)
        done.rollovers = await self._database.run(partial(_put_rollovers, played=played))
        done.sent_upstream = await self._unknown(contents)
        done.unrecoverable_commands = await self._forgotten(contents)
        return done

    async def _with_announced(self, changes: dict[str, Change]) -> dict[str, Change]:
        """Add revocations that were announced and are not on record yet.

        Only revocations: a release is taken from the audit log alone.
        """
        merged = dict(changes)
        newest = await last_sequence(self._bus, topics.PKI_EVENTS, REVOKED)
        start = 1
        while 0 < start <= newest:
            stored, start = await stored_from(self._bus, topics.PKI_EVENTS, REVOKED, start)
            for message in stored:
                reference, event = read_event_ref(message.payload), _revoked(message.payload)
                if reference is None or event is None or event.reason == RELEASED:
                    continue
                name = str(reference.issuance_id)
                recorded = merged.get(name)
                if recorded is None or (
                    recorded.reason != event.reason and recorded.at < event.time
                ):
                    merged[name] = Change(event.reason, event.time, None, reference.change)
        return merged

    async def _raise_crl_numbers(self) -> None:
        values = await last_values(self._bus, topics.PKI_STATE, "pki.state.crl.>")
        lists = [
            decode(RevocationList, stored.payload)
            for stored in values
            if not stored.topic.endswith(f".{topics.CRL_MANIFEST}")
        ]
        numbers = [(crl.issuer_id, crl.partition or "", crl.number) for crl in lists]
        async with self._database.connection() as connection:
            await connection.executemany(_NUMBER, numbers)

    async def _unknown(self, contents: AuditLogContents) -> list[str]:
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "select id from unnest($1::uuid[]) id where not exists "
                "(select 1 from submission where issuance_id = id) order by id",
                sorted(contents.sent_upstream),
            )
        return [str(row["id"]) for row in rows]

    async def _forgotten(self, contents: AuditLogContents) -> list[str]:
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "select id from unnest($1::text[]) id where not exists "
                "(select 1 from command where command_id::text = id)",
                [record.correlation_id for record in contents.commands],
            )
            lost = {row["id"] for row in rows}
            forgotten = [r for r in contents.commands if r.correlation_id in lost]
            # Known again, so that none can be given a second time under its id.
            await connection.executemany(
                _FORGOTTEN,
                [
                    (
                        record.correlation_id,
                        sha256(record.record_id.encode()).digest(),
                        bytes.fromhex(record.actor.certificate_fingerprint or ""),
                        record.actor.rule or "unknown",
                        record.action.removeprefix("operator."),
                        record.occurred_at,
                    )
                    for record in forgotten
                ],
            )
        return [_line(r) for r in forgotten if not r.action.startswith(ROLLOVER)]


def _line(record: AuditRecord) -> str:
    verb = record.action.removeprefix("operator.")
    details = "".join(f" {name}={value}" for name, value in (record.details or {}).items())
    return f"{record.occurred_at:%Y-%m-%dT%H:%M:%SZ} {record.actor.rule} {verb}{details}"


def _revoked(payload: bytes) -> CertificateRevoked | None:
    try:
        return decode(CertificateRevoked, payload)
    except MalformedRequest:
        return None


def _pieces(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[start : start + _PIECE] for start in range(0, len(items), _PIECE)]


async def _put_issued(connection: Connection, piece: Sequence[IssuedCertificate]) -> int:
    count = 0
    for issued in piece:
        intent = issued.intent
        columns = _columns(intent, issued.issued_at, issued.certificate)
        try:
            new = await connection.fetchval(_ROW, *columns)
        except asyncpg.UniqueViolationError as exc:
            raise Conflict(
                f"the ledger has another issuance in the place of {intent.issuance_id}",
                code="reconcile.conflict",
            ) from exc
        if not new:
            continue
        count += 1
        owner = (intent.spki_sha256, intent.tenant, intent.service)
        if not await connection.fetchval(_BIND, *owner, issued.issued_at):
            raise Conflict(
                f"the key of issuance {intent.issuance_id} belongs to another owner here",
                code="reconcile.owner",
            )
        await connection.execute(_POINT, intent.enrollment_id, intent.issuance_id, issued.issued_at)
        await connection.execute(_SUBMITTED, intent.issuance_id)
        if intent.secret_id is not None:
            await connection.execute(_SPEND, intent.secret_id, intent.enrollment_id)
    return count


async def _put_given_up(connection: Connection, piece: Sequence[IssuanceIntent]) -> int:
    count = 0
    for intent in piece:
        recorded = await connection.fetchval(
            "select true from issuance where issuance_id = $1 or request_id = $2",
            intent.issuance_id,
            intent.request_id,
        )
        if not recorded:
            await connection.execute(_ROW, *_columns(intent, intent.sign_before, None))
            count += 1
    return count


def _columns(
    intent: IssuanceIntent, moment: dt.datetime, certificate: bytes | None
) -> tuple[Any, ...]:
    return (
        intent.issuance_id,
        intent.enrollment_id,
        intent.request_id,
        intent.issuer_id,
        serial_octets(intent.serial_number),
        "issued" if certificate else "abandoned",
        moment,
        certificate,
        sha256(certificate).digest() if certificate else None,
        *certified_values(intent),
        encode(intent.context).decode(),
    )


async def _put_changes(connection: Connection, piece: Sequence[tuple[str, Change]]) -> int:
    count = 0
    for issuance_id, change in piece:
        values = (change.reason, change.at, change.by, change.count)
        if await connection.fetchval(_CHANGE, issuance_id, *values):
            count += 1
            await certificate_index.note_revocation(
                connection, issuance_id, revoked=change.reason is not None
            )
    return count


async def _put_rollovers(connection: Connection, played: Replayed) -> int:
    """Bring both tables to where the log has them, unless the ledger is at least as far."""
    here = await connection.fetchval(
        "select max(greatest(planned_at, published_at, signing_at, ended_at)) from rollover"
    )
    if played.last_at is None or (here is not None and here >= played.last_at - _CLOCKS):
        return 0
    # Ended ones first: of the others there is one of a kind in a family.
    rows = sorted(played.rollovers.items(), key=lambda item: item[1].ended_at is None)
    for rollover_id, rollover in rows:
        await connection.execute(
            _ROLLOVER,
            rollover_id,
            rollover.first.family,
            rollover.first.from_issuer,
            rollover.first.to_issuer,
            rollover.state,
            rollover.times["planned"],
            rollover.times.get("published"),
            rollover.times.get("signing"),
            rollover.ended_at,
            rollover.by,
            rollover.fleet,
            rollover.fetched,
        )
    signing_last = sorted(played.generations.items(), key=lambda item: item[1][1] == "signing")
    for issuer_id, (family, state) in signing_last:
        await connection.execute(_GENERATION, issuer_id, family, state)
    return len(rows)
