"""Claims of due slots from a table of millions: latency, and what the tables take on disk.

The statements are renewal's own, each claim with its commit. "After an outage" claims everything
that became due while renewal was stopped, in claims of 500, all priorities; "steady" claims what
became due since the last look, once a second.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import Callable
from pathlib import Path

from estbench import machine
from estbench.processes import cpu_s
from estcore.pki.profile import PRIORITIES
from estcore.runtime.database import Connection
from renewal.dispatch import claims
from renewal.publishing import publisher
from renewal.settings import LeaseSettings
from renewalbench.database import RenewalDatabase, renewal_database
from renewalbench.results import ClaimRound, Claims, conditions, quantile

CLAIM_SIZE = 500
DUE_SHARE = 1 / 50
"""100,000 of 5,000,000."""
_PER_SLOT_S = 621_000
"""A slot of the fleet is due once in so many seconds on average."""
_STEADY_LOOKS = 60
_BACK = """
update renewal.renewal_slot set state = 'idle', attempts = 0, lease_until = null,
    announced_fence = fence where state = 'dispatched'
"""


async def measure(
    folder: Path, slots: int, rounds: int, progress: Callable[[str], object]
) -> Claims:
    """Fill a database and claim from it."""
    found = conditions()
    async with renewal_database(folder) as world:
        began = time.monotonic()
        late = dt.timedelta(seconds=DUE_SHARE * _PER_SLOT_S)
        await world.fill(slots, late, progress)
        fill_s = time.monotonic() - began
        octets = await world.octets()
        progress(f"filled in {fill_s:.0f} s, {sum(octets.values()) / 1e9:.1f} GB")
        outage = []
        for number in range(rounds):
            if number:
                await world.admin.execute(_BACK)
                await world.vacuum()
            outage.append(await _Claims(world).drain())
            progress(f"after an outage: {outage[-1]}")
        looks = _Claims(world)
        for _ in range(_STEADY_LOOKS):
            await looks.look()
            await asyncio.sleep(1)
        steady = looks.round()
        progress(f"steady: {steady}")
    return Claims(
        **found,
        slots=slots,
        due=outage[0].slots,
        claim_size=CLAIM_SIZE,
        fill_s=round(fill_s, 1),
        after_outage=outage,
        steady=steady,
        octets=octets,
    )


class _Claims:
    """Claims of a run, timed with their commit; each is announced before the next, as renewal does."""

    def __init__(self, world: RenewalDatabase) -> None:
        self._database, self._pid = world.database, world.postgres.pid
        self._due = claims.DueCounts()
        self._cpu_s = 0.0
        self.claim_ms: list[float] = []
        self.announce_ms: list[float] = []
        self.count_ms: list[float] = []
        self.slots = 0

    async def drain(self) -> ClaimRound:
        """Claim until nothing is due."""
        for priority in range(len(PRIORITIES)):
            while await self.once(priority):
                pass
        return self.round()

    async def look(self) -> None:
        """Claim what is due of each priority."""
        for priority in range(len(PRIORITIES)):
            await self.once(priority)

    async def once(self, priority: int) -> int:
        """Claim once, with the count before it; returns how many."""

        async def work(connection: Connection) -> list[str]:
            return await claims.claim(
                connection,
                priority=priority,
                due=due[priority],
                limit=CLAIM_SIZE,
                owner="benchmark",
                traceparent=None,
                leases=LeaseSettings(),
            )

        began, used = time.perf_counter(), cpu_s(self._pid)
        async with self._database.connection() as connection:
            due = await self._due.count(connection)
        self.count_ms.append((time.perf_counter() - began) * 1000)
        found = await self._database.run(work) if due[priority] else []
        self._due.claimed(priority, due=due[priority], limit=CLAIM_SIZE, found=len(found))
        if found:
            self.claim_ms.append((time.perf_counter() - began) * 1000)
            self._cpu_s += cpu_s(self._pid) - used
            self.slots += len(found)
            await self._announce(found)
        return len(found)

    async def _announce(self, slot_ids: list[str]) -> None:
        """Read what the events need and mark them as published, by publisher's statements."""
        began = time.perf_counter()
        async with self._database.connection() as connection:
            rows = await connection.fetch(publisher.DUE_OF, slot_ids)
            ids, fences = [row["slot_id"] for row in rows], [row["fence"] for row in rows]
            await connection.execute(publisher.MARK_DUE, ids, fences)
        self.announce_ms.append((time.perf_counter() - began) * 1000)

    def round(self) -> ClaimRound:
        """Return the figures."""
        return ClaimRound(
            claims=len(self.claim_ms),
            slots=self.slots,
            p50_ms=round(quantile(self.claim_ms, 0.5), 1),
            p99_ms=round(quantile(self.claim_ms, 0.99), 1),
            cpu_ms=round(self._cpu_s * 1000 / len(self.claim_ms), 1),
            max_ms=round(max(self.claim_ms), 1),
            announce_p50_ms=round(quantile(self.announce_ms, 0.5), 1),
            announce_p99_ms=round(quantile(self.announce_ms, 0.99), 1),
            count_max_ms=round(max(self.count_ms), 1),
            load_average=round(machine.load_average(), 1),
        )
