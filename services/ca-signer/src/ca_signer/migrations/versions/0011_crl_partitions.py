"""Revocation lists in parts: a row of the table is a list, full or one part."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "crl",
        sa.Column(
            "partition",
            sa.Text,
            nullable=False,
            server_default="",
            comment="as 16-3; empty for the full list",
        ),
    )
    op.drop_constraint("crl_pkey", "crl")
    op.create_primary_key("crl_pkey", "crl", ["issuer_id", "partition"])


def downgrade() -> None:
    op.execute("delete from crl where partition <> ''")
    op.drop_constraint("crl_pkey", "crl")
    op.drop_column("crl", "partition")
    op.create_primary_key("crl_pkey", "crl", ["issuer_id"])
