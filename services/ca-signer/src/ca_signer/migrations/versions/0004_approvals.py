"""Requests that wait for an operator, one row an enrollment."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from estcore.runtime.alembic_env import runtime_role

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

UUID = postgresql.UUID()
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "approval",
        sa.Column("enrollment_id", sa.LargeBinary, primary_key=True),
        sa.Column("approval_id", UUID, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("request_id", UUID, nullable=False),
        sa.Column("issuer_id", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("service", sa.Text, nullable=False),
        sa.Column("profile", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("san", sa.Text, nullable=False, comment="one entry a line"),
        sa.Column("spki_sha256", sa.LargeBinary, comment="none where the key is made here"),
        sa.Column("context", sa.Text, nullable=False, comment="JSON: as of an issuance"),
        sa.Column("requested_at", TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("decided_at", TIME),
        sa.Column("decided_by", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("issuance_id", UUID, comment="what an approval was used for"),
        sa.Column("announced_at", TIME),
        sa.CheckConstraint(
            "state in ('waiting', 'approved', 'rejected', 'used')", name="approval_state"
        ),
        sa.UniqueConstraint("approval_id", name="approval_approval_id"),
        comment="requests under a rule with approval: who asked for what, and the decision",
    )
    op.create_index(
        "approval_waiting",
        "approval",
        ["tenant", "service", "requested_at"],
        postgresql_where=sa.text("state = 'waiting'"),
    )
    op.create_index(
        "approval_unannounced",
        "approval",
        ["requested_at"],
        postgresql_where=sa.text("announced_at is null"),
    )
    op.execute(f"grant select, insert, update, delete on approval to {runtime_role()}")


def downgrade() -> None:
    op.drop_table("approval")
