"""The command line, the settings, the schema's history."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml
from alembic import command
from sqlalchemy import pool, text
from sqlalchemy.ext.asyncio import create_async_engine

import renewal
from estcore.runtime import migrations
from estcore.runtime.settings import load_settings
from estsuite_testing.platform import Platform
from estsuite_testing.renewal_bench import Bench
from renewal.main import MIGRATIONS, SCHEMA, main, migrate
from renewal.settings import RenewalSettings

EXAMPLE = Path(renewal.__file__).parents[2] / "config.example.yaml"
README = EXAMPLE.parent / "README.md"


def test_the_example_configuration_is_one() -> None:
    settings = load_settings(RenewalSettings, "EST_RENEWAL", EXAMPLE, {})
    assert settings.scheduler.lease.critical.total_seconds() == 900


def test_every_setting_is_in_the_readme() -> None:
    words = README.read_text()
    for name, field in RenewalSettings.model_fields.items():
        inner = getattr(field.annotation, "model_fields", {})
        for key in inner or [name]:
            assert f"`{name}.{key}`" in words or f"`{name}`" in words, f"{name}.{key}"


def test_an_unknown_setting_stops_the_start(tmp_path: Path, capsys: Any) -> None:
    raw = yaml.safe_load(EXAMPLE.read_text())
    raw["scheduler"]["pol_s"] = 1
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(raw))
    assert main(["check-config", "--config", str(path)]) == 2
    assert "scheduler.pol_s" in capsys.readouterr().err


@pytest.mark.integration
async def test_the_schema_goes_up_down_and_up_again(
    platform: Platform, migrated: RenewalSettings
) -> None:
    settings = platform.database("renewal")
    engine = create_async_engine(migrations.migrations_url(settings), poolclass=pool.NullPool)

    def down(connection: Any) -> None:
        config = migrations._config(MIGRATIONS, SCHEMA, "renewal")
        config.attributes["connection"] = connection
        command.downgrade(config, "base")

    async def tables() -> list[str]:
        async with engine.connect() as connection:
            query = text("select tablename from pg_tables where schemaname='renewal'")
            return sorted(row[0] for row in (await connection.execute(query)).all())

    before = await tables()
    async with engine.begin() as connection:
        await connection.run_sync(down)
    assert await tables() == ["alembic_version"]
    await migrate(migrated)
    await migrate(migrated)
    assert await tables() == before
    await engine.dispose()


@pytest.mark.integration
async def test_the_runtime_role_may_not_delete_certificates(
    platform: Platform, migrated: RenewalSettings
) -> None:
    role = platform.roles["renewal"]
    connection = await asyncpg.connect(
        platform.postgres.url(role.runtime),
        password=role.runtime_password_file.read_text().strip(),
    )
    try:
        for table in ("certificate", "renewal_slot", "revocation"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(f"delete from renewal.{table}")
    finally:
        await connection.close()


@pytest.mark.integration
async def test_readiness_and_metrics_are_served(bench: Bench) -> None:
    from estdev.ports import free_port

    port = free_port()
    admin = bench.settings.admin.model_copy(update={"port": port})
    bench.settings = bench.settings.model_copy(update={"admin": admin})

    async def get(path: str) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.1\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return answer

    one = bench.issue()
    async with bench.running():
        await bench.announce(one)
        await bench.slot_is(one, "idle")
        assert b"200 OK" in await get("/readyz")
        assert b"est_renewal_projected_total" in await get("/metrics")
