"""The ledger's tables, as ``ca_signer.ledger.tables`` describes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from estcore.runtime.alembic_env import runtime_role

revision = "0001"
down_revision = None

TIME = sa.DateTime(timezone=True)
UUID = postgresql.UUID()
SHORT_LIVED = {
    "autovacuum_vacuum_scale_factor": "0",
    "autovacuum_vacuum_threshold": "1000",
    "autovacuum_vacuum_insert_threshold": "-1",
}
GRANTS = {
    "select, insert, update": (
        "enrollment",
        "issuance",
        "fingerprint",
        "request",
        "key_binding",
        "claim",
        "secret",
        "attempt",
        "window",
        "command",
        "crl",
        "generation",
        "rollover",
        "certificate",
        "certificate_name",
        "bulk_revocation",
        "bulk_revocation_member",
        "campaign",
        "campaign_member",
        "submission",
        "upstream_revocation",
    ),
    "delete": (
        "claim",
        "attempt",
        "enrollment",
    ),
    "select, insert, update, delete": ("approval",),
    "select, insert, delete": (
        "open_intent",
        "unannounced",
    ),
    "select, update": ("heartbeat",),
    "select, insert": (
        "trust_seen",
        "quarantine",
    ),
}
"""Rights of the service on its tables; every other right is the owner's alone."""


def _timestamp_now(name: str) -> sa.Column[object]:
    return sa.Column(name, TIME, server_default=sa.text("now()"), nullable=False)


def _not_null(kind: Any, *names: str) -> Iterator[sa.Column[Any]]:
    return (sa.Column(name, kind, nullable=False) for name in names)


def _nullable(kind: Any, *names: str) -> Iterator[sa.Column[Any]]:
    return (sa.Column(name, kind) for name in names)


def _issuance_identifiers() -> tuple[sa.Column[Any], ...]:
    return (
        *_not_null(UUID, "issuance_id"),
        *_not_null(sa.LargeBinary, "enrollment_id"),
        *_not_null(UUID, "request_id"),
        *_not_null(sa.Text, "issuer_id"),
    )


def _lease() -> tuple[sa.Column[Any], ...]:
    return (
        *_not_null(sa.Text, "state"),
        sa.Column("fence", sa.Integer, server_default="1", nullable=False),
        *_not_null(TIME, "lease_until", "sign_before"),
    )


def _owner() -> Iterator[sa.Column[Any]]:
    return _not_null(sa.Text, "tenant", "service")


def _certificate_contents() -> tuple[sa.Column[Any], ...]:
    return (
        *_not_null(sa.Text, "profile"),
        *_not_null(UUID, "slot_id"),
        *_not_null(sa.Text, "subject"),
        sa.Column("san", sa.Text, nullable=False, comment="one entry a line"),
        *_not_null(sa.LargeBinary, "spki_sha256"),
        *_not_null(TIME, "not_before", "not_after"),
        *_nullable(sa.LargeBinary, "predecessor_sha256"),
    )


def _create_index(
    name: str,
    table: str,
    *columns: str | sa.ColumnElement[Any],
    where: str | None = None,
    **options: Any,
) -> None:
    if where is not None:
        options["postgresql_where"] = where
    op.create_index(name, table, list(columns), **options)


