"""Witnesses: how far each has cosigned, and its cosignatures of checkpoints."""

from alembic import op

from estcore.runtime.alembic_env import runtime_role

revision = "0002"
down_revision = "0001"

UPGRADE = """
create table witness (
    name text primary key,
    size bigint not null,
    frontier bytea not null,
    at timestamptz not null default now()
);
comment on table witness is 'what each witness has cosigned last, with the right edge of that tree';
create table cosignature (
    size bigint not null,
    witness text not null,
    line text not null,
    at timestamptz not null default now(),
    primary key (size, witness)
)
"""


def upgrade() -> None:
    for statement in UPGRADE.split(";\n"):
        op.execute(statement)
    role = runtime_role()
    op.execute(f"grant select, insert, update on witness to {role}")
    op.execute(f"grant select, insert on cosignature to {role}")


def downgrade() -> None:
    op.execute("drop table cosignature")
    op.execute("drop table witness")
