"""Slots whose certificates may end without a successor (docs/adr/0074)."""

from alembic import op

revision = "0004"
down_revision = "0003"

STATES = ("idle", "due", "dispatched", "issued", "overlap", "failed", "expired", "paused")


def upgrade() -> None:
    op.execute("alter table renewal_slot add expiry_expected boolean not null default false")
    op.execute(
        "comment on column renewal_slot.expiry_expected is "
        "'its certificates may end without a successor'"
    )
    _check_states(*STATES, "ended")


def downgrade() -> None:
    op.execute("update renewal_slot set state = 'expired' where state = 'ended'")
    _check_states(*STATES)
    op.execute("alter table renewal_slot drop expiry_expected")


def _check_states(*states: str) -> None:
    allowed = ", ".join(f"'{state}'" for state in states)
    op.execute("alter table renewal_slot drop constraint renewal_slot_state_check")
    op.execute(
        "alter table renewal_slot add constraint renewal_slot_state_check "
        f"check (state in ({allowed}))"
    )
