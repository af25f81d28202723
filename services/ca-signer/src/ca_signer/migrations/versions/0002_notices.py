"""Notices of changes in tables that change seldom (``estcore.runtime.notices``)."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"

FUNCTION = """
create function notify_change() returns trigger language plpgsql as $$
begin
    perform pg_notify(tg_table_schema || '_changed', tg_table_name);
    return null;
end
$$
"""
# A campaign that goes on at its pace is no news.
EVENTS = {
    "bulk_revocation": "insert or update of state",
    "campaign": "insert or update of state",
    "generation": "insert or update or delete",
    "rollover": "insert or update or delete",
}


def upgrade() -> None:
    op.execute(FUNCTION)
    for table, events in EVENTS.items():
        op.execute(
            f"create trigger {table}_notify after {events} on {table} "
            "for each statement execute function notify_change()"
        )


def downgrade() -> None:
    for table in EVENTS:
        op.execute(f"drop trigger {table}_notify on {table}")
    op.execute("drop function notify_change()")
