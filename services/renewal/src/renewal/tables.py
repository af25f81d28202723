"""Renewal's tables: the one definition of the schema, compared with the migrations."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    false,
    func,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import UUID

from renewal.reach import REACH

metadata = MetaData()


def _time(name: str, *, nullable: bool = True, comment: str | None = None) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=nullable, comment=comment)


def _now(name: str) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=False, server_default=func.now())


def _zero(
    name: str, kind: type[BigInteger | Integer | SmallInteger], comment: str | None = None
) -> Column[int]:
    return Column(name, kind, nullable=False, server_default="0", comment=comment)


certificate = Table(
    "certificate",
    metadata,
    Column("issuance_id", Text, primary_key=True),
    Column("slot_id", UUID, nullable=False),
    Column("serial", Text, nullable=False),
    Column("fingerprint_sha256", Text, nullable=False),
    Column("spki_sha256", Text, nullable=False),
    Column("predecessor_fingerprint", Text),
    _time("not_before", nullable=False),
    _time("not_after", nullable=False),
    _time("issued_at", nullable=False),
    Column("certificate", LargeBinary, nullable=False),
    _zero("generation", Integer),
    Column("role", Text),
    Column("state", Text, nullable=False),
    Column("replaces", Text),
    _time("overlap_until"),
    _time("activated_at"),
    Column("proof", Text),
    Column("proof_peer", Text),
    _zero(
        "reached",
        SmallInteger,
        "steps of the rotation that led here, one bit each; those not in announced are unpublished",
    ),
    _zero("announced", SmallInteger),
    Column("correlation_id", Text, nullable=False),
    Column("traceparent", Text),
    _now("changed_at"),
    Column("info_pending", Boolean, nullable=False, server_default=false()),
    CheckConstraint("role in ('active', 'next')", name="certificate_role_check"),
    CheckConstraint(
        "state in ('active', 'next', 'superseded', 'deprecated', 'retired', 'expired', 'revoked')",
        name="certificate_state_check",
    ),
    CheckConstraint(
        "proof in ('mtls_seen', 'agent_ack', 'operator')", name="certificate_proof_check"
    ),
    # Certificates of a slot; one of each role, and any number without.
    Index("certificate_slot", "slot_id", "role", unique=True),
    # A certificate by what an event or a proof says of it. Serial numbers begin with the time, so
    # that this index grows at its end; one over fingerprints would be changed everywhere.
    Index("certificate_serial", "serial"),
    # Windows that are compared with the ledger.
    Index("certificate_window", "issued_at", postgresql_using="brin"),
    # Steps to publish that a crash left.
    Index("certificate_unannounced", "changed_at", postgresql_where="reached <> announced"),
    # Renewal information to publish.
    Index("certificate_info_pending", "changed_at", postgresql_where="info_pending"),
)

renewal_slot = Table(
    "renewal_slot",
    metadata,
    Column("slot_id", UUID, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("service", Text, nullable=False),
    Column("profile", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("issuer_id", Text, nullable=False),
    Column("mode", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("reaction_time_s", Integer, nullable=False),
    Column("overlap_s", Integer, nullable=False),
    Column("spread", Double, nullable=False),
    _time("rules_at", nullable=False),
    Column("active_id", Text),
    Column("next_id", Text),
    Column("generation", Integer, nullable=False),
    _time("not_before"),
    _time("not_after"),
    _time("due_at"),
    _time("next_attempt_at"),
    _time("check_at", comment="when time alone changes something in this slot"),
    Column("state", Text, nullable=False),
    _zero("attempts", Integer),
    _time("first_due_at"),
    Column("last_error_class", Text),
    _time("last_error_at"),
    _zero("fence", BigInteger),
    _zero(
        "announced_fence",
        BigInteger,
        "last dispatch whose event has a PubAck; behind fence means it is published again",
    ),
    _zero("lapsed_fence", BigInteger, "last dispatch whose lease ran out"),
    _zero("announced_lapsed_fence", BigInteger),
    Column("lease_owner", Text),
    _time("lease_until"),
    _time("dispatched_at"),
    Column("traceparent", Text),
    Column("due_reason", Text),
    _time("renew_by"),
    Column("explanation_url", Text),
    Column(
        "expiry_expected",
        Boolean,
        nullable=False,
        server_default=false(),
        comment="its certificates may end without a successor",
    ),
    CheckConstraint("mode in ('agent', 'poll', 'managed')", name="renewal_slot_mode_check"),
    CheckConstraint("priority between 0 and 3", name="renewal_slot_priority_check"),
    CheckConstraint(
        "state in ('idle', 'due', 'dispatched', 'issued', 'overlap', 'failed', 'expired', "
        "'paused', 'ended')",
        name="renewal_slot_state_check",
    ),
    CheckConstraint(
        "next_id is null or state in ('issued', 'overlap', 'paused')", name="renewal_slot_check"
    ),
    # Whether slots are due, and claiming where few are (dispatch/claims.py).
    Index("slot_due", "priority", "next_attempt_at", postgresql_where="state = 'idle'"),
    # Claiming where many are due: those that expire first are found first (reach.py).
    Index(
        "slot_reach",
        "priority",
        text(REACH),
        "not_after",
        text("(next_attempt_at at time zone 'UTC')"),
        postgresql_include=["slot_id", "next_attempt_at"],
        postgresql_where="state = 'idle'",
    ),
    # Announced and not answered: how many more may be announced now.
    Index(
        "slot_unanswered",
        "dispatched_at",
        postgresql_where="state = 'dispatched' and attempts = 1 and mode <> 'poll'",
    ),
    # Leases that ran out.
    Index("slot_leases", "lease_until", postgresql_where="state = 'dispatched'"),
    # Slots in which time alone changes something.
    Index("slot_checks", "check_at"),
    # Dispatches to publish that a crash left.
    Index("slot_unannounced", "dispatched_at", postgresql_where="announced_fence < fence"),
    Index(
        "slot_lapsed",
        "last_error_at",
        postgresql_where="announced_lapsed_fence < lapsed_fence",
    ),
)

revocation = Table(
    "revocation",
    metadata,
    Column("fingerprint_sha256", Text, primary_key=True),
    _time("revoked_at", nullable=False),
    Column("reason", Text, nullable=False),
)

renewal_request = Table(
    "renewal_request",
    metadata,
    Column("fingerprint_sha256", Text, primary_key=True),
    Column("serial", Text, nullable=False),
    _time("due_at", nullable=False),
    Column("reason", Text, nullable=False),
    _time("renew_by", nullable=False),
    Column("explanation_url", Text),
    _time("keep_until", nullable=False),
    _now("checked_at"),
    Index("renewal_request_checked", "checked_at"),
    comment="early renewals of certificates that renewal does not know yet, or that are not "
    "proven in use",
)

failed_delivery = Table(
    "failed_delivery",
    metadata,
    Column("message_sha256", LargeBinary, primary_key=True),
    Column("attempts", Integer, nullable=False),
    Column("error", Text, nullable=False),
    _now("first_at"),
    _now("last_at"),
)

info_stream = Table(
    "info_stream",
    metadata,
    Column("id", Boolean, primary_key=True, server_default=true()),
    Column("epoch", UUID),
    _zero("sequence", BigInteger),
    _time("published_at"),
    CheckConstraint("id", name="info_stream_id_check"),
    comment="what renewal published last on the stream of renewal information, to notice that "
    "it is lost",
)

heartbeat = Table(
    "heartbeat",
    metadata,
    Column("id", Boolean, primary_key=True, server_default=true()),
    _now("at"),
    CheckConstraint("id", name="heartbeat_id_check"),
    comment="written by each process, to see that PostgreSQL stores",
)
