"""Settling slots in the database: lock, read their certificates, decide, write what changed.

Everything that changes a slot beyond its first certificate comes through here in one
transaction: new certificates, revocations, proofs of use, and time itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import asyncpg

from estcore.messages.events import CertificateIssued
from estcore.runtime.database import Connection
from renewal.rotation.renewal_info import informs
from renewal.rotation.schedule import priority_rank
from renewal.rotation.slot import Slot, after
from renewal.rotation.slot_state import Generation, SlotState, Steps, compute_slot_state
from renewal.settings import RotationSettings

Chance = Callable[[], float]
_SLOT_COLUMNS = ", ".join(f.name for f in fields(Slot))
_SLOTS = (
    f"select {_SLOT_COLUMNS}, now() as now from renewal_slot "  # noqa: S608 - our own names
    "where slot_id = any($1::uuid[]) order by slot_id for update"
)
_GENERATION_COLUMNS = """
    issuance_id, slot_id, fingerprint_sha256, predecessor_fingerprint, issued_at, not_after,
    generation, role, state, replaces, overlap_until, activated_at, proof, reached
"""
_GENERATIONS = f"""
select {_GENERATION_COLUMNS} from certificate
where slot_id = any($1::uuid[]) and role in ('active', 'next')
union
select {_GENERATION_COLUMNS} from certificate
where slot_id = any($1::uuid[]) and role is null and state in ('superseded', 'deprecated')
union
select {_GENERATION_COLUMNS} from certificate
where issuance_id = any($2::text[]) and (generation = 0 or state = 'revoked')
"""  # noqa: S608 - our own names
_CLEAR_ROLES = "update certificate set role = null where issuance_id = any($1::text[])"
_WRITE_GENERATIONS = """
update certificate c set
    generation = t.generation, role = t.role, state = t.state, replaces = t.replaces,
    overlap_until = t.overlap_until, activated_at = t.activated_at, proof = t.proof,
    reached = t.reached, info_pending = c.info_pending or t.informs,
    changed_at = greatest(clock_timestamp(), c.changed_at + interval '1 microsecond')
from unnest($1::text[], $2::int[], $3::text[], $4::text[], $5::text[], $6::timestamptz[],
            $7::timestamptz[], $8::text[], $9::smallint[], $10::boolean[])
    as t(id, generation, role, state, replaces, overlap_until, activated_at, proof, reached,
         informs)
where c.issuance_id = t.id
"""
_INFORM = """
update certificate set info_pending = true,
    changed_at = greatest(clock_timestamp(), changed_at + interval '1 microsecond')
where issuance_id = any($1::text[])
"""
_WRITE_SLOTS = """
update renewal_slot s set
    tenant = t.tenant, service = t.service, profile = t.profile, label = t.label,
    mode = t.mode, priority = t.priority, reaction_time_s = t.reaction_time_s,
    overlap_s = t.overlap_s, spread = t.spread, rules_at = t.rules_at,
    active_id = t.active_id, next_id = t.next_id, generation = t.generation,
    not_before = (select c.not_before from certificate c where c.issuance_id = t.active_id),
    not_after = t.not_after, due_at = t.due_at, next_attempt_at = t.next_attempt_at,
    check_at = t.check_at, state = t.state, attempts = t.attempts,
    first_due_at = t.first_due_at, last_error_class = t.last_error_class,
    fence = t.fence, announced_fence = t.announced_fence,
    due_reason = t.due_reason, renew_by = t.renew_by, explanation_url = t.explanation_url,
    expiry_expected = t.expiry_expected,
    lease_until = case when t.state = 'dispatched' then s.lease_until end
from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
            $7::text[], $8::smallint[], $9::int[], $10::int[], $11::float8[],
            $12::timestamptz[], $13::text[], $14::text[], $15::int[], $16::timestamptz[],
            $17::timestamptz[], $18::timestamptz[], $19::timestamptz[], $20::text[],
            $21::int[], $22::timestamptz[], $23::text[], $24::bigint[], $25::bigint[],
            $26::text[], $27::timestamptz[], $28::text[], $29::boolean[])
    as t(slot_id, tenant, service, profile, label, issuer_id, mode, priority,
         reaction_time_s, overlap_s, spread, rules_at, active_id, next_id, generation,
         not_after, due_at, next_attempt_at, check_at, state, attempts, first_due_at,
         last_error_class, fence, announced_fence, due_reason, renew_by, explanation_url,
         expiry_expected)
