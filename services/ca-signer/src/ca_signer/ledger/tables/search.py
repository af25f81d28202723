"""Tables that certificates are searched by."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import UUID

from ca_signer.ledger.tables import columns
from ca_signer.ledger.tables.columns import metadata

certificate = sa.Table(
    "certificate",
    metadata,
    sa.Column("no", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("issuance_id", UUID, nullable=False),
    sa.Column("issuer_id", sa.Text, nullable=False),
    *columns.owner(),
    sa.Column("team", sa.Text),
    sa.Column("cluster", sa.Text),
    sa.Column("profile", sa.Text, nullable=False),
    sa.Column("slot_id", UUID, nullable=False),
    columns.timestamp("not_after", nullable=False),
    columns.timestamp("revoked_at"),
    # Entered once, and found again when it is revoked. An index over slots would be changed in
    # another page by each certificate; the gauges, which alone need it, join this narrow table.
    sa.UniqueConstraint("issuance_id", name="certificate_issuance"),
    # Each of these is the order of one search (ca_signer.ledger.certificate_search).
    sa.Index("certificate_owner", "tenant", "service", "no"),
    sa.Index("certificate_profile", "profile", "no"),
    sa.Index("certificate_expiry", "not_after", "no"),
    sa.Index("certificate_revoked", "no", postgresql_where="revoked_at is not null"),
    sa.Index("certificate_team", "team", "no", postgresql_where="team is not null"),
    sa.Index("certificate_cluster", "cluster", "no", postgresql_where="cluster is not null"),
    comment="what certificates are searched by; entered when their announcement is confirmed",
)

certificate_name = sa.Table(
    "certificate_name",
    metadata,
    sa.Column("name", sa.Text(collation="C"), primary_key=True, comment="lower case"),
    sa.Column("no", sa.BigInteger, primary_key=True),
    sa.Index("certificate_name_reversed", sa.text("reverse(name)"), "no"),
    comment="SAN entries without their kind, and values of the subject",
)
