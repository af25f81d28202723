"""Tables of upstream CAs: submissions, quarantined certificates, revocations asked for."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import UUID

from ca_signer.ledger.tables import columns
from ca_signer.ledger.tables.columns import metadata
from ca_signer.model import OPEN_SUBMISSIONS

submission = sa.Table(
    "submission",
    metadata,
    *columns.issuance_identifiers(),
    *columns.lease(),
    sa.Column("csr", sa.LargeBinary, nullable=False, comment="as the client signed it"),
    sa.Column("csr_sha256", sa.LargeBinary, nullable=False),
    sa.Column("pattern", sa.LargeBinary, nullable=False, comment="TBS of what was decided, linted"),
    *columns.owner(),
    *columns.certificate_contents(),
    sa.Column("context", sa.Text, nullable=False, comment="JSON: as of an issuance"),
    sa.Column("sendings", sa.Integer, nullable=False, server_default="0"),
    columns.timestamp("submitted_at"),
    columns.timestamp("retry_at"),
    sa.Column("reference", sa.Text, comment="the request's identifier at the upstream CA"),
    sa.Column("code", sa.Text),
    sa.Column("reason", sa.Text),
    columns.timestamp_now("created_at"),
    columns.timestamp_now("changed_at"),
    columns.timestamp("answered_at"),
    sa.Column("decided_by", sa.Text),
    columns.timestamp("announced_at"),
    sa.CheckConstraint(
        "state in ('recorded', 'submitted', 'pending', 'unknown', 'issued', 'refused', "
        "'quarantined', 'abandoned')",
        name="submission_state",
    ),
    sa.UniqueConstraint("request_id", name="submission_request"),
    sa.Index(
        "submission_open",
        "issuer_id",
        "state",
        postgresql_where=OPEN_SUBMISSIONS,
    ),
    sa.Index(
        "submission_untold",
        "changed_at",
        postgresql_where="announced_at is null "
        "and state in ('unknown', 'quarantined', 'abandoned')",
    ),
    comment="requests sent to an upstream CA; an issued certificate is a row of issuance too",
)

quarantine = sa.Table(
    "quarantine",
    metadata,
    sa.Column("quarantine_id", UUID, primary_key=True),
    sa.Column("issuance_id", UUID, nullable=False),
    sa.Column("issuer_id", sa.Text, nullable=False),
    sa.Column("certificate", sa.LargeBinary, nullable=False, comment="the octets that came"),
    sa.Column("check_failed", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    columns.timestamp_now("created_at"),
    sa.Index("quarantine_issuance", "issuance_id"),
    comment="certificates an upstream CA returned that failed a check and are not used",
)

upstream_revocation = sa.Table(
    "upstream_revocation",
    metadata,
    sa.Column("certificate_sha256", sa.LargeBinary, primary_key=True),
    sa.Column("issuance_id", UUID, nullable=False),
    sa.Column("issuer_id", sa.Text, nullable=False),
    sa.Column("certificate", sa.LargeBinary, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False, server_default="due"),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    columns.timestamp_now("next_at"),
    sa.Column("code", sa.Text),
    columns.timestamp_now("created_at"),
    columns.timestamp("ended_at"),
    columns.timestamp("announced_at"),
    sa.CheckConstraint(
        "state in ('due', 'done', 'refused', 'impossible')", name="upstream_revocation_state"
    ),
    sa.Index("upstream_revocation_due", "issuer_id", "next_at", postgresql_where="state = 'due'"),
    comment="certificates that an upstream CA must revoke, and whether it has",
)
