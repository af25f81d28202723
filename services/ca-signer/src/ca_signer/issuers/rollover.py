"""Rollover of an issuer as a state machine: one transition per transaction.

    planned ──► published ──► signing ──► retired
       └────────────┴──► rolled_back  └──► reversed (by a rollover back that is signing)

- planned: named and checked, not visible to clients.
- published: ``/cacerts`` has the new chain and the certificates that link the roots; downloads of
  it are counted by slot.
- signing: the new generation signs; certificates of both are accepted.
- retired: the old generation leaves ``/cacerts`` and its certificates identify no client; its CRLs
  go on.

A signature cannot be undone: a mistaken switch is ended by a rollover back. Rows are locked by
issuer, so concurrent commands take turns.
"""

from __future__ import annotations

from dataclasses import dataclass

import asyncpg

from ca_signer.issuers.generations import GenerationState
from estcore import ids
from estcore.errors import Conflict
from estcore.policy.internal_profiles import INTERNAL_PROFILES
from estcore.runtime.database import Connection

_COUNTING_S = 120

_LIVE = """issuer_id in (select issuer_id from generation where family = $1)
  and state = 'issued' and revoked_at is null and not_after > now()
  and profile <> all($3::text[])"""
# A slot counts once, however many live certificates it has in an overlap.
_COUNTED = f"""select count(distinct i.slot_id) as fleet, count(distinct t.slot_id) as fetched
from issuance i left join trust_seen t on t.rollover_id = $2 and t.slot_id = i.slot_id
where {_LIVE}"""  # noqa: S608 - ours
# By the index over slots, so that a page costs no more where there are many.
_LACKING = f"""select i.* from (
  select slot_id from issuance where {_LIVE} and ($4::uuid is null or slot_id > $4)
    and not exists (select 1 from trust_seen t
      where t.rollover_id = $2 and t.slot_id = issuance.slot_id)
  group by slot_id order by slot_id limit $5) f
cross join lateral (
  select slot_id, issuer_id, tenant, service, profile, subject, san, serial_number, not_after
  from issuance where slot_id = f.slot_id and {_LIVE}
  order by not_after desc, issued_at desc limit 1) i
order by i.slot_id"""  # noqa: S608 - ours
# Slots in which nothing but the old generation has a live certificate.
_LEFT_BEHIND = f"""select count(*) from (
  select slot_id from issuance where {_LIVE}
  group by slot_id having bool_and(issuer_id = $2)) s"""  # noqa: S608 - ours


@dataclass(frozen=True)
class AdoptionCount:
    """How many slots have a live certificate, and how many of them fetched the trust."""

    slots: int
    fetched: int

    def reaches(self, percent: int) -> bool:
        """Return whether at least so many of a hundred have fetched."""
        return self.fetched * 100 >= percent * self.slots


async def begin(
    connection: Connection, family: str, to_issuer: str, by: str
) -> tuple[asyncpg.Record, bool]:
    """Plan a rollover; returns its row, and whether it is new.

    Raises:
        Conflict: another one is under way, or the issuer has had its time.
    """
    await _lock(connection, family)
    await connection.execute(
        "insert into generation (issuer_id, family, state) values ($1, $1, 'signing') "
        "on conflict do nothing",
        family,
    )
    under_way = await _row(connection, family, "planned", "published")
    if under_way is not None:
        if (under_way["state"], under_way["to_issuer"]) == ("planned", to_issuer):
            return under_way, False
        raise Conflict(
            f"a rollover to {under_way['to_issuer']} is {under_way['state']}", code="rollover.open"
        )
    overlap = await _row(connection, family, "signing")
    if overlap is not None and overlap["from_issuer"] != to_issuer:
        raise Conflict(
            f"the overlap with {overlap['from_issuer']} has not ended: retire it first",
            code="rollover.open",
        )
    signing = await connection.fetchval(
        "select issuer_id from generation where family = $1 and state = 'signing'", family
    )
    state = await connection.fetchval(
        "select state from generation where issuer_id = $1", to_issuer
    )
    if state in {"signing", "retired"}:
        raise Conflict(f"{to_issuer} is {state} already", code="rollover.state")
    if state != "accepted":
        await _set(connection, to_issuer, family, "planned")
    rows = await connection.fetch(
        "insert into rollover (rollover_id, family, from_issuer, to_issuer, state, changed_by) "
        "values ($1, $2, $3, $4, 'planned', $5) returning *",
        ids.uuid7(),
        family,
        signing,
        to_issuer,
        by,
    )
    return rows[0], True


