"""The ledger's history: up from empty, down, up again; tables are what the code describes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine

import audit.tables
import renewal.tables
from ca_signer.connections import SCHEMA, SCRIPTS
from ca_signer.ledger import tables as ledger
from estcore.runtime.migrations import migrate, migrations_url
from estsuite_testing.platform import Platform

pytestmark = pytest.mark.integration


SERVICES = {
    "ca-signer": ("ca_signer", SCRIPTS, ledger.metadata),
    "renewal": (
        "renewal",
        Path(renewal.tables.__file__).parent / "migrations",
        renewal.tables.metadata,
    ),
    "audit": ("audit", Path(audit.tables.__file__).parent / "migrations", audit.tables.metadata),
}
_PARTITION = re.compile(r"record_(term_)?[0-9]{6}")


def described(name: str | None, kind: str, parents: Any) -> bool:
    """Return whether SQLAlchemy describes it: not Alembic's own table, nor partitions by month."""
    table = name if kind == "table" else parents.get("table_name")
    return name != "alembic_version" and not _PARTITION.match(str(table))


@pytest.mark.parametrize("service", SERVICES)
async def test_up_twice_and_the_tables_match(platform: Platform, service: str) -> None:
    settings = platform.database(service)
    schema, scripts, metadata = SERVICES[service]
    await migrate(settings, schema=schema, scripts=scripts)
    await migrate(settings, schema=schema, scripts=scripts)
    engine = create_async_engine(migrations_url(settings))

    def differences(connection: Connection) -> list[Any]:
        connection.execute(text(f'set search_path to "{schema}"'))
        context = MigrationContext.configure(connection, opts={"include_name": described})
        return list(compare_metadata(context, metadata))

    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await engine.dispose()


async def test_the_runtime_role_can_neither_drop_nor_rewrite_history(platform: Platform) -> None:
    settings = platform.database("ca-signer")
    await migrate(settings, schema=SCHEMA, scripts=SCRIPTS)
    assert settings.password_file is not None
    connection = await asyncpg.connect(
        settings.url,
        password=settings.password_file.read_text(),
        server_settings={"search_path": SCHEMA},
    )
    try:
        for forbidden in (
            "delete from issuance",
            "delete from request",
            "delete from key_binding",
            "truncate issuance",
            "drop table issuance",
            "create table x (a int)",
            "select * from audit.record",
        ):
            with pytest.raises(asyncpg.PostgresError):
                await connection.execute(forbidden)
    finally:
        await connection.close()
