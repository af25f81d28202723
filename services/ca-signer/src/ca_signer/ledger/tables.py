"""The ledger's tables. Alembic moves them; statements are in ``ca_signer.ledger.issuances``."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import UUID

from ca_signer.model import OPEN_SUBMISSIONS

metadata = MetaData()


def _time(name: str, *, nullable: bool = True) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=nullable)


def _now(name: str) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=False, server_default=func.now())


enrollment = Table(
    "enrollment",
    metadata,
    Column("enrollment_id", LargeBinary, primary_key=True),
    Column("issuance_id", UUID, nullable=False),
    _now("created_at"),
    comment="one row per EnrollmentId, locked by the process that handles it",
)

issuance = Table(
    "issuance",
    metadata,
    Column("issuance_id", UUID, primary_key=True),
    Column("enrollment_id", LargeBinary, nullable=False),
    Column("request_id", UUID, nullable=False),
    Column("issuer_id", Text, nullable=False),
    Column("serial_number", LargeBinary, nullable=False),
    Column("state", Text, nullable=False),
    Column("fence", Integer, nullable=False, server_default="1"),
    _time("lease_until", nullable=False),
    _time("sign_before", nullable=False),
    Column("tbs", LargeBinary, comment="until signed; the certificate contains it afterwards"),
    Column("certificate", LargeBinary),
    Column("certificate_sha256", LargeBinary),
    Column("tenant", Text, nullable=False),
    Column("service", Text, nullable=False),
    Column("profile", Text, nullable=False),
    Column("slot_id", UUID, nullable=False),
    Column("subject", Text, nullable=False),
    Column("san", Text, nullable=False, comment="one entry a line"),
    Column("spki_sha256", LargeBinary, nullable=False),
    _time("not_before", nullable=False),
    _time("not_after", nullable=False),
    Column("predecessor_sha256", LargeBinary),
    Column("context", Text, nullable=False, comment="JSON: what announcements need"),
    _now("created_at"),
    _time("issued_at"),
    _time("announced_at"),
    _time("revoked_at"),
    Column("revocation_reason", Text),
    Column(
        "revocation_seq",
        Integer,
        nullable=False,
        server_default="0",
        comment="how often it was revoked, held or released",
    ),
    _time("revocation_changed_at"),
    _time("revocation_announced_at"),
    Column("revoked_by", Text),
    CheckConstraint("state in ('intended', 'issued', 'abandoned')", name="issuance_state"),
    CheckConstraint(
        "(state = 'issued') = (certificate is not null)", name="issuance_issued_has_certificate"
    ),
    UniqueConstraint("request_id", name="issuance_request"),
    UniqueConstraint("serial_number", "issuer_id", name="issuance_serial"),
    Index(
        "issuance_intended",
        "lease_until",
        postgresql_where="state = 'intended'",
    ),
    Index(
        "issuance_unannounced",
        "issued_at",
        postgresql_where="state = 'issued' and announced_at is null",
    ),
    Index("issuance_fingerprint", "certificate_sha256", postgresql_where="certificate is not null"),
    Index(
        "issuance_revocation_unannounced",
        "revocation_changed_at",
        postgresql_where="revocation_changed_at is not null and revocation_announced_at is null",
    ),
    Index("issuance_revoked", "issuer_id", "not_after", postgresql_where="revoked_at is not null"),
    Index(
        "issuance_compromised",
        "spki_sha256",
        postgresql_where="revocation_reason = 'keyCompromise'",
    ),
    Index("issuance_slot", "slot_id"),
    Index("issuance_owner", "tenant", "service", "created_at"),
    Index("issuance_issued_at", "issued_at", postgresql_using="brin"),
    postgresql_with={"fillfactor": "80"},
)

request = Table(
    "request",
    metadata,
    Column("request_id", UUID, primary_key=True),
    Column("enrollment_id", LargeBinary),
    Column("outcome", Text, nullable=False),
    Column("issuance_id", UUID),
    Column("kind", Text),
    Column("code", Text),
    Column("reason", Text),
    Column("announcement", Text, comment="JSON: the audit record and event, until announced"),
    _now("created_at"),
    _time("announced_at"),
    CheckConstraint("outcome in ('rejected', 'repeated')", name="request_outcome"),
    Index("request_unannounced", "created_at", postgresql_where="announced_at is null"),
    comment="requests that issued nothing: refused, or answered with a stored certificate",
)

key_binding = Table(
    "key_binding",
    metadata,
    Column("spki_sha256", LargeBinary, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("service", Text, nullable=False),
    comment="a public key belongs to one owner for ever",
)

claim = Table(
    "claim",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("enrollment_id", LargeBinary, nullable=False),
    Column("state", Text, nullable=False),
    _now("created_at"),
    CheckConstraint("state in ('reserved', 'consumed')", name="claim_state"),
    Index("claim_enrollment", "enrollment_id"),
    comment="single-use things: reserved with the intent, consumed with the certificate",
)

secret = Table(
    "secret",
    metadata,
    Column("secret_id", Text, primary_key=True),
    Column("sha256", LargeBinary, nullable=False),
    Column("one_time", Integer, nullable=False),
    _time("not_after", nullable=False),
    _time("revoked_at"),
    _now("created_at"),
    comment="verifiers of enrollment secrets; never the secrets",
)

attempt = Table(
    "attempt",
    metadata,
    Column("stream_sequence", BigInteger, primary_key=True),
    Column("attempts", Integer, nullable=False),
    _now("created_at"),
    comment="deliveries after the first, counted before the payload is read",
)

window = Table(
    "window",
    metadata,
    Column("started_at", DateTime(timezone=True), primary_key=True),
    Column("count", Integer, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    _time("published_at"),
    comment="closed windows whose ledger.closed event was published",
)

command = Table(
    "command",
    metadata,
    Column("command_id", UUID, primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("operator_sha256", LargeBinary, nullable=False),
    Column("operator", Text, nullable=False),
    Column("verb", Text, nullable=False),
    Column("answer", Text, comment="JSON; without the result of verbs that only read"),
    Column("announcement", Text, comment="JSON: the audit record, until announced"),
    _now("created_at"),
    _time("announced_at"),
    Index("command_unannounced", "created_at", postgresql_where="announced_at is null"),
    comment="signed commands that were carried out or refused, each once",
)

approval = Table(
    "approval",
    metadata,
    Column("enrollment_id", LargeBinary, primary_key=True),
    Column("approval_id", UUID, nullable=False),
    Column("state", Text, nullable=False),
    Column("request_id", UUID, nullable=False),
    Column("issuer_id", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("service", Text, nullable=False),
    Column("profile", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("san", Text, nullable=False, comment="one entry a line"),
    Column("spki_sha256", LargeBinary, comment="none where the key is made here"),
    Column("context", Text, nullable=False, comment="JSON: as of an issuance"),
    _now("requested_at"),
    _time("expires_at", nullable=False),
    _time("decided_at"),
    Column("decided_by", Text),
    Column("reason", Text),
    Column("issuance_id", UUID, comment="what an approval was used for"),
    _time("announced_at"),
    CheckConstraint("state in ('waiting', 'approved', 'rejected', 'used')", name="approval_state"),
    UniqueConstraint("approval_id", name="approval_approval_id"),
    Index(
        "approval_waiting",
        "tenant",
        "service",
        "requested_at",
        postgresql_where="state = 'waiting'",
    ),
    Index("approval_unannounced", "requested_at", postgresql_where="announced_at is null"),
    comment="requests under a rule with approval: who asked for what, and the decision",
)

submission = Table(
    "submission",
    metadata,
    Column("issuance_id", UUID, primary_key=True),
    Column("enrollment_id", LargeBinary, nullable=False),
    Column("request_id", UUID, nullable=False),
    Column("issuer_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("fence", Integer, nullable=False, server_default="1"),
    _time("lease_until", nullable=False),
    _time("sign_before", nullable=False),
    Column("csr", LargeBinary, nullable=False, comment="as the client signed it"),
    Column("csr_sha256", LargeBinary, nullable=False),
    Column("pattern", LargeBinary, nullable=False, comment="TBS of what was decided, linted"),
    Column("tenant", Text, nullable=False),
    Column("service", Text, nullable=False),
    Column("profile", Text, nullable=False),
    Column("slot_id", UUID, nullable=False),
    Column("subject", Text, nullable=False),
    Column("san", Text, nullable=False, comment="one entry a line"),
    Column("spki_sha256", LargeBinary, nullable=False),
    _time("not_before", nullable=False),
    _time("not_after", nullable=False),
    Column("predecessor_sha256", LargeBinary),
    Column("context", Text, nullable=False, comment="JSON: as of an issuance"),
    Column("sendings", Integer, nullable=False, server_default="0"),
    _time("submitted_at"),
    _time("retry_at"),
    Column("reference", Text, comment="the request's identifier at the upstream CA"),
    Column("code", Text),
    Column("reason", Text),
    _now("created_at"),
    _now("changed_at"),
    _time("answered_at"),
    Column("decided_by", Text),
    _time("announced_at"),
    CheckConstraint(
        "state in ('recorded', 'submitted', 'pending', 'unknown', 'issued', 'refused', "
        "'quarantined', 'abandoned')",
        name="submission_state",
    ),
    UniqueConstraint("request_id", name="submission_request"),
    Index(
        "submission_open",
        "issuer_id",
        "state",
        postgresql_where=OPEN_SUBMISSIONS,
    ),
    Index(
        "submission_untold",
        "changed_at",
        postgresql_where="announced_at is null "
        "and state in ('unknown', 'quarantined', 'abandoned')",
    ),
    comment="requests sent to an upstream CA; an issued certificate is a row of issuance too",
)

quarantine = Table(
    "quarantine",
    metadata,
    Column("quarantine_id", UUID, primary_key=True),
    Column("issuance_id", UUID, nullable=False),
    Column("issuer_id", Text, nullable=False),
    Column("certificate", LargeBinary, nullable=False, comment="the octets that came"),
    Column("check_failed", Text, nullable=False),
    Column("reason", Text, nullable=False),
    _now("created_at"),
    Index("quarantine_issuance", "issuance_id"),
    comment="certificates an upstream CA returned that failed a check and are not used",
)

upstream_revocation = Table(
    "upstream_revocation",
    metadata,
    Column("certificate_sha256", LargeBinary, primary_key=True),
    Column("issuance_id", UUID, nullable=False),
    Column("issuer_id", Text, nullable=False),
    Column("certificate", LargeBinary, nullable=False),
    Column("reason", Text, nullable=False),
    Column("state", Text, nullable=False, server_default="due"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    _now("next_at"),
    Column("code", Text),
    _now("created_at"),
    _time("ended_at"),
    _time("announced_at"),
    CheckConstraint(
        "state in ('due', 'done', 'refused', 'impossible')", name="upstream_revocation_state"
    ),
    Index("upstream_revocation_due", "issuer_id", "next_at", postgresql_where="state = 'due'"),
    comment="certificates that an upstream CA must revoke, and whether it has",
)

crl = Table(
    "crl",
    metadata,
    Column("issuer_id", Text, primary_key=True),
    Column(
        "partition",
        Text,
        primary_key=True,
        server_default="",
        comment="as 16-3; empty for the full list",
    ),
    Column("last_number", BigInteger, nullable=False, comment="given out, each to one signer"),
    Column("number", BigInteger, comment="of the list stored here"),
    Column("crl", LargeBinary),
    _time("this_update"),
    _time("next_update"),
    _time("published_at"),
    comment="the newest revocation list of each issuer",
)

generation = Table(
    "generation",
    metadata,
    Column("issuer_id", Text, primary_key=True),
    Column("family", Text, nullable=False),
    Column("state", Text, nullable=False),
    _now("changed_at"),
    CheckConstraint(
        "state in ('planned', 'published', 'signing', 'accepted', 'retired', 'withdrawn')",
        name="generation_state",
    ),
    Index("generation_signing", "family", unique=True, postgresql_where="state = 'signing'"),
    comment="issuers that rollovers named; who is signing may be in an intent",
)

rollover = Table(
    "rollover",
    metadata,
    Column("rollover_id", UUID, primary_key=True),
    Column("family", Text, nullable=False),
    Column("from_issuer", Text, nullable=False),
    Column("to_issuer", Text, nullable=False),
    Column("state", Text, nullable=False),
    _now("planned_at"),
    _time("published_at"),
    _time("signing_at"),
    _time("ended_at"),
    Column("changed_by", Text, nullable=False),
    Column("fleet", Integer, comment="slots when signing was switched"),
    Column("fetched", Integer, comment="of them, those that had the trust"),
    CheckConstraint(
        "state in ('planned', 'published', 'signing', 'retired', 'rolled_back', 'reversed')",
        name="rollover_state",
    ),
    Index(
        "rollover_open",
        "family",
        unique=True,
        postgresql_where="state in ('planned', 'published')",
    ),
    Index("rollover_overlap", "family", unique=True, postgresql_where="state in ('signing')"),
    comment="from one generation of an issuer to the next",
)

trust_seen = Table(
    "trust_seen",
    metadata,
    Column("rollover_id", UUID, primary_key=True),
    Column("slot_id", UUID, primary_key=True),
    _now("seen_at"),
    comment="slots that fetched /cacerts with a certificate since a rollover was published",
)

certificate = Table(
    "certificate",
    metadata,
    Column("no", BigInteger, Identity(always=True), primary_key=True),
    Column("issuance_id", UUID, nullable=False),
    Column("issuer_id", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("service", Text, nullable=False),
    Column("team", Text),
    Column("cluster", Text),
    Column("profile", Text, nullable=False),
    Column("slot_id", UUID, nullable=False),
    _time("not_after", nullable=False),
    _time("revoked_at"),
    UniqueConstraint("issuance_id", name="certificate_issuance"),
    Index("certificate_owner", "tenant", "service", "no"),
    Index("certificate_profile", "profile", "no"),
    Index("certificate_expiry", "not_after", "no"),
    Index("certificate_slot", "slot_id", "no"),
    Index("certificate_revoked", "no", postgresql_where="revoked_at is not null"),
    Index("certificate_team", "team", "no", postgresql_where="team is not null"),
    Index("certificate_cluster", "cluster", "no", postgresql_where="cluster is not null"),
    comment="what certificates are searched by; entered when their announcement is confirmed",
)

certificate_name = Table(
    "certificate_name",
    metadata,
    Column("name", Text(collation="C"), primary_key=True, comment="lower case"),
    Column("no", BigInteger, primary_key=True),
    Index("certificate_name_reversed", text("reverse(name)"), "no"),
    comment="SAN entries without their kind, and values of the subject",
)

bulk_revocation = Table(
    "bulk_revocation",
    metadata,
    Column("bulk_revocation_id", UUID, primary_key=True),
    Column("state", Text, nullable=False),
    Column("selector", Text, nullable=False, comment="JSON: which certificates"),
    Column("reason", Text, nullable=False),
    Column("per_minute", Integer, nullable=False),
    Column("proposed_by", Text, nullable=False),
    _now("proposed_at"),
    Column("confirmed_by", Text),
    Column("paced_at", DateTime(timezone=True), comment="when the last ones were revoked"),
    Column("stopped_by", Text),
    _time("ended_at"),
    Column("members", Integer, comment="certificates selected; none before that"),
    Column("revoked", Integer, nullable=False, server_default="0"),
    Column("skipped", Integer, nullable=False, server_default="0"),
    _time("announced_at"),
    CheckConstraint(
        "state in ('selecting', 'proposed', 'running', 'done', 'stopped', 'expired')",
        name="bulk_revocation_state",
    ),
    Index(
        "bulk_revocation_open",
        "proposed_at",
        postgresql_where="state in ('selecting', 'proposed', 'running')",
    ),
    comment="proposals to revoke many certificates, and what came of them",
)

bulk_revocation_member = Table(
    "bulk_revocation_member",
    metadata,
    Column("bulk_revocation_id", UUID, primary_key=True),
    Column("issuance_id", UUID, primary_key=True),
    _time("revoked_at"),
    Column(
        "skipped_at",
        DateTime(timezone=True),
        comment="was not good any more when its turn came",
    ),
    _time("announced_at"),
    Index(
        "bulk_revocation_member_waiting",
        "bulk_revocation_id",
        postgresql_where="revoked_at is null and skipped_at is null",
    ),
    Index(
        "bulk_revocation_member_unannounced",
        "revoked_at",
        postgresql_where="revoked_at is not null and announced_at is null",
    ),
    comment="the certificates of a bulk revocation, as selected when it was proposed",
)
