"""Early renewals: slots become due before their time, for a reason an operator knows.

The slot's ``due_at`` moves, so its window does at once, and ``rotation.due`` carries the reason.
A slot that is due already gets the reason and the end of the window. One whose managed renewal
ca-signer refused is tried again. Of several early renewals the
one that ends first counts. The next certificate of the slot has its own time again.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from estcore.errors import MalformedRequest
from estcore.messages.events import EarlyReason
from estcore.messages.renewal_info import MOST_URL
from estcore.runtime.database import Connection

_MOVE = """
with locked as (
    select slot_id from renewal_slot where slot_id = any($1::uuid[]) order by slot_id for update
)
update renewal_slot s set
    due_at = least(s.due_at, t.due_at), due_reason = t.reason, renew_by = t.renew_by,
    explanation_url = t.url,
    next_attempt_at = case s.state when 'idle' then least(s.next_attempt_at, t.due_at)
                                   when 'failed' then t.due_at else s.next_attempt_at end,
    state = case s.state when 'failed' then 'idle' else s.state end
from unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[], $4::text[], $5::text[])
    as t(slot_id, due_at, renew_by, reason, url) join locked using (slot_id)
where s.slot_id = t.slot_id and s.state in ('idle', 'dispatched', 'failed') and s.not_after > now()
    and (t.due_at < s.due_at
        or s.due_reason is null and s.due_at <= now()
        or s.due_reason is not null and t.renew_by < coalesce(s.renew_by, 'infinity'))
returning s.slot_id, s.active_id
"""
_INFORM = """
update certificate set info_pending = true,
    changed_at = greatest(clock_timestamp(), changed_at + interval '1 microsecond')
where issuance_id = any($1::text[])
"""


@dataclass(frozen=True)
class EarlyRenewal:
    """One slot that is to be renewed from ``due_at`` on, at best by ``renew_by``."""

    slot_id: str
    due_at: dt.datetime
    reason: EarlyReason
    renew_by: dt.datetime | None = None
    explanation_url: str | None = None

    def __post_init__(self) -> None:
        """Refuse a URL that no answer could carry.

        Raises:
            MalformedRequest: it is too long, or has characters that no URL has.
        """
        url = self.explanation_url
        if url is not None and (len(url) > MOST_URL or not (url.isascii() and url.isprintable())):
            raise MalformedRequest(
                f"the explanation URL has more than {MOST_URL} characters, or some that no URL has",
                code="renewal_info.url",
            )


async def renew_early(connection: Connection, renewals: Sequence[EarlyRenewal]) -> list[str]:
    """Move slots forward in the caller's transaction; returns the ids of those that moved.

    A slot that will be due sooner by itself stays as it is, and so does one in overlap: it has a
    new certificate already. Publish with ``RotationPublisher.rotations`` after the commit; the
    sweeper does it where the process ends before.
    """
    rows = await connection.fetch(
        _MOVE,
        [r.slot_id for r in renewals],
        [r.due_at for r in renewals],
        [r.renew_by for r in renewals],
        [r.reason for r in renewals],
        [r.explanation_url for r in renewals],
    )
    await connection.execute(_INFORM, [row["active_id"] for row in rows])
    return [str(row["slot_id"]) for row in rows]
