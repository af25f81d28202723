"""Claim due slots, and take back those whose lease expired: any number of replicas, no leader.

Rows are locked with SKIP LOCKED, so two replicas never hold the same slot; all time is the
database's. Every dispatch moves the slot's fence on, and what a scheduler writes later counts
only while that fence stands.
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from estcore.pki.profile import PRIORITIES
from estcore.runtime.database import Connection
from renewal import reach
from renewal.rotation.requested_renewal import RECHECK
from renewal.rotation.schedule import MANAGED_LEASE, backoff, lease, overdue_at
from renewal.rotation.store import update_slots
from renewal.settings import LeaseSettings, RotationSettings

_MANY = 250
"""So many due slots are sorted at each claim; where there are more, they are found in order."""
_COUNT_DUE = f"""
select (select count(*) from (select from renewal_slot where state = 'idle' and priority = p
    and next_attempt_at <= now() limit {_MANY + 1}) found) from unnest($1::smallint[]) p order by p
"""  # noqa: S608 - our constant
# By the index over due times. "materialized", or the planner may walk the other index past
# every slot that is not due.
_FEW_DUE = f"""
with due as materialized (select ctid from renewal_slot
    where state = 'idle' and priority = $1 and next_attempt_at <= now() limit {_MANY + 1})
select s.slot_id, s.not_after, s.mode, s.due_at, now() as now
from renewal_slot s join due on s.ctid = due.ctid
where s.state = 'idle' and s.next_attempt_at <= now() and s.not_after > now()
order by s.not_after limit $2 for update of s skip locked
"""  # noqa: S608 - our constant
# By the index over reach, and nothing else until the first are found: of each reach, what expires
# first is due, and nearly all that is read. Some more than are wanted: another replica may hold
# the first.
# Times in UTC without a zone, as this index alone has them: by those of the column the planner
# could take the index over due times for each reach, which is seconds after an outage.
_MANY_DUE = f"""
with due as materialized (select found.slot_id from generate_series(0, {reach.LONGEST}) reach
    cross join lateral (select slot_id, not_after from renewal_slot
        where state = 'idle' and priority = $1 and {reach.REACH} = reach
            and next_attempt_at at time zone 'UTC' <= now() at time zone 'UTC'
            and not_after > now() and not_after <= {reach.END}
        order by not_after limit $2) found
    order by found.not_after limit $2 + $2 / 4)
select s.slot_id, s.not_after, s.mode, s.due_at, now() as now
from due join renewal_slot s using (slot_id)
where s.state = 'idle' and s.not_after > now()
    and s.next_attempt_at at time zone 'UTC' <= now() at time zone 'UTC'
order by s.not_after limit $2 for update of s skip locked
"""  # noqa: S608 - our constants
_UNANSWERED = """
select count(*) from (select from renewal_slot where state = 'dispatched' and attempts = 1
    and mode <> 'poll' and dispatched_at > now() - $1::interval limit $2) found
"""
_DISPATCH = """
update renewal_slot s set
    state = 'dispatched', fence = fence + 1, lease_owner = $3, dispatched_at = now(),
    lease_until = t.lease_until, traceparent = $4, attempts = attempts + 1,
    first_due_at = case when attempts = 0 then now() else first_due_at end
from unnest($1::uuid[], $2::timestamptz[]) as t(slot_id, lease_until)
where s.slot_id = t.slot_id
"""
_LAPSED = """
select slot_id, priority, attempts, not_after, due_at, expiry_expected, now() as now
from renewal_slot where state = 'dispatched' and lease_until < now()
order by lease_until limit $1 for update skip locked
"""
_TAKE_BACK = """
update renewal_slot s set
    state = 'idle', next_attempt_at = t.next_attempt_at,
    lapsed_fence = case when t.overdue then fence else lapsed_fence end,
    announced_fence = fence, lease_until = null,
    last_error_class = case when t.overdue then 'lease' else last_error_class end,
    last_error_at = case when t.overdue then now() else last_error_at end
from unnest($1::uuid[], $2::timestamptz[], $3::boolean[]) as t(slot_id, next_attempt_at, overdue)
where s.slot_id = t.slot_id
"""
_WAITING = """
select exists (select from renewal_slot where state = 'dispatched' and lease_until < now()),
    exists (select from renewal_slot where check_at <= now()),
    exists (select from renewal_slot where announced_fence < fence
        and dispatched_at < now() - $1::interval)
    or exists (select from renewal_slot where announced_lapsed_fence < lapsed_fence
        and last_error_at < now() - $1::interval)
    or exists (select from certificate where reached <> announced
        and changed_at < now() - $1::interval)
    or exists (select from certificate where info_pending
        and changed_at < now() - $1::interval),
    exists (select from renewal_request where checked_at <= now() - $2::interval)
