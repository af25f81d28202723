"""Renewal information: what is not published yet, early renewals, the epoch of the stream."""

from alembic import op

from estcore.runtime.alembic_env import runtime_role

revision = "0002"
down_revision = "0001"

UPGRADE = """
alter table certificate add column info_pending boolean not null default false;
create index certificate_info_pending on certificate (changed_at) where info_pending;
alter table renewal_slot add column due_reason text;
alter table renewal_slot add column renew_by timestamptz;
alter table renewal_slot add column explanation_url text;
create table info_stream (
    id boolean primary key default true check (id),
    epoch uuid,
    sequence bigint not null default 0,
    published_at timestamptz
);
comment on table info_stream is
    'what renewal published last on the stream of renewal information, to notice that it is lost';
insert into info_stream default values
"""
DOWNGRADE = """
drop table info_stream;
alter table renewal_slot drop column explanation_url;
alter table renewal_slot drop column renew_by;
alter table renewal_slot drop column due_reason;
alter table certificate drop column info_pending
"""


def upgrade() -> None:
    for statement in UPGRADE.split(";\n"):
        op.execute(statement)
    op.execute(f"grant select, update on info_stream to {runtime_role()}")


def downgrade() -> None:
    for statement in DOWNGRADE.split(";\n"):
        op.execute(statement)
