"""Managed renewal: the age of keys, and what clients fetch (docs/adr/0073)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import UUID

from estcore.runtime.alembic_env import runtime_role

revision = "0003"
down_revision = "0002"

# A key is as old as its first certificate on record. An earlier version inserts no moment: the
# default does.
_AGES = """
update key_binding k set created_at = first.created_at
from (select spki_sha256, min(created_at) as created_at from issuance group by 1) first
where first.spki_sha256 = k.spki_sha256
"""


def upgrade() -> None:
    op.add_column(
        "key_binding",
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            comment="when its first certificate was recorded; null: not known",
        ),
    )
    op.alter_column("key_binding", "created_at", server_default=sa.func.now())
    op.execute(_AGES)
    op.create_table(
        "managed_issuance",
        sa.Column("issuance_id", UUID, nullable=False),
        sa.Column(
            "sealed_key",
            sa.LargeBinary,
            comment="EnvelopedData with a generated key, until its certificate is proven in use",
        ),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()
        ),
        sa.Column(
            "fetched_at",
            sa.DateTime(timezone=True),
            comment="when the client first fetched it",
        ),
        sa.PrimaryKeyConstraint("issuance_id"),
        comment="issuances by managed renewal, for their clients to fetch",
    )
    op.create_index(
        "managed_issuance_keys",
        "managed_issuance",
        ["created_at"],
        postgresql_where=sa.text("sealed_key is not null"),
    )
    op.execute(f"grant select, insert, update on managed_issuance to {runtime_role()}")


def downgrade() -> None:
    op.drop_table("managed_issuance")
    op.drop_column("key_binding", "created_at")