async def publish(connection: Connection, family: str, by: str) -> tuple[asyncpg.Record, bool]:
    """Show the new generation's chain; returns the row, and whether it changed.

    Raises:
        Conflict: nothing is planned.
    """
    await _lock(connection, family)
    row = await under_way(connection, family)
    if row["state"] == "published":
        return row, False
    await connection.execute(
        "update generation set state = 'published', changed_at = now() "
        "where issuer_id = $1 and state = 'planned'",
        row["to_issuer"],
    )
    return await _step(connection, row, "published", by, "published_at = now()"), True


async def sign(
    connection: Connection, family: str, by: str, *, least_percent: int
) -> tuple[asyncpg.Record, bool]:
    """Let the new generation sign; returns the row, and whether it changed.

    Raises:
        Conflict: it is not published, or fewer than ``least_percent`` have fetched the trust.
    """
    await _lock(connection, family)
    open_one = await _row(connection, family, "planned", "published")
    overlap = await _row(connection, family, "signing")
    if open_one is None and overlap is not None:
        return overlap, False
    row = open_one or await under_way(connection, family)
    if row["state"] != "published":
        raise Conflict("trust is published before it is used", code="rollover.state")
    fleet = await count(connection, row)
    if not fleet.reaches(least_percent):
        raise Conflict(
            f"{fleet.fetched} of {fleet.slots} have fetched the new trust, "
            f"not {least_percent} percent",
            code="rollover.not_fetched",
        )
    if overlap is not None:
        # A rollover back: what it undoes has come to nothing.
        await _step(connection, overlap, "reversed", by, "ended_at = now()")
    await _set(connection, row["from_issuer"], family, "accepted")
    await _set(connection, row["to_issuer"], family, "signing")
    await connection.execute(
        "update rollover set fleet = $2, fetched = $3 where rollover_id = $1",
        row["rollover_id"],
        fleet.slots,
        fleet.fetched,
    )
    return await _step(connection, row, "signing", by, "signing_at = now()"), True


async def retire(
    connection: Connection, family: str, by: str, *, left_behind: int
) -> tuple[asyncpg.Record, bool]:
    """End the overlap; returns the row, and whether it changed.

    Raises:
        Conflict: nothing overlaps, an intent of the old generation is still open, or more than
            ``left_behind`` slots have nothing but its certificates.
    """
    await _lock(connection, family)
    overlap = await _row(connection, family, "signing")
    if overlap is None:
        last = await _last(connection, family)
        if last is not None and last["state"] == "retired":
            return last, False
        raise Conflict("there is no overlap to end", code="rollover.state")
    if await _row(connection, family, "planned", "published") is not None:
        raise Conflict("a rollover back is under way", code="rollover.open")
    old = overlap["from_issuer"]
    intended = await connection.fetchval(
        "select true from issuance where state = 'intended' and issuer_id = $1 "
        "and profile <> all($2::text[]) limit 1",
        old,
        list(INTERNAL_PROFILES),
    )
    if intended:
        raise Conflict(f"{old} still has requests in hand; again later", code="rollover.intents")
    await _patiently(connection)
    slot_count = await connection.fetchval(
        _LEFT_BEHIND, family, old, list(INTERNAL_PROFILES), timeout=_COUNTING_S
    )
    if slot_count > left_behind:
        raise Conflict(
            f"{slot_count} slots have live certificates of {old} and none of its successor",
            code="rollover.left_behind",
        )
    await _set(connection, old, family, "retired")
    return await _step(connection, overlap, "retired", by, "ended_at = now()"), True


