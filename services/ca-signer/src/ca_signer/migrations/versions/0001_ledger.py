"""The ledger's tables, as ``ca_signer.ledger.tables`` describes them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from estcore.runtime.alembic_env import runtime_role

revision = "0001"
down_revision = None

TIME = sa.DateTime(timezone=True)
UUID = postgresql.UUID()
GRANTS = {
    "select, insert, update": (
        "enrollment",
        "issuance",
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
        "submission",
        "upstream_revocation",
    ),
    "delete": (
        "claim",
        "attempt",
        "enrollment",
    ),
    "select, insert, update, delete": ("approval",),
    "select, insert": (
        "trust_seen",
        "quarantine",
    ),
}
"""Rights of the service on its tables; every other right is the owner's alone."""


def upgrade() -> None:  # noqa: PLR0915 - one statement a table or index
    op.create_table(
        "enrollment",
        sa.Column("enrollment_id", sa.LargeBinary, nullable=False),
        sa.Column("issuance_id", UUID, nullable=False),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("enrollment_id"),
        comment="one row per EnrollmentId, locked by the process that handles it",
    )
    op.create_table(
        "issuance",
        sa.Column("issuance_id", UUID, nullable=False),
        sa.Column("enrollment_id", sa.LargeBinary, nullable=False),
        sa.Column("request_id", UUID, nullable=False),
        sa.Column("issuer_id", sa.Text, nullable=False),
        sa.Column("serial_number", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("fence", sa.Integer, server_default="1", nullable=False),
        sa.Column("lease_until", TIME, nullable=False),
        sa.Column("sign_before", TIME, nullable=False),
        sa.Column(
            "tbs", sa.LargeBinary, comment="until signed; the certificate contains it afterwards"
        ),
        sa.Column("certificate", sa.LargeBinary),
        sa.Column("certificate_sha256", sa.LargeBinary),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("service", sa.Text, nullable=False),
        sa.Column("profile", sa.Text, nullable=False),
        sa.Column("slot_id", UUID, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("san", sa.Text, nullable=False, comment="one entry a line"),
        sa.Column("spki_sha256", sa.LargeBinary, nullable=False),
        sa.Column("not_before", TIME, nullable=False),
        sa.Column("not_after", TIME, nullable=False),
        sa.Column("predecessor_sha256", sa.LargeBinary),
        sa.Column("context", sa.Text, nullable=False, comment="JSON: what announcements need"),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("issued_at", TIME),
        sa.Column("announced_at", TIME),
        sa.Column("revoked_at", TIME),
        sa.Column("revocation_reason", sa.Text),
        sa.Column(
            "revocation_seq",
            sa.Integer,
            server_default="0",
            nullable=False,
            comment="how often it was revoked, held or released",
        ),
        sa.Column("revocation_changed_at", TIME),
        sa.Column("revocation_announced_at", TIME),
        sa.Column("revoked_by", sa.Text),
        sa.CheckConstraint(
            "(state = 'issued') = (certificate is not null)", name="issuance_issued_has_certificate"
        ),
        sa.CheckConstraint("state in ('intended', 'issued', 'abandoned')", name="issuance_state"),
        sa.PrimaryKeyConstraint("issuance_id"),
        sa.UniqueConstraint("request_id", name="issuance_request"),
        sa.UniqueConstraint("serial_number", "issuer_id", name="issuance_serial"),
        postgresql_with={"fillfactor": "80"},
    )
    op.create_index(
        "issuance_compromised",
        "issuance",
        ["spki_sha256"],
        postgresql_where="revocation_reason = 'keyCompromise'",
    )
    op.create_index(
        "issuance_fingerprint",
        "issuance",
        ["certificate_sha256"],
        postgresql_where="certificate is not null",
    )
    op.create_index(
        "issuance_intended", "issuance", ["lease_until"], postgresql_where="state = 'intended'"
    )
    op.create_index("issuance_issued_at", "issuance", ["issued_at"], postgresql_using="brin")
    op.create_index("issuance_owner", "issuance", ["tenant", "service", "created_at"])
    op.create_index(
        "issuance_revocation_unannounced",
        "issuance",
        ["revocation_changed_at"],
        postgresql_where="revocation_changed_at is not null and revocation_announced_at is null",
    )
    op.create_index(
        "issuance_revoked",
        "issuance",
        ["issuer_id", "not_after"],
        postgresql_where="revoked_at is not null",
    )
    op.create_index("issuance_slot", "issuance", ["slot_id"])
    op.create_index(
        "issuance_unannounced",
        "issuance",
        ["issued_at"],
        postgresql_where="state = 'issued' and announced_at is null",
    )
    op.create_table(
        "request",
        sa.Column("request_id", UUID, nullable=False),
        sa.Column("enrollment_id", sa.LargeBinary),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("issuance_id", UUID),
        sa.Column("kind", sa.Text),
        sa.Column("code", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column(
            "announcement", sa.Text, comment="JSON: the audit record and event, until announced"
        ),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("announced_at", TIME),
        sa.CheckConstraint("outcome in ('rejected', 'repeated')", name="request_outcome"),
        sa.PrimaryKeyConstraint("request_id"),
        comment="requests that issued nothing: refused, or answered with a stored certificate",
    )
    op.create_index(
        "request_unannounced", "request", ["created_at"], postgresql_where="announced_at is null"
    )
    op.create_table(
        "key_binding",
        sa.Column("spki_sha256", sa.LargeBinary, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("service", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("spki_sha256"),
        comment="a public key belongs to one owner for ever",
    )
    op.create_table(
        "claim",
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("enrollment_id", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("state in ('reserved', 'consumed')", name="claim_state"),
        sa.PrimaryKeyConstraint("kind", "id"),
        comment="single-use things: reserved with the intent, consumed with the certificate",
    )
    op.create_index("claim_enrollment", "claim", ["enrollment_id"])
    op.create_table(
        "secret",
        sa.Column("secret_id", sa.Text, nullable=False),
        sa.Column("sha256", sa.LargeBinary, nullable=False),
        sa.Column("one_time", sa.Integer, nullable=False),
        sa.Column("not_after", TIME, nullable=False),
        sa.Column("revoked_at", TIME),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("secret_id"),
        comment="verifiers of enrollment secrets; never the secrets",
    )
    op.create_table(
        "attempt",
        sa.Column("stream_sequence", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("stream_sequence"),
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
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("operator_sha256", sa.LargeBinary, nullable=False),
        sa.Column("operator", sa.Text, nullable=False),
        sa.Column("verb", sa.Text, nullable=False),
        sa.Column("answer", sa.Text, comment="JSON; without the result of verbs that only read"),
        sa.Column("announcement", sa.Text, comment="JSON: the audit record, until announced"),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("announced_at", TIME),
        sa.PrimaryKeyConstraint("command_id"),
        comment="signed commands that were carried out or refused, each once",
    )
    op.create_index(
        "command_unannounced", "command", ["created_at"], postgresql_where="announced_at is null"
    )
    op.create_table(
        "approval",
        sa.Column("enrollment_id", sa.LargeBinary, nullable=False),
        sa.Column("approval_id", UUID, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("request_id", UUID, nullable=False),
        sa.Column("issuer_id", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("service", sa.Text, nullable=False),
        sa.Column("profile", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("san", sa.Text, nullable=False, comment="one entry a line"),
        sa.Column("spki_sha256", sa.LargeBinary, comment="none where the key is made here"),
        sa.Column("context", sa.Text, nullable=False, comment="JSON: as of an issuance"),
        sa.Column("requested_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("decided_at", TIME),
        sa.Column("decided_by", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("issuance_id", UUID, comment="what an approval was used for"),
        sa.Column("announced_at", TIME),
        sa.CheckConstraint(
            "state in ('waiting', 'approved', 'rejected', 'used')", name="approval_state"
        ),
        sa.PrimaryKeyConstraint("enrollment_id"),
        sa.UniqueConstraint("approval_id", name="approval_approval_id"),
        comment="requests under a rule with approval: who asked for what, and the decision",
    )
    op.create_index(
        "approval_unannounced",
        "approval",
        ["requested_at"],
        postgresql_where="announced_at is null",
    )
    op.create_index(
        "approval_waiting",
        "approval",
        ["tenant", "service", "requested_at"],
        postgresql_where="state = 'waiting'",
    )
    op.create_table(
        "submission",
        sa.Column("issuance_id", UUID, nullable=False),
        sa.Column("enrollment_id", sa.LargeBinary, nullable=False),
        sa.Column("request_id", UUID, nullable=False),
        sa.Column("issuer_id", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("fence", sa.Integer, server_default="1", nullable=False),
        sa.Column("lease_until", TIME, nullable=False),
        sa.Column("sign_before", TIME, nullable=False),
        sa.Column("csr", sa.LargeBinary, nullable=False, comment="as the client signed it"),
        sa.Column("csr_sha256", sa.LargeBinary, nullable=False),
        sa.Column(
            "pattern", sa.LargeBinary, nullable=False, comment="TBS of what was decided, linted"
        ),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("service", sa.Text, nullable=False),
        sa.Column("profile", sa.Text, nullable=False),
        sa.Column("slot_id", UUID, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("san", sa.Text, nullable=False, comment="one entry a line"),
        sa.Column("spki_sha256", sa.LargeBinary, nullable=False),
        sa.Column("not_before", TIME, nullable=False),
        sa.Column("not_after", TIME, nullable=False),
        sa.Column("predecessor_sha256", sa.LargeBinary),
        sa.Column("context", sa.Text, nullable=False, comment="JSON: as of an issuance"),
        sa.Column("sendings", sa.Integer, server_default="0", nullable=False),
        sa.Column("submitted_at", TIME),
        sa.Column("retry_at", TIME),
        sa.Column("reference", sa.Text, comment="the request's identifier at the upstream CA"),
        sa.Column("code", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("changed_at", TIME, server_default=sa.text("now()"), nullable=False),
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
    op.create_index(
        "submission_open",
        "submission",
        ["issuer_id", "state"],
        postgresql_where="state in ('recorded', 'submitted', 'pending', 'unknown')",
    )
    op.create_index(
        "submission_untold",
        "submission",
        ["changed_at"],
        postgresql_where="announced_at is null "
        "and state in ('unknown', 'quarantined', 'abandoned')",
    )
    op.create_table(
        "quarantine",
        sa.Column("quarantine_id", UUID, nullable=False),
        sa.Column("issuance_id", UUID, nullable=False),
        sa.Column("issuer_id", sa.Text, nullable=False),
        sa.Column("certificate", sa.LargeBinary, nullable=False, comment="the octets that came"),
        sa.Column("check_failed", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("quarantine_id"),
        comment="certificates an upstream CA returned that failed a check and are not used",
    )
    op.create_index("quarantine_issuance", "quarantine", ["issuance_id"])
    op.create_table(
        "upstream_revocation",
        sa.Column("certificate_sha256", sa.LargeBinary, nullable=False),
        sa.Column("issuance_id", UUID, nullable=False),
        sa.Column("issuer_id", sa.Text, nullable=False),
        sa.Column("certificate", sa.LargeBinary, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("state", sa.Text, server_default="due", nullable=False),
        sa.Column("attempts", sa.Integer, server_default="0", nullable=False),
        sa.Column("next_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("code", sa.Text),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", TIME),
        sa.Column("announced_at", TIME),
        sa.CheckConstraint(
            "state in ('due', 'done', 'refused', 'impossible')", name="upstream_revocation_state"
        ),
        sa.PrimaryKeyConstraint("certificate_sha256"),
        comment="certificates that an upstream CA must revoke, and whether it has",
    )
    op.create_index(
        "upstream_revocation_due",
        "upstream_revocation",
        ["issuer_id", "next_at"],
        postgresql_where="state = 'due'",
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
        sa.Column("this_update", TIME),
        sa.Column("next_update", TIME),
        sa.Column("published_at", TIME),
        sa.PrimaryKeyConstraint("issuer_id", "partition"),
        comment="the newest revocation list of each issuer",
    )
    op.create_table(
        "generation",
        sa.Column("issuer_id", sa.Text, nullable=False),
        sa.Column("family", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("changed_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "state in ('planned', 'published', 'signing', 'accepted', 'retired', 'withdrawn')",
            name="generation_state",
        ),
        sa.PrimaryKeyConstraint("issuer_id"),
        comment="issuers that rollovers named; who is signing may be in an intent",
    )
    op.create_index(
        "generation_signing",
        "generation",
        ["family"],
        unique=True,
        postgresql_where="state = 'signing'",
    )
    op.create_table(
        "rollover",
        sa.Column("rollover_id", UUID, nullable=False),
        sa.Column("family", sa.Text, nullable=False),
        sa.Column("from_issuer", sa.Text, nullable=False),
        sa.Column("to_issuer", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("planned_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("published_at", TIME),
        sa.Column("signing_at", TIME),
        sa.Column("ended_at", TIME),
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
    op.create_index(
        "rollover_open",
        "rollover",
        ["family"],
        unique=True,
        postgresql_where="state in ('planned', 'published')",
    )
    op.create_index(
        "rollover_overlap",
        "rollover",
        ["family"],
        unique=True,
        postgresql_where="state in ('signing')",
    )
    op.create_table(
        "trust_seen",
        sa.Column("rollover_id", UUID, nullable=False),
        sa.Column("slot_id", UUID, nullable=False),
        sa.Column("seen_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("rollover_id", "slot_id"),
        comment="slots that fetched /cacerts with a certificate since a rollover was published",
    )
    op.create_table(
        "certificate",
        sa.Column("no", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("issuance_id", UUID, nullable=False),
        sa.Column("issuer_id", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("service", sa.Text, nullable=False),
        sa.Column("team", sa.Text),
        sa.Column("cluster", sa.Text),
        sa.Column("profile", sa.Text, nullable=False),
        sa.Column("slot_id", UUID, nullable=False),
        sa.Column("not_after", TIME, nullable=False),
        sa.Column("revoked_at", TIME),
        sa.PrimaryKeyConstraint("no"),
        sa.UniqueConstraint("issuance_id", name="certificate_issuance"),
        comment="what certificates are searched by; entered when their announcement is confirmed",
    )
    op.create_index(
        "certificate_cluster",
        "certificate",
        ["cluster", "no"],
        postgresql_where="cluster is not null",
    )
    op.create_index("certificate_expiry", "certificate", ["not_after", "no"])
    op.create_index("certificate_owner", "certificate", ["tenant", "service", "no"])
    op.create_index("certificate_profile", "certificate", ["profile", "no"])
    op.create_index(
        "certificate_revoked", "certificate", ["no"], postgresql_where="revoked_at is not null"
    )
    op.create_index("certificate_slot", "certificate", ["slot_id", "no"])
    op.create_index(
        "certificate_team", "certificate", ["team", "no"], postgresql_where="team is not null"
    )
    op.create_table(
        "certificate_name",
        sa.Column("name", sa.Text(collation="C"), nullable=False, comment="lower case"),
        sa.Column("no", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", "no"),
        comment="SAN entries without their kind, and values of the subject",
    )
    op.create_index(
        "certificate_name_reversed", "certificate_name", [sa.literal_column("reverse(name)"), "no"]
    )
    op.create_table(
        "bulk_revocation",
        sa.Column("bulk_revocation_id", UUID, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("selector", sa.Text, nullable=False, comment="JSON: which certificates"),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("per_minute", sa.Integer, nullable=False),
        sa.Column("proposed_by", sa.Text, nullable=False),
        sa.Column("proposed_at", TIME, server_default=sa.text("now()"), nullable=False),
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
    op.create_index(
        "bulk_revocation_open",
        "bulk_revocation",
        ["proposed_at"],
        postgresql_where="state in ('selecting', 'proposed', 'running')",
    )
    op.create_table(
        "bulk_revocation_member",
        sa.Column("bulk_revocation_id", UUID, nullable=False),
        sa.Column("issuance_id", UUID, nullable=False),
        sa.Column("revoked_at", TIME),
        sa.Column("skipped_at", TIME, comment="was not good any more when its turn came"),
        sa.Column("announced_at", TIME),
        sa.PrimaryKeyConstraint("bulk_revocation_id", "issuance_id"),
        comment="the certificates of a bulk revocation, as selected when it was proposed",
    )
    op.create_index(
        "bulk_revocation_member_unannounced",
        "bulk_revocation_member",
        ["revoked_at"],
        postgresql_where="revoked_at is not null and announced_at is null",
    )
    op.create_index(
        "bulk_revocation_member_waiting",
        "bulk_revocation_member",
        ["bulk_revocation_id"],
        postgresql_where="revoked_at is null and skipped_at is null",
    )
    role = runtime_role()
    for rights, tables in GRANTS.items():
        names = ", ".join(f'"{table}"' for table in tables)
        op.execute(f"grant {rights} on {names} to {role}")


def downgrade() -> None:
    tables = {table for granted in GRANTS.values() for table in granted}
    for table in sorted(tables):
        op.drop_table(table)
