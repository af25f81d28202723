"""Certificates on their way at another CA, what it sent that is wrong, and what it must revoke."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from estcore.runtime.alembic_env import runtime_role

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

UUID = postgresql.UUID()
TIME = sa.DateTime(timezone=True)
NOW = sa.func.now()


def upgrade() -> None:
    op.create_table(
        "submission",
        sa.Column("issuance_id", UUID, primary_key=True),
        sa.Column("enrollment_id", sa.LargeBinary, nullable=False),
        sa.Column("request_id", UUID, nullable=False),
        sa.Column("issuer_id", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("fence", sa.Integer, nullable=False, server_default="1"),
        sa.Column("lease_until", TIME, nullable=False),
        sa.Column("sign_before", TIME, nullable=False),
        sa.Column("csr", sa.LargeBinary, nullable=False, comment="as the client signed it"),
        sa.Column("csr_sha256", sa.LargeBinary, nullable=False),
        sa.Column(
            "pattern", sa.LargeBinary, nullable=False, comment="TBS of what was decided, linted"
        ),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("service", sa.Text, nullable=False),
        sa.Column("profile", sa.Text, nullable=False),
        sa.Column("slot_id", UUID, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("san", sa.Text, nullable=False, comment="one entry a line"),
        sa.Column("spki_sha256", sa.LargeBinary, nullable=False),
        sa.Column("not_before", TIME, nullable=False),
        sa.Column("not_after", TIME, nullable=False),
        sa.Column("predecessor_sha256", sa.LargeBinary),
        sa.Column("context", sa.Text, nullable=False, comment="JSON: as of an issuance"),
        sa.Column("sendings", sa.Integer, nullable=False, server_default="0"),
        sa.Column("submitted_at", TIME),
        sa.Column("retry_at", TIME),
        sa.Column("reference", sa.Text, comment="what the other CA calls it"),
        sa.Column("code", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("created_at", TIME, nullable=False, server_default=NOW),
        sa.Column("changed_at", TIME, nullable=False, server_default=NOW),
        sa.Column("answered_at", TIME),
        sa.Column("decided_by", sa.Text),
        sa.Column("announced_at", TIME),
        sa.CheckConstraint(
            "state in ('recorded', 'submitted', 'pending', 'unknown', 'issued', 'refused', "
            "'quarantined', 'abandoned')",
            name="submission_state",
        ),
        sa.UniqueConstraint("request_id", name="submission_request"),
        comment="certificates on their way at another CA; what is issued is a row of issuance too",
    )
    op.create_index(
        "submission_open",
        "submission",
        ["issuer_id", "state"],
        postgresql_where=sa.text("state in ('recorded', 'submitted', 'pending', 'unknown')"),
    )
    op.create_index(
        "submission_untold",
        "submission",
        ["changed_at"],
        postgresql_where=sa.text(
            "announced_at is null and state in ('unknown', 'quarantined', 'abandoned')"
        ),
    )
    op.create_table(
        "quarantine",
        sa.Column("quarantine_id", UUID, primary_key=True),
        sa.Column("issuance_id", UUID, nullable=False),
        sa.Column("issuer_id", sa.Text, nullable=False),
        sa.Column("certificate", sa.LargeBinary, nullable=False, comment="the octets that came"),
        sa.Column("check_failed", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created_at", TIME, nullable=False, server_default=NOW),
        comment="what another CA sent and nobody may use",
    )
    op.create_index("quarantine_issuance", "quarantine", ["issuance_id"])
    op.create_table(
        "upstream_revocation",
        sa.Column("certificate_sha256", sa.LargeBinary, primary_key=True),
        sa.Column("issuance_id", UUID, nullable=False),
        sa.Column("issuer_id", sa.Text, nullable=False),
        sa.Column("certificate", sa.LargeBinary, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False, server_default="due"),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("next_at", TIME, nullable=False, server_default=NOW),
        sa.Column("code", sa.Text),
        sa.Column("created_at", TIME, nullable=False, server_default=NOW),
        sa.Column("ended_at", TIME),
        sa.Column("announced_at", TIME),
        sa.CheckConstraint(
            "state in ('due', 'done', 'refused', 'impossible')", name="upstream_revocation_state"
        ),
        comment="certificates that another CA must revoke, and whether it has",
    )
    op.create_index(
        "upstream_revocation_due",
        "upstream_revocation",
        ["issuer_id", "next_at"],
        postgresql_where=sa.text("state = 'due'"),
    )
    role = runtime_role()
    op.execute(f"grant select, insert, update on submission to {role}")
    op.execute(f"grant select, insert on quarantine to {role}")
    op.execute(f"grant select, insert, update on upstream_revocation to {role}")


def downgrade() -> None:
    op.drop_table("upstream_revocation")
    op.drop_table("quarantine")
    op.drop_table("submission")
