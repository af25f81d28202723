"""Tables of campaigns: early renewals of many certificates, and how far each one is."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import UUID

from ca_signer.ledger.tables import columns
from ca_signer.ledger.tables.columns import metadata

campaign = sa.Table(
    "campaign",
    metadata,
    sa.Column("campaign_id", UUID, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("selector", sa.Text, nullable=False, comment="JSON: which certificates"),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("explanation_url", sa.Text),
    sa.Column("per_minute", sa.Integer, nullable=False),
    columns.timestamp("starts_at", comment="no renewal is requested before"),
    columns.timestamp("renew_by", comment="end of the window; none: each at once"),
    sa.Column(
        "revoke_reason",
        sa.Text,
        comment="why a replaced certificate is revoked after proof of use; none: it is not",
    ),
    sa.Column("proposed_by", sa.Text, nullable=False),
    columns.timestamp_now("proposed_at"),
    sa.Column("confirmed_by", sa.Text),
    sa.Column("paused_by", sa.Text),
    sa.Column("stopped_by", sa.Text),
    columns.timestamp("paced_at", comment="when renewals were requested last"),
    columns.timestamp("checked_at", comment="progress of the members is known up to here"),
    columns.timestamp("ended_at"),
    sa.Column("members", sa.Integer, comment="certificates selected; none before that"),
    columns.timestamp("announced_at"),
    sa.CheckConstraint(
        "state in ('selecting', 'proposed', 'running', 'paused', 'done', 'stopped', 'expired')",
        name="campaign_state",
    ),
    sa.CheckConstraint(
        "reason in ('incident', 'ca_rollover', 'policy_change', 'operator')",
        name="campaign_reason",
    ),
    sa.Index(
        "campaign_open",
        "proposed_at",
        postgresql_where="state in ('selecting', 'proposed', 'running', 'paused')",
    ),
    comment="early renewals of many certificates, proposed by an operator",
)

campaign_member = sa.Table(
    "campaign_member",
    metadata,
    sa.Column("campaign_id", UUID, primary_key=True),
    sa.Column("issuance_id", UUID, primary_key=True),
    sa.Column("slot_id", UUID, nullable=False),
    sa.Column("rank", sa.SmallInteger, nullable=False, comment="priority, 0 is critical"),
    columns.timestamp("not_after", nullable=False),
    columns.timestamp("requested_at"),
    columns.timestamp("announced_at", comment="the request has its PubAck"),
    columns.timestamp("skipped_at", comment="needed no request when its turn came"),
    columns.timestamp("renewed_at", comment="a younger certificate of the slot was issued"),
    columns.timestamp("proven_at", comment="a younger certificate of the slot is in use"),
    columns.timestamp("deprecated_at", comment="the overlap is over; it may be revoked"),
    columns.timestamp("revoked_at"),
    columns.timestamp("revocation_announced_at"),
    columns.timestamp("finished_at", comment="the campaign has nothing more to do for it"),
    sa.Index(
        "campaign_member_waiting",
        "campaign_id",
        "rank",
        "issuance_id",
        postgresql_where="requested_at is null and skipped_at is null",
    ),
    sa.Index(
        "campaign_member_unannounced",
        "requested_at",
        postgresql_where="requested_at is not null and announced_at is null",
    ),
    # Renewals, proofs and ends of overlaps, which name the slot.
    sa.Index("campaign_member_slot", "slot_id", postgresql_where="finished_at is null"),
    sa.Index("campaign_member_issuance", "issuance_id"),
    sa.Index(
        "campaign_member_revocable",
        "campaign_id",
        postgresql_where="deprecated_at is not null and finished_at is null",
    ),
    sa.Index(
        "campaign_member_unfinished",
        "campaign_id",
        "not_after",
        postgresql_where="finished_at is null",
    ),
    sa.Index(
        "campaign_member_revocation_unannounced",
        "revoked_at",
        postgresql_where="revoked_at is not null and revocation_announced_at is null",
    ),
    comment="the certificates of a campaign, as selected when it was proposed",
)
