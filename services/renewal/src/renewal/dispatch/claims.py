"""Claim due slots, and take back those whose lease expired: any number of replicas, no leader.

Rows are locked with SKIP LOCKED, so two replicas never hold the same slot; all time is the
database's. Every dispatch moves the slot's fence on, and what a scheduler writes later counts
only while that fence stands.
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable
from typing import Any

from estcore.pki.profile import PRIORITIES
from estcore.runtime.database import Connection
from renewal.rotation.schedule import backoff, lease
from renewal.rotation.store import update_slots
from renewal.settings import LeaseSettings, RotationSettings

_DUE = """
select slot_id, not_after, now() as now from renewal_slot
where state = 'idle' and next_attempt_at <= now() and priority = $1 and not_after > now()
order by not_after limit $2 for update skip locked
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
select slot_id, priority, attempts, not_after, now() as now from renewal_slot
where state = 'dispatched' and lease_until < now()
order by lease_until limit $1 for update skip locked
"""
_TAKE_BACK = """
update renewal_slot s set
    state = 'idle', next_attempt_at = t.next_attempt_at, lapsed_fence = fence,
    announced_fence = fence, lease_until = null, last_error_class = 'lease',
    last_error_at = now()
from unnest($1::uuid[], $2::timestamptz[]) as t(slot_id, next_attempt_at)
where s.slot_id = t.slot_id
"""
_TO_CHECK = """
select slot_id from renewal_slot where check_at <= now()
order by check_at limit $1 for update skip locked
"""


async def claim(
    connection: Connection,
    *,
    priority: int,
    limit: int,
    owner: str,
    traceparent: str | None,
    leases: LeaseSettings,
) -> list[str]:
    """Dispatch up to ``limit`` due slots of one priority, earliest expiry first; returns them."""
    rows = await connection.fetch(_DUE, priority, limit)
    if not rows:
        return []
    longest = leases.longest(PRIORITIES[priority])
    until = [
        row["now"] + lease(longest, remaining=row["not_after"] - row["now"], share=leases.share)
        for row in rows
    ]
    ids = [row["slot_id"] for row in rows]
    await connection.execute(_DISPATCH, ids, until, owner, traceparent)
    return [str(slot_id) for slot_id in ids]


async def take_back(
    connection: Connection, *, limit: int, chance: Callable[[], float] = random.random
) -> list[str]:
    """Return dispatched slots whose lease ran out to idle, each with its pause; returns them."""
    rows = await connection.fetch(_LAPSED, limit)
    if not rows:
        return []
    pauses: list[dt.datetime] = []
    for row in rows:
        remaining = row["not_after"] - row["now"]
        priority = PRIORITIES[row["priority"]]
        pauses.append(
            row["now"] + backoff(priority, row["attempts"], remaining=remaining, chance=chance())
        )
    ids: list[Any] = [row["slot_id"] for row in rows]
    await connection.execute(_TAKE_BACK, ids, pauses)
    return [str(slot_id) for slot_id in ids]


async def let_time_pass(
    connection: Connection, *, limit: int, rotation: RotationSettings
) -> list[str]:
    """Update slots in which an overlap, a certificate or the time for a rotation ended."""
    rows = await connection.fetch(_TO_CHECK, limit)
    ids = [str(row["slot_id"]) for row in rows]
    if ids:
        await update_slots(connection, ids, rotation=rotation)
    return ids
