"""Issuances by owner, for quotas, and by slot, for registrars; both to look them up."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("issuance_owner", "issuance", ["tenant", "service", "created_at"])
    op.create_index("issuance_slot", "issuance", ["slot_id"])


def downgrade() -> None:
    op.drop_index("issuance_slot", "issuance")
    op.drop_index("issuance_owner", "issuance")
