"""Tiles: the hashes of the tree, for proofs, and for what stays when records are purged."""

from alembic import op

from estcore.runtime.alembic_env import runtime_role

revision = "0004"
down_revision = "0003"

TABLE = """
create table tile (
    level    smallint not null,
    position bigint not null,
    hashes   bytea not null,
    root     bytea not null,
    primary key (level, position)
);
comment on table tile is '256 hashes of a level each (C2SP tlog-tiles), and the root of them';
alter table tile alter column hashes set storage external
"""
PROTECTED = (
    "create trigger no_change before update or delete on tile"
    " for each row execute function refuse_change()",
    "create trigger no_truncate before truncate on tile"
    " for each statement execute function refuse_change()",
    "alter table tile enable always trigger no_change",
    "alter table tile enable always trigger no_truncate",
)


def upgrade() -> None:
    for statement in (*TABLE.split(";\n"), *PROTECTED):
        op.execute(statement)
    op.execute(f"grant select, insert on tile to {runtime_role()}")


def downgrade() -> None:
    op.execute("drop table tile")
