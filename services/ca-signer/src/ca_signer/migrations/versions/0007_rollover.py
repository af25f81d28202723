"""Generations of issuers, their rollovers, and who has fetched the trust of one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from estcore.runtime.alembic_env import runtime_role

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

UUID = postgresql.UUID()
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "generation",
        sa.Column("issuer_id", sa.Text, primary_key=True),
        sa.Column("family", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("changed_at", TIME, nullable=False, server_default=sa.func.now()),
        sa.CheckConstraint(
            "state in ('planned', 'published', 'signing', 'accepted', 'retired', 'withdrawn')",
            name="generation_state",
        ),
        comment="issuers that rollovers named; who is signing may be in an intent",
    )
    op.create_index(
        "generation_signing",
        "generation",
        ["family"],
        unique=True,
        postgresql_where=sa.text("state = 'signing'"),
    )
    op.create_table(
        "rollover",
        sa.Column("rollover_id", UUID, primary_key=True),
        sa.Column("family", sa.Text, nullable=False),
        sa.Column("from_issuer", sa.Text, nullable=False),
        sa.Column("to_issuer", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("planned_at", TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("published_at", TIME),
        sa.Column("signing_at", TIME),
        sa.Column("ended_at", TIME),
        sa.Column("changed_by", sa.Text, nullable=False),
        sa.Column("fleet", sa.Integer, comment="slots when signing was switched"),
        sa.Column("fetched", sa.Integer, comment="of them, those that had the trust"),
        sa.CheckConstraint(
            "state in ('planned', 'published', 'signing', 'retired', 'rolled_back', 'reversed')",
            name="rollover_state",
        ),
        comment="from one generation of an issuer to the next",
    )
    for name, states in (
        ("rollover_open", "('planned', 'published')"),
        ("rollover_overlap", "('signing')"),
    ):
        op.create_index(
            name,
            "rollover",
            ["family"],
            unique=True,
            postgresql_where=sa.text(f"state in {states}"),
        )
    op.create_table(
        "trust_seen",
        sa.Column("rollover_id", UUID, primary_key=True),
        sa.Column("slot_id", UUID, primary_key=True),
        sa.Column("seen_at", TIME, nullable=False, server_default=sa.func.now()),
        comment="slots that fetched /cacerts with a certificate since a rollover was published",
    )
    op.execute(f"grant select, insert, update on generation, rollover to {runtime_role()}")
    op.execute(f"grant select, insert on trust_seen to {runtime_role()}")


def downgrade() -> None:
    op.drop_table("trust_seen")
    op.drop_table("rollover")
    op.drop_table("generation")
