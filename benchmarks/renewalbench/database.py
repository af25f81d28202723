"""A PostgreSQL with renewal's schema and a fleet in it, with the settings of docs/operations."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from estcore.runtime.database import Database
from estcore.runtime.migrations import migrate
from estcore.runtime.settings import DatabaseSettings
from estdev.ports import free_port
from estdev.postgres import EmbeddedPostgres
from estsuite_testing.many_slots import write_slots
from renewal.main import MIGRATIONS, SCHEMA

_CHUNK = 50_000
_WRITERS = 2
# Built again over the filled tables: in a fifth of the time that 5,000,000 inserts take.
_SECONDARY = """
select i.indexrelid::regclass::text as name, pg_get_indexdef(i.indexrelid) as definition
from pg_index i join pg_class c on c.oid = i.indrelid
where c.relname in ('renewal_slot', 'certificate') and not i.indisprimary
"""
_SIZES = """
select c.relname as name, pg_relation_size(c.oid) + coalesce(pg_relation_size(c.reltoastrelid), 0)
    as octets
from pg_class c join pg_namespace n on n.oid = c.relnamespace
left join pg_index i on i.indexrelid = c.oid left join pg_class t on t.oid = i.indrelid
where n.nspname = 'renewal' and coalesce(t.relname, c.relname) in ('renewal_slot', 'certificate')
order by 2 desc
"""


@dataclass(frozen=True)
class RenewalDatabase:
    """Renewal's own connections, and one of the superuser."""

    database: Database
    admin: asyncpg.Connection
    postgres: EmbeddedPostgres

    async def fill(self, slots: int, late: dt.timedelta, progress: Callable[[str], object]) -> None:
        """Write a fleet, then vacuum."""
        indexes = await self.admin.fetch(_SECONDARY)
        for index in indexes:
            await self.admin.execute(f"drop index {index['name']}")
        chunks = iter(range(1, slots + 1, _CHUNK))

        async def writer() -> None:
            connection = await self.postgres.superuser()
            await connection.execute("set synchronous_commit = off")
            for first in chunks:
                await write_slots(connection, first, min(first + _CHUNK - 1, slots), late=late)
                if first // _CHUNK % 10 == 0:
                    progress(f"{first + _CHUNK - 1:,} of {slots:,} slots")
            await connection.close()

        async with asyncio.TaskGroup() as group:
            for _ in range(_WRITERS):
                group.create_task(writer())
        await self.admin.execute("set maintenance_work_mem = '1GB'")
        for index in indexes:
            await self.admin.execute(index["definition"])
        await self.vacuum()
        # The kernel writes gigabytes for minutes yet, and a commit would wait behind them.
        await asyncio.to_thread(os.sync)

    async def vacuum(self) -> None:
        """Vacuum and write a checkpoint, so that neither happens while something is timed."""
        await self.admin.execute("vacuum analyze renewal.renewal_slot, renewal.certificate")
        await self.admin.execute("checkpoint")

    async def octets(self) -> dict[str, int]:
        """Return what each table and index takes on disk."""
        return {row["name"]: row["octets"] for row in await self.admin.fetch(_SIZES)}


@asynccontextmanager
async def renewal_database(folder: Path) -> AsyncIterator[RenewalDatabase]:
    """Start an empty one; it is removed afterwards."""
    postgres = EmbeddedPostgres(folder, free_port())
    await postgres.start()
    try:
        roles = await postgres.provision([SCHEMA])
        role = roles[SCHEMA]
        settings = DatabaseSettings.model_validate(
            {
                "url": postgres.url(role.runtime),
                "password_file": role.runtime_password_file,
                "migration_url": postgres.url(role.owner),
                "migration_password_file": role.owner_password_file,
            }
        )
        admin = await postgres.superuser()
        await admin.execute(f"alter system set shared_buffers = '{_buffers_mb()}MB'")
        await admin.execute("alter system set max_wal_size = '8GB'")
        await admin.close()
        await postgres.stop()
        await postgres.start()
        await migrate(settings, schema=SCHEMA, scripts=MIGRATIONS)
        admin = await postgres.superuser()
        database = await Database.connect(settings, "benchmark", SCHEMA)
        try:
            yield RenewalDatabase(database, admin, postgres)
        finally:
            await database.close()
            await admin.close()
    finally:
        await postgres.stop(immediate=True)
        shutil.rmtree(postgres.home, ignore_errors=True)


def _buffers_mb() -> int:
    """Return a quarter of the machine's memory, as docs/operations/postgresql.md recommends."""
    octets = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(octets / 4 / 2**20)
