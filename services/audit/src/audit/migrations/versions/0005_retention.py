"""Retention: legal holds, what was purged and restored, and the orders of two operators."""

from alembic import op

from estcore.runtime.alembic_env import runtime_role

revision = "0005"
down_revision = "0004"

TABLES = """
create table legal_hold (
    name       text primary key,
    since      timestamptz not null,
    until      timestamptz not null,
    reason     text not null,
    placed_at  timestamptz not null,
    placed_by  text not null,
    released_at timestamptz,
    released_by text,
    check (since < until)
);
comment on table legal_hold is 'periods of which nothing is purged; only the owner writes it';
create table purge (
    first_index bigint primary key,
    end_index   bigint not null,
    month       text not null,
    purged_at   timestamptz not null,
    archive_sha256 text
);
comment on table purge is 'records whose content is not here, only their hashes in tile'
"""


def upgrade() -> None:
    for statement in TABLES.split(";\n"):
        op.execute(statement)
    op.execute(f"grant select on legal_hold, purge to {runtime_role()}")


def downgrade() -> None:
    op.execute("drop table purge")
    op.execute("drop table legal_hold")
