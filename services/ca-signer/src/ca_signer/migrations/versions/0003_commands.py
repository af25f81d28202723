"""Commands of operators: what was asked by whom, and the answer it was given."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from estcore.runtime.alembic_env import runtime_role

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "command",
        sa.Column("command_id", postgresql.UUID(), primary_key=True),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("operator_sha256", sa.LargeBinary, nullable=False),
        sa.Column("operator", sa.Text, nullable=False),
        sa.Column("verb", sa.Text, nullable=False),
        sa.Column("answer", sa.Text, comment="JSON; without the result of verbs that only read"),
        sa.Column("announcement", sa.Text, comment="JSON: the audit record, until announced"),
        sa.Column("created_at", TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("announced_at", TIME),
        comment="signed commands that were carried out or refused, each once",
    )
    op.create_index(
        "command_unannounced",
        "command",
        ["created_at"],
        postgresql_where=sa.text("announced_at is null"),
    )
    op.execute(f"grant select, insert, update on command to {runtime_role()}")


def downgrade() -> None:
    op.drop_table("command")