where s.slot_id = t.slot_id
"""


@dataclass(frozen=True)
class UpdatedSlot:
    """A slot's row and its certificates after the transaction."""

    slot: Slot
    updated: SlotState


async def update_slots(
    connection: Connection,
    slot_ids: Iterable[str],
    *,
    rotation: RotationSettings,
    newest: Mapping[str, CertificateIssued] | None = None,
    certificates: Sequence[str] = (),
    proven: Callable[[Generation], Generation] | None = None,
    chance: Chance = random.random,
) -> dict[str, UpdatedSlot]:
    """Compute the slots' states and write what changed; returns them by id.

    ``newest`` brings each slot's latest rules, ``certificates`` names new or revoked rows to look
    at besides those that are live, ``proven`` marks the certificate whose use was proven.
    """
    ids = sorted(set(slot_ids))
    rows = await connection.fetch(_SLOTS, ids)
    by_slot: dict[str, list[Generation]] = {}
    before: dict[str, Generation] = {}
    for row in await connection.fetch(_GENERATIONS, ids, list(certificates)):
        generation = _generation(row)
        before[generation.issuance_id] = generation
        by_slot.setdefault(str(row["slot_id"]), []).append(
            proven(generation) if proven else generation
        )
    done: dict[str, UpdatedSlot] = {}
    succeeded: list[str] = []
    for row in rows:
        old = _slot(row)
        slot = _with_rules(old, (newest or {}).get(old.slot_id))
        updated = compute_slot_state(
            by_slot.get(slot.slot_id, ()),
            rules=slot.rules(rotation),
            now=row["now"],
            last_number=slot.generation,
        )
        changed = after(slot, updated, now=row["now"], chance=chance())
        done[slot.slot_id] = UpdatedSlot(changed, updated)
        if changed.mode == "managed" and changed.active_id and changed.next_id != old.next_id:
            succeeded.append(changed.active_id)
    await _write(connection, before, done)
    if succeeded:
        await connection.execute(_INFORM, succeeded)
    return done


async def _write(
    connection: Connection, before: Mapping[str, Generation], done: Mapping[str, UpdatedSlot]
) -> None:
    changed = [
        generation
        for slot in done.values()
        for generation in slot.updated.generations.values()
        if generation != before[generation.issuance_id]
    ]
    cleared = [
        generation.issuance_id
        for generation in changed
        if (role := before[generation.issuance_id].role) is not None and role != generation.role
    ]
    if cleared:
        # First, so that no two rows of a slot have the same role in between.
        await connection.execute(_CLEAR_ROLES, cleared)
    if changed:
        values = [[*_values(g), informs(before[g.issuance_id], g)] for g in changed]
        await connection.execute(_WRITE_GENERATIONS, *_columns(values))
    rows = [[getattr(s.slot, f.name) for f in fields(Slot)] for s in done.values()]
    if rows:
        await connection.execute(_WRITE_SLOTS, *_columns(rows))


def _columns(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _values(generation: Generation) -> list[Any]:
    return [
        generation.issuance_id,
        generation.number,
        generation.role,
        generation.state,
        generation.replaces,
        generation.overlap_until,
        generation.activated_at,
        generation.proof,
        int(generation.reached),
    ]


def _generation(row: asyncpg.Record) -> Generation:
    return Generation(
        issuance_id=row["issuance_id"],
        fingerprint=row["fingerprint_sha256"],
        predecessor=row["predecessor_fingerprint"],
        issued_at=row["issued_at"],
        not_after=row["not_after"],
        number=row["generation"],
        role=row["role"],
        state=row["state"],
        replaces=row["replaces"],
        overlap_until=row["overlap_until"],
        activated_at=row["activated_at"],
        proof=row["proof"],
        reached=Steps(row["reached"]),
    )


def _slot(row: asyncpg.Record) -> Slot:
    values = {f.name: row[f.name] for f in fields(Slot)}
    values["slot_id"] = str(values["slot_id"])
    return Slot(**values)


def _with_rules(slot: Slot, event: CertificateIssued | None) -> Slot:
    """The newest certificate of a slot says under which rules it lives."""
    if event is None or event.issued_at < slot.rules_at:
        return slot
    return replace(
        slot,
        tenant=event.tenant,
        service=event.service,
        profile=event.profile,
        label=event.label,
        mode=event.mode,
        expiry_expected=event.expiry == "expected",
        priority=priority_rank(event.priority),
        reaction_time_s=event.reaction_time_s,
        overlap_s=event.overlap_s,
        spread=event.spread,
        rules_at=event.issued_at,
    )
