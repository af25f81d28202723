"""Renewals that campaigns requested of certificates that cannot be due yet."""

from alembic import op

from estcore.runtime.alembic_env import runtime_role

revision = "0003"
down_revision = "0002"

UPGRADE = """
create table renewal_request (
    fingerprint_sha256 text primary key,
    serial text not null,
    due_at timestamptz not null,
    reason text not null,
    renew_by timestamptz not null,
    explanation_url text,
    keep_until timestamptz not null,
    checked_at timestamptz not null default now()
);
comment on table renewal_request is
    'early renewals of certificates that renewal does not know yet, or that are not proven in use';
create index renewal_request_checked on renewal_request (checked_at)
"""


def upgrade() -> None:
    for statement in UPGRADE.split(";\n"):
        op.execute(statement)
    op.execute(f"grant select, insert, update, delete on renewal_request to {runtime_role()}")


def downgrade() -> None:
    op.execute("drop table renewal_request")
