"""What every history's ``env.py`` does: run in the given connection, inside one schema."""

from __future__ import annotations

from alembic import context
from sqlalchemy import text


def run() -> None:
    """Run the migrations of ``context.config``; called by each service's ``env.py``."""
    connection = context.config.attributes["connection"]
    schema = context.config.attributes["schema"]
    # "if not exists" would ask for the right to create even where there is nothing to create.
    query = text("select 1 from pg_namespace where nspname = :schema")
    if connection.execute(query, {"schema": schema}).first() is None:
        connection.execute(text(f'create schema "{schema}"'))
    connection.execute(text(f'set local search_path to "{schema}"'))
    context.configure(connection=connection, version_table_schema=schema, transactional_ddl=True)
    with context.begin_transaction():
        context.run_migrations()


def runtime_role() -> str:
    """Return the quoted role the service runs as."""
    role = context.config.attributes["role"]
    return '"' + str(role).replace('"', '""') + '"'
