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
    *columns.owner(),
    *columns.certificate_contents(),
    sa.Column("context", sa.Text, nullable=False, comment="JSON: what announcements need"),
    columns.timestamp_now("created_at"),
    # Step 9 changes columns from here on: of an update in its page, PostgreSQL writes into its WAL
    # only what is behind the first octet that differs.
    *columns.lease(),
    sa.Column(
        "tbs", sa.LargeBinary, comment="until signed; the certificate contains it afterwards"
    ),
    sa.Column("certificate", sa.LargeBinary),
    sa.Column("certificate_sha256", sa.LargeBinary),
    columns.timestamp("issued_at"),
    columns.timestamp("abandoned_at"),
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
    # Step 9 changes no column of these indexes, nor of their conditions, so that the row is updated
    # in its page and no index is touched (HOT; a BRIN index does not count). What a signer looks
    # for by state, and a certificate by its fingerprint, is in tables of its own, below.
    # A request delivered again: ca_signer.issuance.idempotency.
    sa.UniqueConstraint("request_id", name="issuance_request"),
    # No serial number twice; OCSP and operators name certificates by it.
    sa.UniqueConstraint("serial_number", "issuer_id", name="issuance_serial"),
    # Revocations to publish: ca_signer.revocation.publisher.
    sa.Index(
        "issuance_revocation_unannounced",
        "revocation_changed_at",
        postgresql_where="revocation_changed_at is not null and revocation_announced_at is null",
    ),
    # CRLs and shards of revoked serial numbers.
    sa.Index(
        "issuance_revoked", "issuer_id", "not_after", postgresql_where="revoked_at is not null"
    ),
    # Keys known to be lost, at every request.
    sa.Index(
        "issuance_compromised",
        "spki_sha256",
        postgresql_where="revocation_reason = 'keyCompromise'",
    ),
    # Live certificates of a slot (max_active, renewal by a registrar), slots of a rollover.
    sa.Index("issuance_slot", "slot_id"),
    # Certificates of an owner in a day (max_per_day).
    sa.Index("issuance_owner", "tenant", "service", "created_at"),
    # Windows that audit and renewal compare.
    sa.Index("issuance_issued_at", "issued_at", postgresql_using="brin"),
    # Half of a page is left for the certificates of the intents in it.
    postgresql_with={"fillfactor": "50", "toast_tuple_target": "4000"},
)

open_intent = sa.Table(
    "open_intent",
    metadata,
    sa.Column("issuance_id", UUID, primary_key=True),
    postgresql_with=columns.SHORT_LIVED,
    comment="the issuances in state intended, for the sweeper; the rest is in their rows",
)

unannounced = sa.Table(
    "unannounced",
    metadata,
    sa.Column("issuance_id", UUID, primary_key=True),
    postgresql_with=columns.SHORT_LIVED,
    comment="certificates whose event and audit outcome have no PubAck yet",
)

fingerprint = sa.Table(
    "fingerprint",
    metadata,
    sa.Column("certificate_sha256", sa.LargeBinary, primary_key=True),
    sa.Column("issuance_id", UUID, nullable=False),
    comment="certificates by SHA-256: those that clients present, operators name, events are about",
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
    sa.Column(
        "created_at",
        sa.DateTime(timezone=True),
        server_default=sa.func.now(),
        comment="when its first certificate was recorded; null: not known",
    ),
    comment="a public key belongs to one owner for ever",
)

managed_issuance = sa.Table(
    "managed_issuance",
    metadata,
    sa.Column("issuance_id", UUID, primary_key=True),
    sa.Column(
        "sealed_key",
        sa.LargeBinary,
        comment="EnvelopedData with a generated key, until its certificate is proven in use",
    ),
    columns.timestamp_now("created_at"),
    columns.timestamp("fetched_at", comment="when the client first fetched it"),
    sa.Index("managed_issuance_keys", "created_at", postgresql_where="sealed_key is not null"),
    comment="issuances by managed renewal, for their clients to fetch",
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
    columns.timestamp_now("changed_at"),
    columns.timestamp("announced_at", comment="front ends have the verifier as of changed_at"),
    sa.Index("secret_unannounced", "changed_at", postgresql_where="announced_at is null"),
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
