"""Tables that issue a certificate once: enrollments, issuances, requests, claims, secrets."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import UUID

from ca_signer.ledger.tables import columns
from ca_signer.ledger.tables.columns import metadata

enrollment = sa.Table(
    "enrollment",
    metadata,
    sa.Column("enrollment_id", sa.LargeBinary, primary_key=True),
    sa.Column("issuance_id", UUID, nullable=False),
    columns.timestamp_now("created_at"),
    comment="one row per EnrollmentId, locked by the process that handles it",
)

issuance = sa.Table(
    "issuance",
    metadata,
    *columns.issuance_identifiers(),
    sa.Column("serial_number", sa.LargeBinary, nullable=False),
    *columns.lease(),
    sa.Column(
        "tbs", sa.LargeBinary, comment="until signed; the certificate contains it afterwards"
    ),
    sa.Column("certificate", sa.LargeBinary),
    sa.Column("certificate_sha256", sa.LargeBinary),
    *columns.owner(),
    *columns.certificate_contents(),
    sa.Column("context", sa.Text, nullable=False, comment="JSON: what announcements need"),
    columns.timestamp_now("created_at"),
    columns.timestamp("issued_at"),
    columns.timestamp("announced_at"),
    columns.timestamp("revoked_at"),
    sa.Column("revocation_reason", sa.Text),
    sa.Column(
        "revocation_seq",
        sa.Integer,
        nullable=False,
        server_default="0",
        comment="how often it was revoked, held or released",
    ),
    columns.timestamp("revocation_changed_at"),
    columns.timestamp("revocation_announced_at"),
    sa.Column("revoked_by", sa.Text),
    sa.CheckConstraint("state in ('intended', 'issued', 'abandoned')", name="issuance_state"),
    sa.CheckConstraint(
        "(state = 'issued') = (certificate is not null)", name="issuance_issued_has_certificate"
    ),
    sa.UniqueConstraint("request_id", name="issuance_request"),
    sa.UniqueConstraint("serial_number", "issuer_id", name="issuance_serial"),
    sa.Index(
        "issuance_intended",
        "lease_until",
        postgresql_where="state = 'intended'",
    ),
    sa.Index(
        "issuance_unannounced",
        "issued_at",
        postgresql_where="state = 'issued' and announced_at is null",
    ),
    sa.Index(
        "issuance_fingerprint", "certificate_sha256", postgresql_where="certificate is not null"
    ),
    sa.Index(
        "issuance_revocation_unannounced",
        "revocation_changed_at",
        postgresql_where="revocation_changed_at is not null and revocation_announced_at is null",
    ),
    sa.Index(
        "issuance_revoked", "issuer_id", "not_after", postgresql_where="revoked_at is not null"
    ),
    sa.Index(
        "issuance_compromised",
        "spki_sha256",
        postgresql_where="revocation_reason = 'keyCompromise'",
    ),
    sa.Index("issuance_slot", "slot_id"),
    sa.Index("issuance_owner", "tenant", "service", "created_at"),
    sa.Index("issuance_issued_at", "issued_at", postgresql_using="brin"),
    postgresql_with={"fillfactor": "80"},
)

request = sa.Table(
    "request",
    metadata,
    sa.Column("request_id", UUID, primary_key=True),
    sa.Column("enrollment_id", sa.LargeBinary),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("issuance_id", UUID),
    sa.Column("kind", sa.Text),
    sa.Column("code", sa.Text),
    sa.Column("reason", sa.Text),
    sa.Column("announcement", sa.Text, comment="JSON: the audit record and event, until announced"),
    columns.timestamp_now("created_at"),
    columns.timestamp("announced_at"),
    sa.CheckConstraint("outcome in ('rejected', 'repeated')", name="request_outcome"),
    sa.Index("request_unannounced", "created_at", postgresql_where="announced_at is null"),
    comment="requests that issued nothing: refused, or answered with a stored certificate",
)

key_binding = sa.Table(
    "key_binding",
    metadata,
    sa.Column("spki_sha256", sa.LargeBinary, primary_key=True),
    *columns.owner(),
    comment="a public key belongs to one owner for ever",
)

claim = sa.Table(
    "claim",
    metadata,
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("enrollment_id", sa.LargeBinary, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    columns.timestamp_now("created_at"),
    sa.CheckConstraint("state in ('reserved', 'consumed')", name="claim_state"),
    sa.Index("claim_enrollment", "enrollment_id"),
    comment="single-use things: reserved with the intent, consumed with the certificate",
)

secret = sa.Table(
    "secret",
    metadata,
    sa.Column("secret_id", sa.Text, primary_key=True),
    sa.Column("sha256", sa.LargeBinary, nullable=False),
    sa.Column("one_time", sa.Integer, nullable=False),
    columns.timestamp("not_after", nullable=False),
    columns.timestamp("revoked_at"),
    columns.timestamp_now("created_at"),
    comment="verifiers of enrollment secrets; never the secrets",
)

attempt = sa.Table(
    "attempt",
    metadata,
    sa.Column("message_sha256", sa.LargeBinary, primary_key=True),
    sa.Column("attempts", sa.Integer, nullable=False),
    columns.timestamp_now("created_at"),
    comment="deliveries after the first, counted before the payload is read",
)

window = sa.Table(
    "window",
    metadata,
    sa.Column("started_at", sa.DateTime(timezone=True), primary_key=True),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    columns.timestamp("published_at"),
    comment="closed windows whose ledger.closed event was published",
)

heartbeat = sa.Table(
    "heartbeat",
    metadata,
    sa.Column("id", sa.Boolean, primary_key=True, server_default=sa.true()),
    columns.timestamp_now("at"),
    sa.CheckConstraint("id", name="heartbeat_id_check"),
    comment="written by each process, to see that PostgreSQL stores",
)
