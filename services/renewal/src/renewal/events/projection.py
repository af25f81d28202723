"""Events of ca-signer become rows: one statement for a batch of first certificates.

A slot's first certificate is the common case and costs one statement for the whole batch. What
the statement finds not to be a first (a renewal, a repetition, a revoked one) is handled in
the same transaction.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from estcore.messages.events import CertificateIssued, CertificateRevoked
from estcore.runtime.database import Connection
from renewal.rotation.schedule import due_at, priority_rank
from renewal.rotation.slot import Scheduled
from renewal.rotation.slot_state import Generation
from renewal.rotation.store import UpdatedSlot, update_slots
from renewal.settings import RotationSettings

_INSERT = """
with input as (
    select * from unnest(
        $1::text[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[],
        $7::timestamptz[], $8::timestamptz[], $9::timestamptz[], $10::bytea[], $11::text[],
        $12::text[], $13::text[], $14::text[], $15::text[], $16::text[], $17::text[],
        $18::text[], $19::smallint[], $20::int[], $21::int[], $22::float8[],
        $23::boolean[], $24::timestamptz[], $25::boolean[])
    as t(issuance_id, slot_id, serial, fingerprint_sha256, spki_sha256, predecessor_fingerprint,
         not_before, not_after, issued_at, certificate, correlation_id,
         traceparent, tenant, service, profile, label, issuer_id,
         mode, priority, reaction_time_s, overlap_s, spread, expiry_expected, due_at, leads)
), ranked as (
    select i.*, r.fingerprint_sha256 is not null as revoked
    from input i left join revocation r using (fingerprint_sha256)
), first as (
    insert into renewal_slot (slot_id, tenant, service, profile, label, issuer_id, mode,
        priority, reaction_time_s, overlap_s, spread, expiry_expected, rules_at, active_id,
        generation, not_before, not_after, due_at, next_attempt_at, check_at, state)
    select slot_id, tenant, service, profile, label, issuer_id, mode, priority,
        reaction_time_s, overlap_s, spread, expiry_expected, issued_at, issuance_id,
        1, not_before, not_after, due_at, due_at, not_after, 'idle'
    from ranked where leads order by slot_id
    on conflict (slot_id) do nothing
    returning active_id
), stored as (
    insert into certificate (issuance_id, slot_id, serial, fingerprint_sha256, spki_sha256,
        predecessor_fingerprint, not_before, not_after, issued_at, certificate,
        generation, role, state, correlation_id, traceparent)
    select j.issuance_id, slot_id, serial, fingerprint_sha256, spki_sha256,
        predecessor_fingerprint, not_before, not_after, issued_at, certificate,
        case when active_id is not null then 1 else 0 end,
        case when active_id is not null then 'active' end,
        case when revoked then 'revoked' when active_id is not null then 'active'
             else 'superseded' end,
        correlation_id, traceparent
    from ranked j left join first f on f.active_id = j.issuance_id
    order by slot_id, j.issuance_id
    on conflict (issuance_id) do nothing
)
select j.issuance_id from ranked j left join first f on f.active_id = j.issuance_id
where f.active_id is null or j.revoked
"""
_REVOKE = """
with said as (
    insert into revocation (fingerprint_sha256, revoked_at, reason)
    select * from unnest($1::text[], $2::timestamptz[], $3::text[])
    on conflict (fingerprint_sha256) do nothing
)
update certificate set state = 'revoked', info_pending = true,
    changed_at = greatest(clock_timestamp(), changed_at + interval '1 microsecond')
where serial = any($4::text[]) and fingerprint_sha256 = any($1::text[]) and state <> 'revoked'
returning issuance_id, slot_id
"""


_NUMBERS = "select issuance_id, generation from certificate where issuance_id = any($1::text[])"


@dataclass(frozen=True)
class Projected:
    """What a batch did: every certificate of it, and the slots that were updated.

    ``repeated`` names the certificates that were not the first of a new slot.
    """

    scheduled: tuple[Scheduled, ...]
    updated: tuple[str, ...]
    repeated: frozenset[str]


async def project(
    connection: Connection,
    issued: Sequence[CertificateIssued],
    revoked: Sequence[CertificateRevoked],
    *,
    rotation: RotationSettings,
) -> Projected:
    """Store a batch of events in the caller's transaction. A repeated event changes nothing.

    A certificate may end before the ledger recorded it: its CA expired in between. It is known
    like any other, and due at once.
    """
    events = {event.id: event for event in issued}
    slots: set[str] = set()
    touched: list[str] = []
    newest: dict[str, CertificateIssued] = {}
    if events:
        touched = await _insert(connection, list(events.values()))
        for name in touched:
            event = events[name]
            slots.add(event.slot_id)
            latest_event = newest.get(event.slot_id)
            if latest_event is None or latest_event.issued_at <= event.issued_at:
                newest[event.slot_id] = event
    if revoked:
        latest = {r.fingerprint_sha256: r for r in revoked}
        rows = await connection.fetch(
            _REVOKE,
            list(latest),
            [r.revoked_at for r in latest.values()],
            [r.reason for r in latest.values()],
            [r.serial for r in latest.values()],
        )
        slots.update(str(row["slot_id"]) for row in rows)
        touched += [row["issuance_id"] for row in rows]
    updated: dict[str, UpdatedSlot] = {}
    if slots:
        updated = await update_slots(
            connection, slots, rotation=rotation, newest=newest, certificates=touched
        )
    numbers = {name: generation.number for s in updated.values() for name, generation in _all(s)}
    ended = [name for name in touched if name in events and name not in numbers]
    if ended:
        rows = await connection.fetch(_NUMBERS, ended)
        numbers |= {row["issuance_id"]: row["generation"] for row in rows}
    scheduled = [_scheduled(event, updated, numbers.get(event.id, 1)) for event in events.values()]
    return Projected(tuple(scheduled), tuple(updated), frozenset(touched))


def _all(slot: UpdatedSlot) -> Iterable[tuple[str, Generation]]:
    return slot.updated.generations.items()


def _scheduled(event: CertificateIssued, updated: dict[str, UpdatedSlot], number: int) -> Scheduled:
    rules = updated[event.slot_id].slot if event.slot_id in updated else event
    due = due_at(
        issued_at=event.issued_at,
        not_after=event.not_after,
        reaction_time=dt.timedelta(seconds=rules.reaction_time_s),
        spread=rules.spread,
        slot_id=event.slot_id,
        generation=number,
    )
    return Scheduled(event, number, due)


async def _insert(connection: Connection, events: list[CertificateIssued]) -> list[str]:
    # One order for all replicas, or two of them wait for each other.
    events.sort(key=lambda e: (e.slot_id, e.issued_at, e.id))
    rows = []
    leader = ""
    for event in events:
        due = due_at(
            issued_at=event.issued_at,
            not_after=event.not_after,
            reaction_time=dt.timedelta(seconds=event.reaction_time_s),
            spread=event.spread,
            slot_id=event.slot_id,
            generation=1,
        )
        rows.append((*_row(event), due, event.slot_id != leader))
        leader = event.slot_id
    columns = [list(column) for column in zip(*rows, strict=True)]
    inserted = await connection.fetch(_INSERT, *columns)
    return [row["issuance_id"] for row in inserted]


def _row(event: CertificateIssued) -> tuple[object, ...]:
    return (
        event.id,
        event.slot_id,
        event.serial,
        event.fingerprint_sha256,
        event.spki_sha256,
        event.predecessor_fingerprint,
        event.not_before,
        event.not_after,
        event.issued_at,
        event.certificate,
        event.correlation_id,
        event.traceparent,
        event.tenant,
        event.service,
        event.profile,
        event.label,
        event.issuer_id,
        event.mode,
        priority_rank(event.priority),
        event.reaction_time_s,
        event.overlap_s,
        event.spread,
        event.expiry == "expected",
    )
