"""Running a service's Alembic history against its own schema, as the schema's owner.

Alembic and SQLAlchemy are imported when they are used: they take a second, and ``run`` never
needs them.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection
    from sqlalchemy.engine import URL

from estcore.errors import ConfigurationError, LedgerUnavailable
from estcore.runtime.settings import DatabaseSettings, read_secret


def migrations_url(settings: DatabaseSettings) -> URL:
    """Return the SQLAlchemy URL of the schema's owner, password included (never logged).

    Raises:
        ConfigurationError: no migration URL is configured.
    """
    from sqlalchemy.engine import make_url

    if settings.migration_url is None:
        raise ConfigurationError("database.migration_url is needed to migrate")
    url = make_url(settings.migration_url).set(drivername="postgresql+asyncpg")
    if settings.migration_password_file is None:
        return url
    return url.set(password=read_secret(settings.migration_password_file, "the owner's password"))


async def migrate(
    settings: DatabaseSettings,
    *,
    schema: str,
    scripts: Path,
    revision: str = "head",
    readable: Sequence[str] = (),
) -> None:
    """Bring the schema to ``revision``, holding a lock so that two runs do not race.

    The history's ``env.py`` gets the connection, the schema and the runtime role's name (the
    user in ``database.url``), to which it grants what the service needs and no more. A role
    ``<runtime role>_reader``, if there is one, may read the tables of ``readable``.

    Raises:
        LedgerUnavailable: the database does not answer or refuses a statement.
    """
    from alembic import command
    from sqlalchemy import pool, text
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.ext.asyncio import create_async_engine

    role = make_url(settings.url).username or ""
    arguments: dict[str, Any] = {}
    if settings.ca_file is not None:
        arguments["ssl"] = ssl.create_default_context(cafile=str(settings.ca_file))
    engine = create_async_engine(
        migrations_url(settings), poolclass=pool.NullPool, connect_args=arguments
    )

    def upgrade(connection: Connection) -> None:
        connection.execute(text("select pg_advisory_xact_lock(hashtext(:s))"), {"s": schema})
        config = _config(scripts, schema, role)
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        reader = f"{role}_reader"
        exists = text("select 1 from pg_roles where rolname = :r")
        if readable and connection.execute(exists, {"r": reader}).first():
            tables = ", ".join(f'"{schema}"."{name}"' for name in readable)
            connection.execute(text(f'grant select on {tables} to "{reader}"'))

    try:
        async with engine.begin() as connection:
            await connection.run_sync(upgrade)
    except (SQLAlchemyError, OSError) as exc:
        line = str(exc).splitlines()[0]
        raise LedgerUnavailable(f"migration of {schema}: {line}") from exc
    finally:
        await engine.dispose()


def _config(scripts: Path, schema: str, role: str) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(scripts))
    config.attributes.update(schema=schema, role=role)
    return config
