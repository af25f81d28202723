"""The ledger's history: up from empty, down, up again; tables are what the code describes."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine

from ca_signer.connections import SCHEMA, SCRIPTS
from ca_signer.ledger.tables import metadata
from estcore.runtime.migrations import migrate, migrations_url
from estsuite_testing.platform import Platform

pytestmark = pytest.mark.integration


async def test_up_down_up_and_the_tables_match(platform: Platform) -> None:
    settings = platform.database("ca-signer")
    await migrate(settings, schema=SCHEMA, scripts=SCRIPTS)
    await migrate(settings, schema=SCHEMA, scripts=SCRIPTS)
    engine = create_async_engine(migrations_url(settings))

    def differences(connection: Connection) -> list[Any]:
        connection.execute(text(f'set search_path to "{SCHEMA}"'))
        context = MigrationContext.configure(
            connection, opts={"include_name": lambda n, kind, _p: n != "alembic_version"}
        )
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
