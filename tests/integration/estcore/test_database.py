"""Whether PostgreSQL can be used, as a service sees it: the heartbeat, against a real server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from estcore.clock import unix_ms
from estcore.errors import LedgerUnavailable
from estcore.runtime.database import Database
from estsuite_testing.audit_stack import AuditWorld, empty_world
from estsuite_testing.platform import Platform

pytestmark = pytest.mark.integration


@pytest.fixture
async def world(platform: Platform, tmp_path: Path) -> AuditWorld:
    return await empty_world(platform, tmp_path)


@pytest.fixture
async def database(world: AuditWorld) -> AsyncIterator[Database]:
    database = await Database.connect(world.settings().database, "audit", "audit")
    yield database
    await database.close()


@contextlib.asynccontextmanager
async def broken(world: AuditWorld, statement: str, repair: str) -> AsyncIterator[None]:
    """Something is wrong with the database for as long as the context lasts."""
    connection = await world.superuser()
    await connection.execute(statement)
    try:
        yield
    finally:
        await connection.execute(repair)
        await connection.close()


async def end_sessions(world: AuditWorld) -> None:
    """Let sessions begin anew, with the settings of now."""
    await world.value(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = 'audit'"
    )


async def test_a_heartbeat_compares_the_clocks(database: Database) -> None:
    assert await database.alive()
    assert database.ready
    assert abs(database.clock.offset_s) < 5


async def test_a_schema_that_no_migration_made_is_named(
    world: AuditWorld, database: Database
) -> None:
    async with broken(
        world, "alter table audit.head rename to other", "alter table audit.other rename to head"
    ):
        with pytest.raises(LedgerUnavailable, match="not there yet; waiting for migrate"):
            async with database.connection() as connection:
                await connection.fetch("select * from head")


BROKEN = {
    "read-only": (
        "alter role audit set default_transaction_read_only = on",
        "alter role audit reset default_transaction_read_only",
    ),
    "schema dropped": (
        "alter schema audit rename to audit_gone",
        "alter schema audit_gone rename to audit",
    ),
    "inserts raise": (
        "create function fail() returns trigger language plpgsql as "
        "$$ begin raise exception 'no'; end $$; "
        "create trigger fail before update on heartbeat for each row execute function fail()",
        "drop trigger fail on heartbeat; drop function fail()",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
async def test_a_database_that_cannot_be_written_stays_unavailable_though_it_can_be_read(
    world: AuditWorld, database: Database, fault: str
) -> None:
    async with broken(world, *BROKEN[fault]):
        await end_sessions(world)
        async with asyncio.timeout(20):
            while await database.alive():
                await asyncio.sleep(0.1)
        for _ in range(5):
            with contextlib.suppress(LedgerUnavailable):
                async with database.connection() as connection:
                    assert await connection.fetchval("select 1") == 1
            assert not database.available
    await end_sessions(world)
    async with asyncio.timeout(20):
        while not await database.alive():
            await asyncio.sleep(0.1)
    assert database.ready


async def test_a_database_that_is_gone_is_unavailable_and_not_an_error_of_its_own(
    world: AuditWorld, platform: Platform, database: Database
) -> None:
    """Every error of connecting again is the same for its callers."""
    async with broken(world, "alter role audit nologin", "alter role audit login"):
        await end_sessions(world)
        for _ in range(3):
            with pytest.raises(LedgerUnavailable):
                async with database.connection() as connection:
                    await connection.fetchval("select 1")
    async with asyncio.timeout(20):
        while not await database.alive():
            await asyncio.sleep(0.1)


async def test_a_wrong_clock_makes_the_database_unready_and_not_unavailable(
    database: Database,
) -> None:
    assert await database.alive()
    for _ in range(64):  # as many as are kept
        database.clock.compared(unix_ms() / 1000 - 600)
    assert database.available
    assert not database.ready


async def test_a_lost_connection_in_use_is_unavailable(
    world: AuditWorld, database: Database
) -> None:
    async def use() -> None:
        async with database.connection() as connection:
            await end_sessions(world)
            await connection.fetchval("select 1")

    with pytest.raises(LedgerUnavailable):
        await use()
    assert not database.available
