"""Incidents: many certificates revoked together, by two operators, at a pace."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import UUID

from estcore.runtime.alembic_env import runtime_role

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "incident",
        sa.Column("incident_id", UUID, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("selector", sa.Text, nullable=False, comment="JSON: which certificates"),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("per_minute", sa.Integer, nullable=False),
        sa.Column("proposed_by", sa.Text, nullable=False),
        sa.Column("proposed_at", TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("confirmed_by", sa.Text),
        sa.Column("paced_at", TIME, comment="when the last ones were revoked"),
        sa.Column("stopped_by", sa.Text),
        sa.Column("ended_at", TIME),
        sa.Column("members", sa.Integer, comment="certificates selected; none before that"),
        sa.Column("revoked", sa.Integer, nullable=False, server_default="0"),
        sa.Column("skipped", sa.Integer, nullable=False, server_default="0"),
        sa.Column("announced_at", TIME),
        sa.CheckConstraint(
            "state in ('selecting', 'proposed', 'running', 'done', 'stopped', 'expired')",
            name="incident_state",
        ),
        comment="proposals to revoke many certificates, and what came of them",
    )
    op.create_index(
        "incident_open",
        "incident",
        ["proposed_at"],
        postgresql_where=sa.text("state in ('selecting', 'proposed', 'running')"),
    )
    op.create_table(
        "incident_member",
        sa.Column("incident_id", UUID, primary_key=True),
        sa.Column("issuance_id", UUID, primary_key=True),
        sa.Column("revoked_at", TIME),
        sa.Column("skipped_at", TIME, comment="was not good any more when its turn came"),
        sa.Column("announced_at", TIME),
        comment="the certificates of an incident, as selected when it was proposed",
    )
    op.create_index(
        "incident_member_waiting",
        "incident_member",
        ["incident_id"],
        postgresql_where=sa.text("revoked_at is null and skipped_at is null"),
    )
    op.create_index(
        "incident_member_unannounced",
        "incident_member",
        ["revoked_at"],
        postgresql_where=sa.text("revoked_at is not null and announced_at is null"),
    )
    for table in ("incident", "incident_member"):
        op.execute(f"grant select, insert, update on {table} to {runtime_role()}")


def downgrade() -> None:
    op.drop_table("incident_member")
    op.drop_table("incident")
