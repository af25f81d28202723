"""Claims of many due slots: an index over reach and expiry, and one over what is unanswered."""

from alembic import op

revision = "0005"
down_revision = "0004"

UPGRADE = """
create index slot_reach on renewal_slot (priority,
    (least(floor(ln(greatest(date_part('epoch', not_after - next_attempt_at), 1))
        * 23), 460)::integer),
    not_after, (next_attempt_at at time zone 'UTC'))
    include (slot_id, next_attempt_at) where state = 'idle';
create index slot_unanswered on renewal_slot (dispatched_at)
    where state = 'dispatched' and attempts = 1 and mode <> 'poll';
drop index slot_expiry
"""
DOWNGRADE = """
create index slot_expiry on renewal_slot (priority, not_after) where state = 'idle';
drop index slot_unanswered;
drop index slot_reach
"""


def upgrade() -> None:
    for statement in UPGRADE.split(";\n"):
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWNGRADE.split(";\n"):
        op.execute(statement)
