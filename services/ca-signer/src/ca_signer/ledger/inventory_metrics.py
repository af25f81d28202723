"""How many certificates there are, and which run out without a successor: gauges for alarms.

Counted in the directory every few minutes by each signer, so any of them can be asked; a million
rows take about a second (benchmarks/search.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

import asyncpg

from ca_signer import metrics
from estcore.errors import Unavailable
from estcore.runtime.database import Database
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop

log = logging.getLogger(__name__)

STATES = """select issuer_id, profile, case when revoked_at is not null then 'revoked'
  when not_after <= now() then 'expired' else 'good' end as label, count(*) as count
from certificate group by 1, 2, 3"""
EXPIRING = """select issuer_id, profile, w.label, count(c.no) filter (
  where c.not_after < now() + w.span) as count
from certificate c cross join (values ('1d', interval '1 day'), ('7d', interval '7 days'),
  ('30d', interval '30 days')) w(label, span)
where c.revoked_at is null and c.not_after > now() and c.not_after < now() + interval '30 days'
  and not exists (select 1 from certificate n
    where n.slot_id = c.slot_id and n.no > c.no and n.revoked_at is null)
group by 1, 2, 3"""


class InventoryMetrics:
    """Counts, and remembers which series it set, so that none outlives what it counted."""

    def __init__(self, database: Database, *, every_s: float) -> None:
        self._database = database
        self._every_s = every_s
        self._set: set[tuple[str, tuple[str, str, str]]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Count now and every ``every_s`` until stopped."""
        stopping = False
        while not stopping:
            try:
                await self.count()
            except Unavailable as exc:
                log.warning("certificates not counted", extra=fields(code=exc.code))
            stopping = await sleep_or_stop(stop, self._every_s)

    async def count(self) -> None:
        """Set the gauges to what the directory holds.

        Raises:
            Unavailable: the database is unavailable, or too slow for it.
        """
        async with self._database.connection() as connection:
            states = await connection.fetch(STATES)
            expiring = await connection.fetch(EXPIRING)
        previous, self._set = self._set, set()
        self._take("states", states)
        self._take("expiring", expiring)
        for name, labels in previous - self._set:
            _GAUGES[name].labels(*labels).set(0)

    def _take(self, name: str, rows: Iterable[asyncpg.Record]) -> None:
        for row in rows:
            labels = (row["issuer_id"], row["profile"], row["label"])
            _GAUGES[name].labels(*labels).set(row["count"])
            self._set.add((name, labels))


_GAUGES = {"states": metrics.CERTIFICATES, "expiring": metrics.EXPIRING}