async def roll_back(connection: Connection, family: str, by: str) -> tuple[asyncpg.Record, bool]:
    """Give up a rollover that signs nothing yet; returns the row, and whether it changed.

    Raises:
        Conflict: none is planned or published.
    """
    await _lock(connection, family)
    row = await _row(connection, family, "planned", "published")
    if row is None:
        last = await _last(connection, family)
        if last is not None and last["state"] == "rolled_back":
            return last, False
        signing = last is not None and last["state"] == "signing"
        why = "it signs: plan a rollover back" if signing else "no rollover is under way"
        raise Conflict(why, code="rollover.state")
    await connection.execute(
        "update generation set state = 'withdrawn', changed_at = now() "
        "where issuer_id = $1 and state in ('planned', 'published')",
        row["to_issuer"],
    )
    return await _step(connection, row, "rolled_back", by, "ended_at = now()"), True


async def under_way(connection: Connection, family: str) -> asyncpg.Record:
    """Return the rollover that is planned or published.

    Raises:
        Conflict: there is none.
    """
    row = await _row(connection, family, "planned", "published")
    if row is None:
        raise Conflict(f"no rollover of {family} is planned", code="rollover.state")
    return row


async def count(connection: Connection, row: asyncpg.Record) -> AdoptionCount:
    """Return how many slots the rollover concerns, and how many have fetched its trust."""
    await _patiently(connection)
    rows = await connection.fetch(
        _COUNTED,
        row["family"],
        row["rollover_id"],
        list(INTERNAL_PROFILES),
        timeout=_COUNTING_S,
    )
    return AdoptionCount(rows[0]["fleet"], rows[0]["fetched"])


async def lacking(
    connection: Connection, row: asyncpg.Record, *, after: object, limit: int
) -> list[asyncpg.Record]:
    """Return slots that have not fetched the trust, in order of their ids, after one."""
    rows: list[asyncpg.Record] = await connection.fetch(
        _LACKING, row["family"], row["rollover_id"], list(INTERNAL_PROFILES), after, limit
    )
    return rows


async def _patiently(connection: Connection) -> None:
    """Let the rest of this transaction take longer: it looks at every live certificate."""
    await connection.execute(f"set local statement_timeout = '{_COUNTING_S}s'")


async def _lock(connection: Connection, family: str) -> None:
    await connection.execute(
        "select pg_advisory_xact_lock(hashtextextended($1, 0))", f"rollover/{family}"
    )


async def _row(connection: Connection, family: str, *states: str) -> asyncpg.Record | None:
    return await connection.fetchrow(
        "select * from rollover where family = $1 and state = any($2::text[])", family, states
    )


async def _last(connection: Connection, family: str) -> asyncpg.Record | None:
    return await connection.fetchrow(
        "select * from rollover where family = $1 order by planned_at desc limit 1", family
    )


async def _set(connection: Connection, issuer_id: str, family: str, state: GenerationState) -> None:
    await connection.execute(
        "insert into generation (issuer_id, family, state) values ($1, $2, $3) "
        "on conflict (issuer_id) do update set state = excluded.state, changed_at = now()",
        issuer_id,
        family,
        state,
    )


async def _step(
    connection: Connection, row: asyncpg.Record, state: str, by: str, moment: str
) -> asyncpg.Record:
    rows = await connection.fetch(
        f"update rollover set state = $2, changed_by = $3, {moment} "  # noqa: S608 - ours
        "where rollover_id = $1 returning *",
        row["rollover_id"],
        state,
        by,
    )
    return rows[0]
