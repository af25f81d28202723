"""Leaves are packed: what is recorded from now on has its leaf in ``packed_leaf``."""

from alembic import op

revision = "0006"
down_revision = "0005"

_UP = """
alter table record add column packed_leaf bytea;
alter table record alter column packed_leaf set storage external;
alter table record alter column leaf drop not null;
comment on column record.leaf is 'canonical JSON that was hashed, of records of before';
comment on column record.packed_leaf is 'the same, deflated: est-audit export writes it out'
"""


def upgrade() -> None:
    for statement in _UP.split(";\n"):
        op.execute(statement)


def downgrade() -> None:
    op.execute("alter table record alter column leaf set not null")
    op.execute("alter table record drop column packed_leaf")
