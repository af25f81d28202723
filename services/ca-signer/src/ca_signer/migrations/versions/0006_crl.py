"""The newest CRL of each issuer, and the number that was given out last."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from estcore.runtime.alembic_env import runtime_role

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "crl",
        sa.Column("issuer_id", sa.Text, primary_key=True),
        sa.Column(
            "last_number", sa.BigInteger, nullable=False, comment="given out, each to one signer"
        ),
        sa.Column("number", sa.BigInteger, comment="of the list stored here"),
        sa.Column("crl", sa.LargeBinary),
        sa.Column("this_update", TIME),
        sa.Column("next_update", TIME),
        sa.Column("published_at", TIME),
        comment="the newest revocation list of each issuer",
    )
    op.execute(f"grant select, insert, update on crl to {runtime_role()}")


def downgrade() -> None:
    op.drop_table("crl")
