"""Searching a log with many records in several months: by indexes only, each record once."""

from __future__ import annotations

import datetime as dt
import json
import re
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from audit import search, term_store
from estcore.clock import SystemClock
from estcore.messages.audit_queries import AuditSearch
from estcore.tlog.terms import Term
from estsuite_testing.audit_stack import AuditWorld, empty_world
from estsuite_testing.many_records import found, index_records, write_records
from estsuite_testing.platform import Platform

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
MANY = 20_000
LAST = dt.datetime(2026, 3, 20, 12, 0, tzinfo=dt.UTC)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def many(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> AuditWorld:
    """A log with many records in several months."""
    world = await empty_world(platform, tmp_path_factory.mktemp("many"))
    connection = await world.superuser()
    await write_records(connection, MANY, last=LAST)
    await index_records(connection)
    await connection.execute("vacuum analyze record, record_term, record_chunk")
    await connection.close()
    return world


SCANS = re.compile(r"Seq Scan on record\w*_20(2512|260[123])\b")
"""Of the months that have records: an empty one may be scanned."""


async def plan(connection: asyncpg.Connection, sql: str, *values: Any) -> str:
    """The plan as it is for any values, which is what a prepared statement gets."""
    await connection.execute("set plan_cache_mode = force_generic_plan")
    rows = await connection.fetch("explain (costs false) " + sql, *values)
    return "\n".join(row[0] for row in rows)


async def test_no_search_scans_the_log(many: AuditWorld) -> None:
    since, until = LAST - dt.timedelta(days=20), LAST
    key = Term("action", "certificate.issue").key
    statements = (
        (term_store.POSTINGS, key, since, until, MANY, 128),
        (term_store.POSTINGS_AT, key, [since, until], [1, 2]),
        (term_store.RECORDS, [1, 2, 3], since, until),
        (term_store.BEFORE, MANY, 0, since, until, 50),
        (term_store.AFTER, 5, since, 50),
        (term_store.UNINDEXED, MANY - 5, since, 50),
    )
    connection = await many.superuser()
    try:
        plans = [await plan(connection, sql, *values) for sql, *values in statements]
    finally:
        await connection.close()
    for text in plans:
        assert "Index" in text, text
        assert SCANS.search(text) is None, text


@pytest.mark.parametrize(
    ("conditions", "count"),
    [
        ({"action": "operator.certificate-revoke"}, MANY // 20),
        ({"phase": "denied", "producer": "est-frontend"}, MANY // 20),
        ({"principal": "operator-3"}, 143),
        ({"owner": "t3/s43", "action": "operator.certificate-revoke"}, None),
        ({"name": "host-77.ward-185.clinic.example"}, None),
        ({}, MANY),
    ],
)
async def test_pages_have_every_record_once(
    many: AuditWorld, conditions: dict[str, Any], count: int | None
) -> None:
    rows = await found(many, **conditions, limit=200)
    indexes = [row["log_index"] for row in rows]
    assert indexes == sorted(set(indexes), reverse=True)
    wanted = [term.value for term in search.terms_of(AuditSearch(**conditions))]
    texts = {
        leaf["log_index"]: json.dumps(leaf, separators=(",", ":"))
        for leaf in await many.leaves("true")
    }
    expected = [n for n, text in texts.items() if all(f'"{v}' in text for v in _parts(wanted))]
    if "name" in conditions:
        expected = [n for n, text in texts.items() if f'"dns:{conditions["name"]}"' in text]
    assert sorted(indexes) == expected
    assert len(indexes) > 0
    assert count is None or len(indexes) == count


def _parts(wanted: list[str]) -> list[str]:
    return [f'{part}"' for value in wanted for part in value.split("/")]


async def _rows(world: AuditWorld, sql: str) -> list[asyncpg.Record]:
    connection = await world.superuser()
    try:
        return list(await connection.fetch(sql))
    finally:
        await connection.close()


async def test_a_period_has_exactly_the_records_of_it(many: AuditWorld) -> None:
    since, until = LAST - dt.timedelta(days=40), LAST - dt.timedelta(days=39)
    sql = "select count(*) from record where recorded_at >= $1 and recorded_at < $2"
    count = await many.value(sql, since, until)
    assert count > 100
    assert len(await found(many, since=since, until=until)) == count
    sql += " and action = 'est.simplereenroll'"
    count = await many.value(sql, since, until)
    rows = await found(many, since=since, until=until, action="est.simplereenroll")
    assert len(rows) == count
    assert await found(many, since=SystemClock().now() + dt.timedelta(days=99)) == []
