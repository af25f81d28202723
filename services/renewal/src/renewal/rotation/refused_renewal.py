"""Managed renewals that ca-signer refuses for good: their rotations end.

The slot is ``failed`` until its client enrolls by itself, an operator's campaign requests its
renewal, or its certificate ends. Its renewal information says no more that ca-signer renews it, so
a client that polls renews by itself within its window.
"""

from __future__ import annotations

from collections.abc import Sequence

from estcore.messages.events import RenewalRefused
from estcore.runtime.database import Connection

_FAIL = """
with locked as (
    select slot_id from renewal_slot where slot_id = any($1::uuid[]) order by slot_id for update
), failed as (
    update renewal_slot s set state = 'failed', next_attempt_at = null, lease_until = null,
        announced_fence = s.fence, last_error_class = t.code, last_error_at = now()
    from unnest($1::uuid[], $2::bigint[], $3::text[]) as t(slot_id, fence, code)
        join locked using (slot_id)
    where s.slot_id = t.slot_id and s.fence = t.fence and s.mode = 'managed'
        and s.state in ('dispatched', 'idle')
    returning s.slot_id, s.active_id
), informed as (
    update certificate set info_pending = true,
        changed_at = greatest(clock_timestamp(), changed_at + interval '1 microsecond')
    where issuance_id in (select active_id from failed)
)
select slot_id from failed
"""


async def fail_renewals(connection: Connection, events: Sequence[RenewalRefused]) -> list[str]:
    """End the rotations in the caller's transaction; returns the ids of slots that failed now.

    A refusal of an earlier request, or of a slot that moved on, changes nothing.
    """
    if not events:
        return []
    latest = {e.slot_id: e for e in sorted(events, key=lambda e: e.fence)}
    rows = await connection.fetch(
        _FAIL,
        list(latest),
        [e.fence for e in latest.values()],
        [e.code for e in latest.values()],
    )
    return [str(row["slot_id"]) for row in rows]
