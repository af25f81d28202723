"""What changed about a certificate's revocation, and whether it was told; lost keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column(
        "issuance",
        sa.Column(
            "revocation_seq",
            sa.Integer,
            nullable=False,
            server_default="0",
            comment="how often it was revoked, held or released",
        ),
    )
    op.add_column("issuance", sa.Column("revocation_changed_at", TIME))
    op.add_column("issuance", sa.Column("revocation_announced_at", TIME))
    op.add_column("issuance", sa.Column("revoked_by", sa.Text))
    op.create_index(
        "issuance_revocation_unannounced",
        "issuance",
        ["revocation_changed_at"],
        postgresql_where=sa.text(
            "revocation_changed_at is not null and revocation_announced_at is null"
        ),
    )
    op.create_index(
        "issuance_revoked",
        "issuance",
        ["issuer_id", "not_after"],
        postgresql_where=sa.text("revoked_at is not null"),
    )
    op.create_index(
        "issuance_compromised",
        "issuance",
        ["spki_sha256"],
        postgresql_where=sa.text("revocation_reason = 'keyCompromise'"),
    )


def downgrade() -> None:
    for index in ("compromised", "revoked", "revocation_unannounced"):
        op.drop_index(f"issuance_{index}", "issuance")
    for column in (
        "revoked_by",
        "revocation_announced_at",
        "revocation_changed_at",
        "revocation_seq",
    ):
        op.drop_column("issuance", column)
