"""A narrow copy of what certificates are searched by, and their names.

Certificates of before are entered here, in one statement: about 20 s for a million.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import UUID

from estcore.runtime.alembic_env import runtime_role

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
_ENTER = r"""
with added as (
  insert into certificate (issuance_id, issuer_id, tenant, service, profile,
    slot_id, not_after, revoked_at)
  select issuance_id, issuer_id, tenant, service, profile, slot_id, not_after,
    revoked_at
  from issuance where state = 'issued' and announced_at is not null order by issued_at
  returning no, issuance_id)
insert into certificate_name (name, no)
select distinct left(lower(n.name), 400), a.no
from added a join issuance i using (issuance_id), lateral (
  select substr(entry, strpos(entry, ':') + 1) from unnest(string_to_array(i.san, E'\n')) entry
  union all
  select substr(part, strpos(part, '=') + 1)
  from regexp_split_to_table(i.subject, '(?<!\\)[,+]') part) n(name)
where n.name <> ''"""


def upgrade() -> None:
    # The other way round it is as unique, and finds a serial number whoever the issuer is.
    op.drop_constraint("issuance_serial", "issuance")
    op.create_unique_constraint("issuance_serial", "issuance", ["serial_number", "issuer_id"])
    op.create_table(
        "certificate",
        sa.Column("no", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("issuance_id", UUID, nullable=False),
        sa.Column("issuer_id", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("service", sa.Text, nullable=False),
        sa.Column("team", sa.Text),
        sa.Column("cluster", sa.Text),
        sa.Column("profile", sa.Text, nullable=False),
        sa.Column("slot_id", UUID, nullable=False),
        sa.Column("not_after", TIME, nullable=False),
        sa.Column("revoked_at", TIME),
        sa.UniqueConstraint("issuance_id", name="certificate_issuance"),
        comment="what certificates are searched by; entered when their announcement is confirmed",
    )
    op.create_index("certificate_owner", "certificate", ["tenant", "service", "no"])
    op.create_index("certificate_profile", "certificate", ["profile", "no"])
    op.create_index("certificate_expiry", "certificate", ["not_after", "no"])
    op.create_index("certificate_slot", "certificate", ["slot_id", "no"])
    op.create_index(
        "certificate_revoked",
        "certificate",
        ["no"],
        postgresql_where=sa.text("revoked_at is not null"),
    )
    op.create_index(
        "certificate_team", "certificate", ["team", "no"],
        postgresql_where=sa.text("team is not null"),
    )  # fmt: skip
    op.create_index(
        "certificate_cluster", "certificate", ["cluster", "no"],
        postgresql_where=sa.text("cluster is not null"),
    )  # fmt: skip
    op.create_table(
        "certificate_name",
        sa.Column("name", sa.Text(collation="C"), primary_key=True, comment="lower case"),
        sa.Column("no", sa.BigInteger, primary_key=True),
        comment="SAN entries without their kind, and values of the subject",
    )
    op.create_index(
        "certificate_name_reversed",
        "certificate_name",
        [sa.text("reverse(name)"), "no"],
    )
    op.execute(_ENTER)
    for table in ("certificate", "certificate_name"):
        op.execute(f"grant select, insert, update on {table} to {runtime_role()}")


def downgrade() -> None:
    op.drop_table("certificate_name")
    op.drop_table("certificate")
    op.drop_constraint("issuance_serial", "issuance")
    op.create_unique_constraint("issuance_serial", "issuance", ["issuer_id", "serial_number"])
