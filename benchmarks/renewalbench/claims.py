"""Claims of due slots from a table of millions: latency, and what the tables take on disk.

The statements are renewal's own, each claim with its commit. "After an outage" claims everything
that became due while renewal was stopped, in claims of 500, all priorities; "steady" claims what
became due since the last look, once a second.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from estbench import machine
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
        outage, read_ms = [], 0.0
        for number in range(rounds):
            if number:
                await world.admin.execute(_BACK)
                await world.settle()
            outage.append(await _drain(world))
            progress(f"after an outage: {outage[-1]}")
        read_ms = await _read(world)
        steady = await _steady(world)
        progress(f"steady: {steady}")
    return Claims(
        **found,
        slots=slots,
        due=outage[0].slots,
        claim_size=CLAIM_SIZE,
        fill_s=round(fill_s, 1),
        after_outage=outage,
        steady=steady,
        dispatch_read_ms=read_ms,
        octets=octets,
    )


async def _drain(world: RenewalDatabase) -> ClaimRound:
    """Claim until nothing is due."""
    took: list[float] = []
    claimed = 0
    for priority in range(len(PRIORITIES)):
        while number := await _claim(world, priority, took):
            claimed += number
    return _round(took, claimed)


async def _steady(world: RenewalDatabase) -> ClaimRound:
    took: list[float] = []
    claimed = 0
    for _ in range(_STEADY_LOOKS):
        for priority in range(len(PRIORITIES)):
            claimed += await _claim(world, priority, took)
        await asyncio.sleep(1)
    return _round(took, claimed)


async def _claim(world: RenewalDatabase, priority: int, took: list[float]) -> int:
    """Claim once, with the count before it; notes the milliseconds."""

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

    began = time.perf_counter()
    async with world.database.connection() as connection:
        due = await claims.count_due(connection)
    found = await world.database.run(work) if due[priority] else []
    if found:
        took.append((time.perf_counter() - began) * 1000)
    return len(found)


async def _read(world: RenewalDatabase) -> float:
    """Return the milliseconds to read what the events of 500 dispatched slots need."""
    rows = await world.admin.fetch(
        "select slot_id from renewal.renewal_slot where announced_fence < fence "
        "and state = 'dispatched' order by random() limit 10000"
    )
    ids = [row["slot_id"] for row in rows]
    took = []
    for start in range(0, len(ids), CLAIM_SIZE):
        began = time.perf_counter()
        async with world.database.connection() as connection:
            await connection.fetch(publisher.DUE_OF, ids[start : start + CLAIM_SIZE])
        took.append((time.perf_counter() - began) * 1000)
    return round(statistics.median(took), 1)


def _round(took: list[float], claimed: int) -> ClaimRound:
    return ClaimRound(
        claims=len(took),
        slots=claimed,
        p50_ms=round(quantile(took, 0.5), 1),
        p99_ms=round(quantile(took, 0.99), 1),
        max_ms=round(max(took), 1),
        load_average=round(machine.load_average(), 1),
    )
