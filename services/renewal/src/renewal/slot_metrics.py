"""Gauges about slots, counted now and then; only what an index answers quickly."""

from __future__ import annotations

import asyncio
import logging

from estcore.errors import LedgerUnavailable
from estcore.runtime.database import Database
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop
from renewal.metrics import OVERDUE_S, SHORT_LIFE, SLOTS

log = logging.getLogger(__name__)

STATES = ("idle", "due", "dispatched", "issued", "overlap", "failed", "expired", "paused", "ended")
COUNT = """
select state, count(*) as count,
    count(*) filter (where not expiry_expected
        and not_after - now() < (not_after - not_before) * 0.25) as quarter,
    count(*) filter (where not expiry_expected
        and not_after - now() < (not_after - not_before) * 0.1) as tenth,
    coalesce(extract(epoch from now() - min(next_attempt_at) filter (
        where state = 'idle' and next_attempt_at <= now())), 0)::float8 as overdue
from renewal_slot group by state
"""


async def run_gauges(database: Database, every_s: float, stop: asyncio.Event) -> None:
    """Count until stopped; an outage leaves the last numbers."""
    while not await sleep_or_stop(stop, every_s):
        try:
            await count(database)
        except LedgerUnavailable as exc:
            log.warning("slots not counted", extra=fields(error=exc.reason))


async def count(database: Database) -> None:
    """Set the gauges once.

    Raises:
        LedgerUnavailable: the database is unavailable.
    """
    async with database.connection() as connection:
        rows = {row["state"]: row for row in await connection.fetch(COUNT)}
    # A slot that failed has a certificate where its managed renewal was refused.
    live = [row for state, row in rows.items() if state not in {"expired", "ended"}]
    for state in STATES:
        SLOTS.labels(state).set(rows[state]["count"] if state in rows else 0)
    SHORT_LIFE.labels("0.25").set(sum(row["quarter"] for row in live))
    SHORT_LIFE.labels("0.10").set(sum(row["tenth"] for row in live))
    OVERDUE_S.set(max((row["overdue"] for row in live), default=0))
