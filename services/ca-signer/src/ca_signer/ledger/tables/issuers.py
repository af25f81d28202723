"""Tables of issuers: their revocation lists, generations and rollovers."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import UUID

from ca_signer.ledger.tables import columns
from ca_signer.ledger.tables.columns import metadata

crl = sa.Table(
    "crl",
    metadata,
    sa.Column("issuer_id", sa.Text, primary_key=True),
    sa.Column(
        "partition",
        sa.Text,
        primary_key=True,
        server_default="",
        comment="as 16-3; empty for the full list",
    ),
    sa.Column(
        "last_number", sa.BigInteger, nullable=False, comment="given out, each to one signer"
    ),
    sa.Column("number", sa.BigInteger, comment="of the list stored here"),
    sa.Column("crl", sa.LargeBinary),
    columns.timestamp("this_update"),
    columns.timestamp("next_update"),
    columns.timestamp("published_at"),
    comment="the newest revocation list of each issuer",
)

generation = sa.Table(
    "generation",
    metadata,
    sa.Column("issuer_id", sa.Text, primary_key=True),
    sa.Column("family", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    columns.timestamp_now("changed_at"),
    sa.CheckConstraint(
        "state in ('planned', 'published', 'signing', 'accepted', 'retired', 'withdrawn')",
        name="generation_state",
    ),
    sa.Index("generation_signing", "family", unique=True, postgresql_where="state = 'signing'"),
    comment="issuers that rollovers named; who is signing may be in an intent",
)

rollover = sa.Table(
    "rollover",
    metadata,
    sa.Column("rollover_id", UUID, primary_key=True),
    sa.Column("family", sa.Text, nullable=False),
    sa.Column("from_issuer", sa.Text, nullable=False),
    sa.Column("to_issuer", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    columns.timestamp_now("planned_at"),
    columns.timestamp("published_at"),
    columns.timestamp("signing_at"),
    columns.timestamp("ended_at"),
    sa.Column("changed_by", sa.Text, nullable=False),
    sa.Column("fleet", sa.Integer, comment="slots when signing was switched"),
    sa.Column("fetched", sa.Integer, comment="of them, those that had the trust"),
    sa.CheckConstraint(
        "state in ('planned', 'published', 'signing', 'retired', 'rolled_back', 'reversed')",
        name="rollover_state",
    ),
    sa.Index(
        "rollover_open",
        "family",
        unique=True,
        postgresql_where="state in ('planned', 'published')",
    ),
    sa.Index("rollover_overlap", "family", unique=True, postgresql_where="state in ('signing')"),
    comment="from one generation of an issuer to the next",
)

trust_seen = sa.Table(
    "trust_seen",
    metadata,
    sa.Column("rollover_id", UUID, primary_key=True),
    sa.Column("slot_id", UUID, primary_key=True),
    columns.timestamp_now("seen_at"),
    comment="slots that fetched /cacerts with a certificate since a rollover was published",
)
