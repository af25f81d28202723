"""The ledger: enrollments, issuances, refusals, key bindings, claims, secrets."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from estcore.runtime.alembic_env import runtime_role

revision = "0001"
down_revision = None

UUID = postgresql.UUID()
TIME = sa.DateTime(timezone=True)
TABLES = (
    "enrollment",
    "issuance",
    "request",
    "key_binding",
    "claim",
    "secret",
    "attempt",
    "window",
)


def _created() -> sa.Column[object]:
    return sa.Column("created_at", TIME, nullable=False, server_default=sa.func.now())


def upgrade() -> None:
    op.create_table(
        "enrollment",
        sa.Column("enrollment_id", sa.LargeBinary, primary_key=True),
        sa.Column("issuance_id", UUID, nullable=False),
        _created(),
        comment="one row per EnrollmentId, locked by whoever works on it",
    )
    op.create_table(
        "issuance",
        sa.Column("issuance_id", UUID, primary_key=True),
        sa.Column("enrollment_id", sa.LargeBinary, nullable=False),
        sa.Column("request_id", UUID, nullable=False),
        sa.Column("issuer_id", sa.Text, nullable=False),
        sa.Column("serial_number", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("fence", sa.Integer, nullable=False, server_default="1"),
        sa.Column("lease_until", TIME, nullable=False),
        sa.Column("sign_before", TIME, nullable=False),
        sa.Column(
            "tbs",
            sa.LargeBinary,
            comment="until signed; the certificate contains it afterwards",
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
        _created(),
        sa.Column("issued_at", TIME),
        sa.Column("announced_at", TIME),
        sa.Column("revoked_at", TIME),
        sa.Column("revocation_reason", sa.Text),
        sa.CheckConstraint("state in ('intended', 'issued', 'abandoned')", name="issuance_state"),
        sa.CheckConstraint(
            "(state = 'issued') = (certificate is not null)", name="issuance_issued_has_certificate"
        ),
        sa.UniqueConstraint("request_id", name="issuance_request"),
        sa.UniqueConstraint("issuer_id", "serial_number", name="issuance_serial"),
        postgresql_with={"fillfactor": "80"},
    )
    op.create_index(
        "issuance_intended",
        "issuance",
        ["lease_until"],
        postgresql_where=sa.text("state = 'intended'"),
    )
    op.create_index(
        "issuance_unannounced",
        "issuance",
        ["issued_at"],
        postgresql_where=sa.text("state = 'issued' and announced_at is null"),
    )
    op.create_index(
        "issuance_fingerprint",
        "issuance",
        ["certificate_sha256"],
        postgresql_where=sa.text("certificate is not null"),
    )
    op.create_index("issuance_issued_at", "issuance", ["issued_at"], postgresql_using="brin")
    op.create_table(
        "request",
        sa.Column("request_id", UUID, primary_key=True),
        sa.Column("enrollment_id", sa.LargeBinary),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("issuance_id", UUID),
        sa.Column("kind", sa.Text),
        sa.Column("code", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column(
            "announcement", sa.Text, comment="JSON: the audit record and event, until announced"
        ),
        _created(),
        sa.Column("announced_at", TIME),
        sa.CheckConstraint("outcome in ('rejected', 'repeated')", name="request_outcome"),
        comment="requests that issued nothing: refused, or answered with a stored certificate",
    )
    op.create_index(
        "request_unannounced",
        "request",
        ["created_at"],
        postgresql_where=sa.text("announced_at is null"),
    )
    op.create_table(
        "key_binding",
        sa.Column("spki_sha256", sa.LargeBinary, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("service", sa.Text, nullable=False),
        comment="a public key belongs to one owner for ever",
    )
    op.create_table(
        "claim",
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("enrollment_id", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        _created(),
        sa.CheckConstraint("state in ('reserved', 'consumed')", name="claim_state"),
        comment="single-use things: reserved with the intent, consumed with the certificate",
    )
    op.create_index("claim_enrollment", "claim", ["enrollment_id"])
    op.create_table(
        "secret",
        sa.Column("secret_id", sa.Text, primary_key=True),
        sa.Column("sha256", sa.LargeBinary, nullable=False),
        sa.Column("one_time", sa.Integer, nullable=False),
        sa.Column("not_after", TIME, nullable=False),
        sa.Column("revoked_at", TIME),
        _created(),
        comment="verifiers of enrollment secrets; never the secrets",
    )
    op.create_table(
        "attempt",
        sa.Column("stream_sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        _created(),
        comment="deliveries after the first, counted before the payload is read",
    )
    op.create_table(
        "window",
        sa.Column("started_at", TIME, primary_key=True),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("published_at", TIME),
        comment="closed windows already told to the consumers of ledger events",
    )
    role = runtime_role()
    for table in TABLES:
        op.execute(f'grant select, insert, update on "{table}" to {role}')
    op.execute(f"grant delete on claim, attempt, enrollment to {role}")


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(table)
