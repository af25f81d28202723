"""Columns that several tables of the ledger have, as new objects at every call."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import UUID

metadata = sa.MetaData()

SHORT_LIVED = {
    "autovacuum_vacuum_scale_factor": "0",
    "autovacuum_vacuum_threshold": "1000",
    "autovacuum_vacuum_insert_threshold": "-1",
}
"""Storage parameters of a table that stays small while many rows pass through it."""


def timestamp(name: str, *, nullable: bool = True, comment: str | None = None) -> sa.Column[object]:
    """Return a column with a point in time."""
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, comment=comment)


def timestamp_now(name: str) -> sa.Column[object]:
    """Return a column with the time of the transaction that inserted the row."""
    return sa.Column(name, sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now())


def issuance_identifiers() -> tuple[sa.Column[Any], ...]:
    """Return the columns that identify an issuance and what it is for."""
    return (
        sa.Column("issuance_id", UUID, primary_key=True),
        sa.Column("enrollment_id", sa.LargeBinary, nullable=False),
        sa.Column("request_id", UUID, nullable=False),
        sa.Column("issuer_id", sa.Text, nullable=False),
    )


def lease() -> tuple[sa.Column[Any], ...]:
    """Return the columns of a row that one process at a time works on: state, lease and fence."""
    return (
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("fence", sa.Integer, nullable=False, server_default="1"),
        timestamp("lease_until", nullable=False),
        timestamp("sign_before", nullable=False),
    )


def owner() -> tuple[sa.Column[Any], ...]:
    """Return the columns that name the owner of a certificate."""
    return (
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("service", sa.Text, nullable=False),
    )


def certificate_contents() -> tuple[sa.Column[Any], ...]:
    """Return the columns with what was decided about a certificate's contents."""
    return (
        sa.Column("profile", sa.Text, nullable=False),
        sa.Column("slot_id", UUID, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("san", sa.Text, nullable=False, comment="one entry a line"),
        sa.Column("spki_sha256", sa.LargeBinary, nullable=False),
        timestamp("not_before", nullable=False),
        timestamp("not_after", nullable=False),
        sa.Column("predecessor_sha256", sa.LargeBinary),
    )
