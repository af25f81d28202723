"""Which due slots are claimed, and in which order, with few and with many of them."""

from __future__ import annotations

import pytest

from estcore.runtime.database import Connection, Database
from estsuite_testing.renewal_bench import Bench
from renewal.dispatch.claims import claim, count_due
from renewal.settings import RenewalSettings

pytestmark = pytest.mark.integration
NORMAL = 2
_SLOTS = """
insert into renewal.renewal_slot (slot_id, tenant, service, profile, label, issuer_id, mode,
    priority, reaction_time_s, overlap_s, spread, rules_at, generation, not_after,
    next_attempt_at, state)
select md5('claims' || n)::uuid, 't', 's', 'p', 'l', 'i', 'agent', 2, 60, 60, 0, now(), 1,
    now() + interval '1 hour' + n % 97 * interval '1 minute',
    now() + case when n % 2 = 0 then interval '-1 minute' else interval '1 hour' end, 'idle'
from generate_series(1, $1) n
"""
_EXPECTED = """
select array_agg(not_after order by not_after) from (
    select not_after from renewal.renewal_slot
    where state = 'idle' and next_attempt_at <= now() order by not_after limit 20) due
"""
_CLAIMED = "select not_after from renewal.renewal_slot where slot_id = any($1::uuid[])"


@pytest.mark.parametrize("slots", [60, 900])
async def test_due_slots_that_expire_first_are_claimed_first(
    bench: Bench, migrated: RenewalSettings, slots: int
) -> None:
    """Half of the slots are due: few are sorted, many are read in the order of an index."""
    await bench.database.execute(_SLOTS, slots)
    database = await Database.connect(migrated.database, "renewal", "renewal")
    try:
        async with database.connection() as connection:
            due = await count_due(connection)
        assert due == [0, 0, min(slots // 2, 251), 0]

        async def work(connection: Connection) -> list[str]:
            return await claim(
                connection,
                priority=NORMAL,
                due=due[NORMAL],
                limit=20,
                owner="test",
                traceparent=None,
                leases=migrated.scheduler.lease,
            )

        for _ in range(2):
            expected = await bench.database.fetchval(_EXPECTED)
            rows = await bench.database.fetch(_CLAIMED, await database.run(work))
            assert sorted(row["not_after"] for row in rows) == expected
    finally:
        await database.close()