def upgrade() -> None:  # noqa: PLR0915 - one statement a table or index
    op.create_table(
        "enrollment",
        sa.Column("enrollment_id", sa.LargeBinary, nullable=False),
        sa.Column("issuance_id", UUID, nullable=False),
        _timestamp_now("created_at"),
        sa.PrimaryKeyConstraint("enrollment_id"),
        comment="one row per EnrollmentId, locked by the process that handles it",
    )
    op.create_table(
        "issuance",
        *_issuance_identifiers(),
        sa.Column("serial_number", sa.LargeBinary, nullable=False),
        *_owner(),
        *_certificate_contents(),
        sa.Column("context", sa.Text, nullable=False, comment="JSON: what announcements need"),
        _timestamp_now("created_at"),
        *_lease(),
        sa.Column(
            "tbs", sa.LargeBinary, comment="until signed; the certificate contains it afterwards"
        ),
        *_nullable(sa.LargeBinary, "certificate", "certificate_sha256"),
        *_nullable(TIME, "issued_at", "abandoned_at", "revoked_at"),
        sa.Column("revocation_reason", sa.Text),
        sa.Column(
            "revocation_seq",
            sa.Integer,
            server_default="0",
            nullable=False,
            comment="how often it was revoked, held or released",
        ),
        *_nullable(TIME, "revocation_changed_at", "revocation_announced_at"),
        sa.Column("revoked_by", sa.Text),
        sa.CheckConstraint(
            "(state = 'issued') = (certificate is not null)", name="issuance_issued_has_certificate"
        ),
        sa.CheckConstraint("state in ('intended', 'issued', 'abandoned')", name="issuance_state"),
        sa.PrimaryKeyConstraint("issuance_id"),
        sa.UniqueConstraint("request_id", name="issuance_request"),
        sa.UniqueConstraint("serial_number", "issuer_id", name="issuance_serial"),
        postgresql_with={"fillfactor": "50", "toast_tuple_target": "4000"},
    )
    # DER does not compress.
    op.execute(
        "alter table issuance alter tbs set storage external, "
        "alter certificate set storage external"
    )
    _create_index(
        "issuance_compromised",
        "issuance",
        "spki_sha256",
        where="revocation_reason = 'keyCompromise'",
    )
    _create_index("issuance_issued_at", "issuance", "issued_at", postgresql_using="brin")
    _create_index("issuance_owner", "issuance", "tenant", "service", "created_at")
    _create_index(
        "issuance_revocation_unannounced",
        "issuance",
        "revocation_changed_at",
        where="revocation_changed_at is not null and revocation_announced_at is null",
    )
    _create_index(
        "issuance_revoked", "issuance", "issuer_id", "not_after", where="revoked_at is not null"
    )
    _create_index("issuance_slot", "issuance", "slot_id")
    for name, comment in (
        (
            "open_intent",
            "the issuances in state intended, for the sweeper; the rest is in their rows",
        ),
        ("unannounced", "certificates whose event and audit outcome have no PubAck yet"),
    ):
        op.create_table(
            name,
            *_not_null(UUID, "issuance_id"),
            sa.PrimaryKeyConstraint("issuance_id"),
            postgresql_with=SHORT_LIVED,
            comment=comment,
        )
    op.create_table(
        "fingerprint",
        sa.Column("certificate_sha256", sa.LargeBinary, nullable=False),
        *_not_null(UUID, "issuance_id"),
        sa.PrimaryKeyConstraint("certificate_sha256"),
        comment=(
            "certificates by SHA-256: those that clients present, operators name, events are about"
        ),
    )
    op.create_table(
        "request",
        sa.Column("request_id", UUID, nullable=False),
        sa.Column("enrollment_id", sa.LargeBinary),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("issuance_id", UUID),
        *_nullable(sa.Text, "kind", "code", "reason"),
        sa.Column(
            "announcement", sa.Text, comment="JSON: the audit record and event, until announced"
        ),
        _timestamp_now("created_at"),
        sa.Column("announced_at", TIME),
        sa.CheckConstraint("outcome in ('rejected', 'repeated')", name="request_outcome"),
        sa.PrimaryKeyConstraint("request_id"),
        comment="requests that issued nothing: refused, or answered with a stored certificate",
    )
    _create_index("request_unannounced", "request", "created_at", where="announced_at is null")
    op.create_table(
        "key_binding",
        sa.Column("spki_sha256", sa.LargeBinary, nullable=False),
        *_owner(),
        sa.PrimaryKeyConstraint("spki_sha256"),
        comment="a public key belongs to one owner for ever",
    )
    op.create_table(
        "claim",
        *_not_null(sa.Text, "kind", "id"),
        sa.Column("enrollment_id", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        _timestamp_now("created_at"),
        sa.CheckConstraint("state in ('reserved', 'consumed')", name="claim_state"),
        sa.PrimaryKeyConstraint("kind", "id"),
        comment="single-use things: reserved with the intent, consumed with the certificate",
    )
    _create_index("claim_enrollment", "claim", "enrollment_id")
    op.create_table(
        "secret",
        sa.Column("secret_id", sa.Text, nullable=False),
        sa.Column("sha256", sa.LargeBinary, nullable=False),
        sa.Column("one_time", sa.Integer, nullable=False),
        sa.Column("not_after", TIME, nullable=False),
        sa.Column("revoked_at", TIME),
        _timestamp_now("created_at"),
        _timestamp_now("changed_at"),
        sa.Column("announced_at", TIME, comment="front ends have the verifier as of changed_at"),
        sa.PrimaryKeyConstraint("secret_id"),
        comment="verifiers of enrollment secrets; never the secrets",
    )
    _create_index("secret_unannounced", "secret", "changed_at", where="announced_at is null")
    op.create_table(
        "attempt",
        sa.Column("message_sha256", sa.LargeBinary, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        _timestamp_now("created_at"),
        sa.PrimaryKeyConstraint("message_sha256"),
        comment="deliveries after the first, counted before the payload is read",
    )
    op.create_table(
        "window",
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("published_at", TIME),
        sa.PrimaryKeyConstraint("started_at"),
        comment="closed windows whose ledger.closed event was published",
    )
    op.create_table(
        "command",
        sa.Column("command_id", UUID, nullable=False),
        *_not_null(sa.LargeBinary, "digest", "operator_sha256"),
        *_not_null(sa.Text, "operator", "verb"),
        sa.Column("answer", sa.Text, comment="JSON; without the result of verbs that only read"),
        sa.Column("announcement", sa.Text, comment="JSON: the audit record, until announced"),
        _timestamp_now("created_at"),
        sa.Column("announced_at", TIME),
        sa.PrimaryKeyConstraint("command_id"),
        comment="signed commands that were carried out or refused, each once",
    )
    _create_index("command_unannounced", "command", "created_at", where="announced_at is null")
    op.create_table(
        "approval",
        sa.Column("enrollment_id", sa.LargeBinary, nullable=False),
        sa.Column("approval_id", UUID, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("request_id", UUID, nullable=False),
        sa.Column("issuer_id", sa.Text, nullable=False),
        *_owner(),
        *_not_null(sa.Text, "profile", "subject"),
        sa.Column("san", sa.Text, nullable=False, comment="one entry a line"),
        sa.Column("spki_sha256", sa.LargeBinary, comment="none where the key is made here"),
        sa.Column("context", sa.Text, nullable=False, comment="JSON: as of an issuance"),
        _timestamp_now("requested_at"),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("decided_at", TIME),
        *_nullable(sa.Text, "decided_by", "reason"),
        sa.Column("issuance_id", UUID, comment="what an approval was used for"),
        sa.Column("announced_at", TIME),
        sa.CheckConstraint(
            "state in ('waiting', 'approved', 'rejected', 'used')", name="approval_state"
        ),
        sa.PrimaryKeyConstraint("enrollment_id"),
        sa.UniqueConstraint("approval_id", name="approval_approval_id"),
        comment="requests under a rule with approval: who asked for what, and the decision",
    )
    _create_index("approval_unannounced", "approval", "requested_at", where="announced_at is null")
    _create_index(
        "approval_waiting",
        "approval",
        "tenant",
        "service",
        "requested_at",
        where="state = 'waiting'",
    )
    op.create_table(
        "submission",
        *_issuance_identifiers(),
        *_lease(),
        sa.Column("csr", sa.LargeBinary, nullable=False, comment="as the client signed it"),
        sa.Column("csr_sha256", sa.LargeBinary, nullable=False),
        sa.Column(
            "pattern", sa.LargeBinary, nullable=False, comment="TBS of what was decided, linted"
        ),
        *_owner(),
        *_certificate_contents(),
        sa.Column("context", sa.Text, nullable=False, comment="JSON: as of an issuance"),
        sa.Column("sendings", sa.Integer, server_default="0", nullable=False),
        *_nullable(TIME, "submitted_at", "retry_at"),
        sa.Column("reference", sa.Text, comment="the request's identifier at the upstream CA"),
        *_nullable(sa.Text, "code", "reason"),
        _timestamp_now("created_at"),
        _timestamp_now("changed_at"),
        sa.Column("answered_at", TIME),
        sa.Column("decided_by", sa.Text),
        sa.Column("announced_at", TIME),
        sa.CheckConstraint(
            "state in ('recorded', 'submitted', 'pending', 'unknown', 'issued', 'refused', "
            "'quarantined', 'abandoned')",
            name="submission_state",
        ),
        sa.PrimaryKeyConstraint("issuance_id"),
        sa.UniqueConstraint("request_id", name="submission_request"),
        comment="requests sent to an upstream CA; an issued certificate is a row of issuance too",
    )
    _create_index(
        "submission_open",
        "submission",
        "issuer_id",
        "state",
        where="state in ('recorded', 'submitted', 'pending', 'unknown')",
    )
    _create_index(
        "submission_untold",
        "submission",
        "changed_at",
        where="announced_at is null and state in ('unknown', 'quarantined', 'abandoned')",
    )
    op.create_table(
        "quarantine",
        *_not_null(UUID, "quarantine_id", "issuance_id"),
        sa.Column("issuer_id", sa.Text, nullable=False),
        sa.Column("certificate", sa.LargeBinary, nullable=False, comment="the octets that came"),
        *_not_null(sa.Text, "check_failed", "reason"),
        _timestamp_now("created_at"),
        sa.PrimaryKeyConstraint("quarantine_id"),
        comment="certificates an upstream CA returned that failed a check and are not used",
    )
    _create_index("quarantine_issuance", "quarantine", "issuance_id")
    op.create_table(
        "upstream_revocation",
        sa.Column("certificate_sha256", sa.LargeBinary, nullable=False),
        sa.Column("issuance_id", UUID, nullable=False),
        sa.Column("issuer_id", sa.Text, nullable=False),
        sa.Column("certificate", sa.LargeBinary, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("state", sa.Text, server_default="due", nullable=False),
        sa.Column("attempts", sa.Integer, server_default="0", nullable=False),
        _timestamp_now("next_at"),
        sa.Column("code", sa.Text),
        _timestamp_now("created_at"),
        *_nullable(TIME, "ended_at", "announced_at"),
        sa.CheckConstraint(
            "state in ('due', 'done', 'refused', 'impossible')", name="upstream_revocation_state"
        ),
        sa.PrimaryKeyConstraint("certificate_sha256"),
        comment="certificates that an upstream CA must revoke, and whether it has",
    )
    _create_index(
        "upstream_revocation_due",
        "upstream_revocation",
        "issuer_id",
        "next_at",
        where="state = 'due'",
    )
    op.create_table(
        "crl",
        sa.Column("issuer_id", sa.Text, nullable=False),
        sa.Column(
            "partition",
            sa.Text,
            server_default="",
            nullable=False,
            comment="as 16-3; empty for the full list",
        ),
        sa.Column(
            "last_number", sa.BigInteger, nullable=False, comment="given out, each to one signer"
        ),
        sa.Column("number", sa.BigInteger, comment="of the list stored here"),
        sa.Column("crl", sa.LargeBinary),
        *_nullable(TIME, "this_update", "next_update", "published_at"),
        sa.PrimaryKeyConstraint("issuer_id", "partition"),
        comment="the newest revocation list of each issuer",
    )
    op.create_table(
        "generation",
        *_not_null(sa.Text, "issuer_id", "family", "state"),
        _timestamp_now("changed_at"),
        sa.CheckConstraint(
            "state in ('planned', 'published', 'signing', 'accepted', 'retired', 'withdrawn')",
            name="generation_state",
        ),
        sa.PrimaryKeyConstraint("issuer_id"),
        comment="issuers that rollovers named; who is signing may be in an intent",
    )
    _create_index(
        "generation_signing", "generation", "family", where="state = 'signing'", unique=True
    )
    op.create_table(
        "rollover",
        sa.Column("rollover_id", UUID, nullable=False),
        *_not_null(sa.Text, "family", "from_issuer", "to_issuer", "state"),
        _timestamp_now("planned_at"),
        *_nullable(TIME, "published_at", "signing_at", "ended_at"),
        sa.Column("changed_by", sa.Text, nullable=False),
        sa.Column("fleet", sa.Integer, comment="slots when signing was switched"),
        sa.Column("fetched", sa.Integer, comment="of them, those that had the trust"),
        sa.CheckConstraint(
            "state in ('planned', 'published', 'signing', 'retired', 'rolled_back', 'reversed')",
            name="rollover_state",
        ),
        sa.PrimaryKeyConstraint("rollover_id"),
        comment="from one generation of an issuer to the next",
    )
    _create_index(
        "rollover_open",
        "rollover",
        "family",
        where="state in ('planned', 'published')",
        unique=True,
    )
    _create_index(
        "rollover_overlap", "rollover", "family", where="state in ('signing')", unique=True
    )
    op.create_table(
        "trust_seen",
        *_not_null(UUID, "rollover_id", "slot_id"),
        _timestamp_now("seen_at"),
        sa.PrimaryKeyConstraint("rollover_id", "slot_id"),
        comment="slots that fetched /cacerts with a certificate since a rollover was published",
    )
    op.create_table(
        "certificate",
        sa.Column("no", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("issuance_id", UUID, nullable=False),
        sa.Column("issuer_id", sa.Text, nullable=False),
        *_owner(),
        *_nullable(sa.Text, "team", "cluster"),
        sa.Column("profile", sa.Text, nullable=False),
        sa.Column("slot_id", UUID, nullable=False),
        sa.Column("not_after", TIME, nullable=False),
        sa.Column("revoked_at", TIME),
        sa.PrimaryKeyConstraint("no"),
        sa.UniqueConstraint("issuance_id", name="certificate_issuance"),
        comment="what certificates are searched by; entered when their announcement is confirmed",
    )
    _create_index(
        "certificate_cluster", "certificate", "cluster", "no", where="cluster is not null"
    )
    _create_index("certificate_expiry", "certificate", "not_after", "no")
    _create_index("certificate_owner", "certificate", "tenant", "service", "no")
    _create_index("certificate_profile", "certificate", "profile", "no")
    _create_index("certificate_revoked", "certificate", "no", where="revoked_at is not null")
    _create_index("certificate_team", "certificate", "team", "no", where="team is not null")
    op.create_table(
        "certificate_name",
        sa.Column("name", sa.Text(collation="C"), nullable=False, comment="lower case"),
        sa.Column("no", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", "no"),
        comment="SAN entries without their kind, and values of the subject",
    )
    _create_index(
        "certificate_name_reversed", "certificate_name", sa.literal_column("reverse(name)"), "no"
    )
    op.create_table(
        "bulk_revocation",
        sa.Column("bulk_revocation_id", UUID, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("selector", sa.Text, nullable=False, comment="JSON: which certificates"),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("per_minute", sa.Integer, nullable=False),
        sa.Column("proposed_by", sa.Text, nullable=False),
        _timestamp_now("proposed_at"),
        sa.Column("confirmed_by", sa.Text),
        sa.Column("paced_at", TIME, comment="when the last ones were revoked"),
        sa.Column("stopped_by", sa.Text),
        sa.Column("ended_at", TIME),
        sa.Column("members", sa.Integer, comment="certificates selected; none before that"),
        sa.Column("revoked", sa.Integer, server_default="0", nullable=False),
        sa.Column("skipped", sa.Integer, server_default="0", nullable=False),
        sa.Column("announced_at", TIME),
        sa.CheckConstraint(
            "state in ('selecting', 'proposed', 'running', 'done', 'stopped', 'expired')",
            name="bulk_revocation_state",
        ),
        sa.PrimaryKeyConstraint("bulk_revocation_id"),
        comment="proposals to revoke many certificates, and what came of them",
    )
    _create_index(
        "bulk_revocation_open",
        "bulk_revocation",
        "proposed_at",
        where="state in ('selecting', 'proposed', 'running')",
    )
    op.create_table(
        "bulk_revocation_member",
        *_not_null(UUID, "bulk_revocation_id", "issuance_id"),
        sa.Column("revoked_at", TIME),
        sa.Column("skipped_at", TIME, comment="was not good any more when its turn came"),
        sa.Column("announced_at", TIME),
        sa.PrimaryKeyConstraint("bulk_revocation_id", "issuance_id"),
        comment="the certificates of a bulk revocation, as selected when it was proposed",
    )
    _create_index(
        "bulk_revocation_member_unannounced",
        "bulk_revocation_member",
        "revoked_at",
        where="revoked_at is not null and announced_at is null",
    )
    _create_index(
        "bulk_revocation_member_waiting",
        "bulk_revocation_member",
        "bulk_revocation_id",
        where="revoked_at is null and skipped_at is null",
    )
    _create_campaigns()
    op.create_table(
        "heartbeat",
        sa.Column("id", sa.Boolean, server_default=sa.true(), nullable=False),
        _timestamp_now("at"),
        sa.CheckConstraint("id", name="heartbeat_id_check"),
        sa.PrimaryKeyConstraint("id"),
        comment="written by each process, to see that PostgreSQL stores",
    )
    op.execute("insert into heartbeat default values")
    role = runtime_role()
    for rights, tables in GRANTS.items():
        names = ", ".join(f'"{table}"' for table in tables)
        op.execute(f"grant {rights} on {names} to {role}")


def _create_campaigns() -> None:
    op.create_table(
        "campaign",
        sa.Column("campaign_id", UUID, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("selector", sa.Text, nullable=False, comment="JSON: which certificates"),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("explanation_url", sa.Text),
        sa.Column("per_minute", sa.Integer, nullable=False),
        sa.Column("starts_at", TIME, comment="no renewal is requested before"),
        sa.Column("renew_by", TIME, comment="end of the window; none: each at once"),
        sa.Column(
            "revoke_reason",
            sa.Text,
            comment="why a replaced certificate is revoked after proof of use; none: it is not",
        ),
        sa.Column("proposed_by", sa.Text, nullable=False),
        _timestamp_now("proposed_at"),
        *_nullable(sa.Text, "confirmed_by", "paused_by", "stopped_by"),
        sa.Column("paced_at", TIME, comment="when renewals were requested last"),
        sa.Column("checked_at", TIME, comment="progress of the members is known up to here"),
        sa.Column("ended_at", TIME),
        sa.Column("members", sa.Integer, comment="certificates selected; none before that"),
        sa.Column("announced_at", TIME),
        sa.CheckConstraint(
            "state in ('selecting', 'proposed', 'running', 'paused', 'done', 'stopped', 'expired')",
            name="campaign_state",
        ),
        sa.CheckConstraint(
            "reason in ('incident', 'ca_rollover', 'policy_change', 'operator')",
            name="campaign_reason",
        ),
        sa.PrimaryKeyConstraint("campaign_id"),
        comment="early renewals of many certificates, proposed by an operator",
    )
    _create_index(
        "campaign_open",
        "campaign",
        "proposed_at",
        where="state in ('selecting', 'proposed', 'running', 'paused')",
    )
    op.create_table(
        "campaign_member",
        *_not_null(UUID, "campaign_id", "issuance_id", "slot_id"),
        sa.Column("rank", sa.SmallInteger, nullable=False, comment="priority, 0 is critical"),
        sa.Column("not_after", TIME, nullable=False),
        sa.Column("requested_at", TIME),
        sa.Column("announced_at", TIME, comment="the request has its PubAck"),
        sa.Column("skipped_at", TIME, comment="needed no request when its turn came"),
        sa.Column("renewed_at", TIME, comment="a younger certificate of the slot was issued"),
        sa.Column("proven_at", TIME, comment="a younger certificate of the slot is in use"),
        sa.Column("deprecated_at", TIME, comment="the overlap is over; it may be revoked"),
        sa.Column("revoked_at", TIME),
        sa.Column("revocation_announced_at", TIME),
        sa.Column("finished_at", TIME, comment="the campaign has nothing more to do for it"),
        sa.PrimaryKeyConstraint("campaign_id", "issuance_id"),
        comment="the certificates of a campaign, as selected when it was proposed",
    )
    for name, columns, condition in (
        (
            "waiting",
            ("campaign_id", "rank", "issuance_id"),
            "requested_at is null and skipped_at is null",
        ),
        ("unannounced", ("requested_at",), "requested_at is not null and announced_at is null"),
        ("slot", ("slot_id",), "finished_at is null"),
        ("issuance", ("issuance_id",), None),
        ("revocable", ("campaign_id",), "deprecated_at is not null and finished_at is null"),
        ("unfinished", ("campaign_id", "not_after"), "finished_at is null"),
        (
            "revocation_unannounced",
            ("revoked_at",),
            "revoked_at is not null and revocation_announced_at is null",
        ),
    ):
        _create_index(f"campaign_member_{name}", "campaign_member", *columns, where=condition)


def downgrade() -> None:
    tables = {table for granted in GRANTS.values() for table in granted}
    for table in sorted(tables):
        op.drop_table(table)