"""
_TO_CHECK = """
select slot_id from renewal_slot where check_at <= now()
order by check_at limit $1 for update skip locked
"""


@dataclass(frozen=True)
class Waiting:
    """What upkeep has to do: leases that ran out, slots whose time came, unpublished events.

    ``requested``: renewals that could not be applied when they were requested.
    """

    lapsed: bool
    to_check: bool
    unpublished: bool
    requested: bool


async def find_waiting(connection: Connection, patience: dt.timedelta) -> Waiting:
    """Return what there is to do, by one statement: mostly nothing.

    What is unpublished for less than ``patience`` is being published.
    """
    (row,) = await connection.fetch(_WAITING, patience, RECHECK)
    return Waiting(*row)


async def count_due(
    connection: Connection, priorities: Sequence[int] = range(len(PRIORITIES))
) -> list[int]:
    """Return how many slots of each of these priorities are due, up to ``_MANY`` and one."""
    return [row[0] for row in await connection.fetch(_COUNT_DUE, priorities)]


class DueCounts:
    """How many slots of each priority are due, counted where claims do not say it.

    A claimed slot stays in the index over due times until that is vacuumed or passed once, and a
    count passes all of them: towards the end of an outage it took longer than the claim. While
    claims of a priority find as many as they want, it has many.
    """

    def __init__(self) -> None:
        self._many: set[int] = set()

    async def count(self, connection: Connection) -> list[int]:
        """Return the counts, ``_MANY`` and one where it is more."""
        due = [_MANY + 1] * len(PRIORITIES)
        unknown = [p for p in range(len(PRIORITIES)) if p not in self._many]
        if unknown:
            for priority, number in zip(unknown, await count_due(connection, unknown), strict=True):
                due[priority] = number
        return due

    def claimed(self, priority: int, *, due: int, limit: int, found: int) -> None:
        """Note how many a claim wanted and found of so many."""
        if due > _MANY and found == limit:
            self._many.add(priority)
        else:
            self._many.discard(priority)


async def count_unanswered(connection: Connection, *, within: dt.timedelta, limit: int) -> int:
    """Return how many slots were announced ``within`` this time and have no new certificate yet.

    At most ``limit``. Repeated announcements do not count, nor clients that poll: both renew, or
    do not, by themselves.
    """
    count: int = await connection.fetchval(_UNANSWERED, within, limit)
    return count


async def claim(
    connection: Connection,
    *,
    priority: int,
    due: int,
    limit: int,
    owner: str,
    traceparent: str | None,
    leases: LeaseSettings,
) -> list[str]:
    """Dispatch up to ``limit`` due slots of one priority, earliest expiry first; returns them.

    ``due`` is what ``count_due`` returned of this priority.
    """
    rows = await connection.fetch(_MANY_DUE if due > _MANY else _FEW_DUE, priority, limit)
    if not rows:
        return []
    longest = leases.longest(PRIORITIES[priority])
    until = [_lease_until(row, longest, leases.share) for row in rows]
    ids = [row["slot_id"] for row in rows]
    await connection.execute(_DISPATCH, ids, until, owner, traceparent)
    return [str(slot_id) for slot_id in ids]


def _lease_until(row: asyncpg.Record, longest: dt.timedelta, share: float) -> dt.datetime:
    """A client that polls is not notified, so nothing is repeated while it may yet renew."""
    now, not_after = row["now"], row["not_after"]
    if row["mode"] == "managed":
        longest = min(longest, MANAGED_LEASE)
    until: dt.datetime = now + lease(longest, remaining=not_after - now, share=share)
    return max(until, overdue_at(row["due_at"], not_after=not_after)) if _polls(row) else until


def _polls(row: asyncpg.Record) -> bool:
    return bool(row["mode"] == "poll")


@dataclass(frozen=True)
class Lapsed:
    """Slots whose lease ran out, and those of them whose client should have renewed by now."""

    slots: list[str]
    overdue: list[str]


async def take_back(
    connection: Connection, *, limit: int, chance: Callable[[], float] = random.random
) -> Lapsed:
    """Return dispatched slots whose lease ran out to idle, each with its pause.

    That is a fault only once the client's window is over, with a margin: before that, a client
    that renews by its renewal information, or by its own clock, may not even have begun. Where an
    end without a successor is expected it is none.
    """
    rows = await connection.fetch(_LAPSED, limit)
    if not rows:
        return Lapsed([], [])
    pauses: list[dt.datetime] = []
    overdue: list[bool] = []
    for row in rows:
        remaining = row["not_after"] - row["now"]
        priority = PRIORITIES[row["priority"]]
        pauses.append(
            row["now"] + backoff(priority, row["attempts"], remaining=remaining, chance=chance())
        )
        late = row["now"] >= overdue_at(row["due_at"], not_after=row["not_after"])
        overdue.append(late and not row["expiry_expected"])
    ids: list[Any] = [row["slot_id"] for row in rows]
    await connection.execute(_TAKE_BACK, ids, pauses, overdue)
    slots = [str(slot_id) for slot_id in ids]
    return Lapsed(slots, [slot for slot, late in zip(slots, overdue, strict=True) if late])


async def let_time_pass(
    connection: Connection, *, limit: int, rotation: RotationSettings
) -> list[str]:
    """Update slots in which an overlap, a certificate or the time for a rotation ended."""
    rows = await connection.fetch(_TO_CHECK, limit)
    ids = [str(row["slot_id"]) for row in rows]
    if ids:
        await update_slots(connection, ids, rotation=rotation)
    return ids
