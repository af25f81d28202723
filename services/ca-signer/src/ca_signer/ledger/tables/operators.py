"""Tables of operators: their commands, approvals and bulk revocations."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import UUID

from ca_signer.ledger.tables import columns
from ca_signer.ledger.tables.columns import metadata

command = sa.Table(
    "command",
    metadata,
    sa.Column("command_id", UUID, primary_key=True),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("operator_sha256", sa.LargeBinary, nullable=False),
    sa.Column("operator", sa.Text, nullable=False),
    sa.Column("verb", sa.Text, nullable=False),
    sa.Column("answer", sa.Text, comment="JSON; without the result of verbs that only read"),
    sa.Column("announcement", sa.Text, comment="JSON: the audit record, until announced"),
    columns.timestamp_now("created_at"),
    columns.timestamp("announced_at"),
    sa.Index("command_unannounced", "created_at", postgresql_where="announced_at is null"),
    comment="signed commands that were carried out or refused, each once",
)

approval = sa.Table(
    "approval",
    metadata,
    sa.Column("enrollment_id", sa.LargeBinary, primary_key=True),
    sa.Column("approval_id", UUID, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("request_id", UUID, nullable=False),
    sa.Column("issuer_id", sa.Text, nullable=False),
    *columns.owner(),
    sa.Column("profile", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("san", sa.Text, nullable=False, comment="one entry a line"),
    sa.Column("spki_sha256", sa.LargeBinary, comment="none where the key is made here"),
    sa.Column("context", sa.Text, nullable=False, comment="JSON: as of an issuance"),
    columns.timestamp_now("requested_at"),
    columns.timestamp("expires_at", nullable=False),
    columns.timestamp("decided_at"),
    sa.Column("decided_by", sa.Text),
    sa.Column("reason", sa.Text),
    sa.Column("issuance_id", UUID, comment="what an approval was used for"),
    columns.timestamp("announced_at"),
    sa.CheckConstraint(
        "state in ('waiting', 'approved', 'rejected', 'used')", name="approval_state"
    ),
    sa.UniqueConstraint("approval_id", name="approval_approval_id"),
    sa.Index(
        "approval_waiting",
        "tenant",
        "service",
        "requested_at",
        postgresql_where="state = 'waiting'",
    ),
    sa.Index("approval_unannounced", "requested_at", postgresql_where="announced_at is null"),
    comment="requests under a rule with approval: who asked for what, and the decision",
)

bulk_revocation = sa.Table(
    "bulk_revocation",
    metadata,
    sa.Column("bulk_revocation_id", UUID, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("selector", sa.Text, nullable=False, comment="JSON: which certificates"),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("per_minute", sa.Integer, nullable=False),
    sa.Column("proposed_by", sa.Text, nullable=False),
    columns.timestamp_now("proposed_at"),
    sa.Column("confirmed_by", sa.Text),
    columns.timestamp("paced_at", comment="when the last ones were revoked"),
    sa.Column("stopped_by", sa.Text),
    columns.timestamp("ended_at"),
    sa.Column("members", sa.Integer, comment="certificates selected; none before that"),
    sa.Column("revoked", sa.Integer, nullable=False, server_default="0"),
    sa.Column("skipped", sa.Integer, nullable=False, server_default="0"),
    columns.timestamp("announced_at"),
    sa.CheckConstraint(
        "state in ('selecting', 'proposed', 'running', 'done', 'stopped', 'expired')",
        name="bulk_revocation_state",
    ),
    sa.Index(
        "bulk_revocation_open",
        "proposed_at",
        postgresql_where="state in ('selecting', 'proposed', 'running')",
    ),
    comment="proposals to revoke many certificates, and what came of them",
)

bulk_revocation_member = sa.Table(
    "bulk_revocation_member",
    metadata,
    sa.Column("bulk_revocation_id", UUID, primary_key=True),
    sa.Column("issuance_id", UUID, primary_key=True),
    columns.timestamp("revoked_at"),
    columns.timestamp(
        "skipped_at",
        comment="was not good any more when its turn came",
    ),
    columns.timestamp("announced_at"),
    sa.Index(
        "bulk_revocation_member_waiting",
        "bulk_revocation_id",
        postgresql_where="revoked_at is null and skipped_at is null",
    ),
    sa.Index(
        "bulk_revocation_member_unannounced",
        "revoked_at",
        postgresql_where="revoked_at is not null and announced_at is null",
    ),
    comment="the certificates of a bulk revocation, as selected when it was proposed",
)
