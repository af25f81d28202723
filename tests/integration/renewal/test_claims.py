"""Which due slots are claimed, and in which order, with few and with many of them."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections import Counter
from typing import Any

import asyncpg
import pytest

from estcore.runtime.database import Connection, Database
from estsuite_testing.many_slots import write_slots
from estsuite_testing.platform import Platform
from estsuite_testing.renewal_bench import Bench
from renewal.dispatch import claims
from renewal.dispatch.claims import claim, count_due, count_unanswered
from renewal.publishing import publisher
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


async def test_what_is_due_is_counted_again_when_claims_find_less_than_they_want(
    bench: Bench, migrated: RenewalSettings
) -> None:
    await bench.database.execute(_SLOTS, 900)
    database = await Database.connect(migrated.database, "renewal", "renewal")
    counts, limit = claims.DueCounts(), 200
    found = list[int]()
    claimed = list[str]()

    async def work(connection: Connection) -> list[str]:
        return await claim(
            connection, priority=NORMAL, due=due[NORMAL], limit=limit, owner="test",
            traceparent=None, leases=migrated.scheduler.lease,
        )  # fmt: skip

    try:
        for _ in range(3):
            async with database.connection() as connection:
                due = await counts.count(connection)
            assert due == [0, 0, 251, 0]
            claimed = await database.run(work)
            counts.claimed(NORMAL, due=due[NORMAL], limit=limit, found=len(claimed))
            found.append(len(claimed))
        async with database.connection() as connection:
            assert await counts.count(connection) == [0, 0, 0, 0]
        await bench.database.execute(
            "update renewal.renewal_slot set state = 'idle' where slot_id = any($1::uuid[])",
            claimed,
        )
        async with database.connection() as connection:
            assert await counts.count(connection) == [0, 0, found[-1], 0]
    finally:
        await database.close()
    assert found == [200, 200, 50]


MANY, LATE = 20_000, dt.timedelta(hours=12)
_DUE = "state = 'idle' and next_attempt_at <= now() and not_after > now() and priority = $1"
_LEFT = f"select count(*) from renewal.renewal_slot where {_DUE}"


async def fleet(bench: Bench, late: dt.timedelta = LATE) -> None:
    """A mixed fleet of which a fiftieth is due, with statistics as autovacuum makes them."""
    await bench.database.execute("select setseed(0.5)")
    await write_slots(bench.database, 1, MANY, late=late)
    await bench.database.execute("vacuum analyze renewal.renewal_slot, renewal.certificate")


async def explained(
    connection: asyncpg.Connection, sql: str, *values: Any, mode: str = "force_generic_plan"
) -> dict[str, Any]:
    """The plan for any values, which a prepared statement gets after some times; what it read."""
    await connection.execute("set search_path to renewal")
    await connection.execute(f"set plan_cache_mode = {mode}")
    text = await connection.fetchval("explain (analyze, buffers, format json) " + sql, *values)
    found: dict[str, Any] = json.loads(text)[0]["Plan"]
    return found


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(n for child in plan.get("Plans", []) for n in nodes(child))]


def pages(plan: dict[str, Any]) -> int:
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


async def test_no_statement_of_a_look_scans_a_table(
    platform: Platform, migrated: RenewalSettings, bench: Bench
) -> None:
    """Most of those that expire first are not due, and a claim does not read them."""
    await fleet(bench)
    waited = dt.timedelta(seconds=10)
    statements: dict[str, tuple[Any, ...]] = {
        "_WAITING": (waited, waited),
        "_COUNT_DUE": ([0, 1, 2, 3],),
        "_UNANSWERED": (waited, 2000),
        "_FEW_DUE": (NORMAL, 100),
        "_MANY_DUE": (NORMAL, 100),
        "_LAPSED": (500,),
        "_TO_CHECK": (500,),
    }
    connection = await platform.postgres.superuser()
    try:
        plans = {
            name: await explained(connection, getattr(claims, name), *values)
            for name, values in statements.items()
        }
    finally:
        await connection.close()
    for name, plan in plans.items():
        scans = [
            n for n in nodes(plan) if n.get("Relation Name") in {"renewal_slot", "certificate"}
        ]
        assert scans, name
        assert [n for n in scans if n["Node Type"] == "Seq Scan"] == [], name
    indexes = {n.get("Index Name") for n in nodes(plans["_MANY_DUE"])}
    assert indexes == {None, "slot_reach", "renewal_slot_pkey"}
    kinds = {n["Node Type"] for n in nodes(plans["_MANY_DUE"]) if n.get("Index Name")}
    assert kinds == {"Index Only Scan", "Index Scan"}
    for node in nodes(plans["_MANY_DUE"]):
        if node["Node Type"] in {"Sort", "Incremental Sort"}:
            assert node["Actual Rows"] <= MANY // 20, node
    # The root and a leaf of the index for each reach, and the pages of the slots themselves.
    # Through the index over expiry alone it would be a page for nearly each slot of the priority.
    assert pages(plans["_MANY_DUE"]) < 3000
    few = [n for n in nodes(plans["_FEW_DUE"]) if n.get("Index Name")]
    assert {n["Index Name"] for n in few} == {"slot_due"}


@pytest.mark.parametrize("late", [LATE, dt.timedelta(0)])
@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
async def test_no_statistics_make_a_claim_read_the_index_of_due_times_for_each_reach(
    platform: Platform, migrated: RenewalSettings, bench: Bench, mode: str, late: dt.timedelta
) -> None:
    """Also with those from before an outage, when hardly anything was due."""
    await fleet(bench, late)
    await bench.database.execute(
        "update renewal.renewal_slot set next_attempt_at = now() - interval '1 hour' "
        "where hashtext(slot_id::text) % 50 = 0"
    )
    connection = await platform.postgres.superuser()
    try:
        plans = [
            await explained(connection, claims._MANY_DUE, priority, 500, mode=mode)
            for priority in range(4)
        ]
    finally:
        await connection.close()
    for plan in plans:
        indexes = {n["Index Name"] for n in nodes(plan) if n.get("Index Name")}
        assert "slot_reach" in indexes
        assert "slot_due" not in indexes


async def test_the_events_of_a_claim_are_read_by_their_slots(
    platform: Platform, migrated: RenewalSettings, bench: Bench
) -> None:
    """However many others are dispatched, which the statistics do not know yet."""
    await fleet(bench)
    await bench.database.execute(
        "update renewal.renewal_slot set state = 'dispatched', fence = fence + 1, "
        "lease_until = now() + interval '1 hour', dispatched_at = now()"
    )
    rows = await bench.database.fetch("select slot_id from renewal.renewal_slot limit 100")
    connection = await platform.postgres.superuser()
    try:
        plan = await explained(connection, publisher.DUE_OF, [row["slot_id"] for row in rows])
    finally:
        await connection.close()
    assert plan["Actual Rows"] == len(rows)
    assert pages(plan) < 1500


async def test_in_a_mixed_fleet_those_that_expire_first_are_claimed_first(
    bench: Bench, migrated: RenewalSettings
) -> None:
    """Every due slot is claimed once, by replicas at the same time, in the order of expiry."""
    await fleet(bench)
    due = await bench.database.fetchval(_LEFT, NORMAL)
    assert due > 500
    databases = [await Database.connect(migrated.database, "renewal", "renewal") for _ in range(2)]
    order: list[str] = []

    async def left(database: Database) -> int:
        async with database.connection() as connection:
            return int(await connection.fetchval(_LEFT, NORMAL))

    async def replica(database: Database, limit: int) -> None:
        async def work(connection: Connection) -> list[str]:
            counted = (await count_due(connection))[NORMAL]
            return await claim(
                connection, priority=NORMAL, due=counted, limit=limit, owner="test",
                traceparent=None, leases=migrated.scheduler.lease,
            )  # fmt: skip

        # An empty claim may only mean that the other replica has them all in hand.
        while await left(database):
            order.extend(await database.run(work))

    try:
        expected = await bench.database.fetch(
            f"select slot_id from renewal.renewal_slot where {_DUE} order by not_after limit 40",
            NORMAL,
        )

        async def first(connection: Connection) -> list[str]:
            return await claim(
                connection, priority=NORMAL, due=due, limit=40, owner="test", traceparent=None,
                leases=migrated.scheduler.lease,
            )  # fmt: skip

        found = await databases[0].run(first)
        assert set(found) == {str(row["slot_id"]) for row in expected}
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for database in databases:
                group.create_task(replica(database, 50))
    finally:
        for database in databases:
            await database.close()
    assert set(Counter([*found, *order]).values()) == {1}
    # Not one fewer: those that became due in between may be more.
    assert len(found) + len(order) >= due


async def test_slots_of_every_reach_are_found(bench: Bench, migrated: RenewalSettings) -> None:
    """Due a minute to forty years before the end, and just now or nearly since their beginning."""
    await bench.database.execute(_SLOTS, 640)
    await bench.database.execute(
        "update renewal.renewal_slot s set next_attempt_at = now() - left_over * (n % 4) / 3.0, "
        "not_after = now() + left_over from (select slot_id, n, interval '1 s' * 60 * exp(n / 38.0) "
        "as left_over from (select slot_id, row_number() over () as n from renewal.renewal_slot) q) t "
        "where t.slot_id = s.slot_id"
    )
    ends = (
        "select extract(epoch from max(not_after) - now()) / 86400 / 365 from renewal.renewal_slot"
    )
    assert await bench.database.fetchval(ends) > 30
    database = await Database.connect(migrated.database, "renewal", "renewal")
    try:
        async with database.connection() as connection, connection.transaction():
            rows = await connection.fetch(claims._MANY_DUE, NORMAL, 1000)
    finally:
        await database.close()
    assert len(rows) == 640


async def test_what_is_unanswered_is_what_was_announced_once_and_lately(
    bench: Bench, migrated: RenewalSettings
) -> None:
    await bench.database.execute(_SLOTS, 60)
    await bench.database.execute(
        "update renewal.renewal_slot set state = 'dispatched', attempts = 1, "
        "dispatched_at = now() - interval '1 s' where next_attempt_at <= now()"
    )
    numbered = "slot_id in (select slot_id from renewal.renewal_slot where state = 'dispatched' "
    for change in (
        "attempts = 2",
        "mode = 'poll'",
        "dispatched_at = now() - interval '1 h'",
        "state = 'overlap'",
    ):
        await bench.database.execute(
            f"update renewal.renewal_slot set {change} where {numbered} and attempts = 1 "
            "and mode = 'agent' and dispatched_at > now() - interval '1 min' limit 2)"
        )
    database = await Database.connect(migrated.database, "renewal", "renewal")
    try:
        async with database.connection() as connection:
            within = dt.timedelta(minutes=1)
            assert await count_unanswered(connection, within=within, limit=100) == 22
            assert await count_unanswered(connection, within=within, limit=5) == 5
    finally:
        await database.close()
