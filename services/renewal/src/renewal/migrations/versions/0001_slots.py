"""Slots, their certificates, revocations, failed deliveries."""

from alembic import op

from estcore.runtime.alembic_env import runtime_role

revision = "0001"
down_revision = None

TABLES = """
create table heartbeat (
    id boolean primary key default true check (id),
    at timestamptz not null default now()
);
comment on table heartbeat is 'written by each process, to see that PostgreSQL stores';
insert into heartbeat default values;
create table certificate (
    issuance_id text primary key,
    slot_id uuid not null,
    serial text not null,
    fingerprint_sha256 text not null,
    spki_sha256 text not null,
    predecessor_fingerprint text,
    not_before timestamptz not null,
    not_after timestamptz not null,
    issued_at timestamptz not null,
    certificate bytea not null,
    generation integer not null default 0,
    role text check (role in ('active', 'next')),
    state text not null check (state in ('active', 'next', 'superseded', 'deprecated',
                                         'retired', 'expired', 'revoked')),
    replaces text,
    overlap_until timestamptz,
    activated_at timestamptz,
    proof text check (proof in ('mtls_seen', 'agent_ack', 'operator')),
    proof_peer text,
    reached smallint not null default 0,
    announced smallint not null default 0,
    correlation_id text not null,
    traceparent text,
    changed_at timestamptz not null default now()
);
comment on column certificate.reached is
    'steps of the rotation that led here, one bit each; those not in announced are unpublished';
create table renewal_slot (
    slot_id uuid primary key,
    tenant text not null,
    service text not null,
    profile text not null,
    label text not null,
    issuer_id text not null,
    mode text not null check (mode in ('agent', 'poll', 'managed')),
    priority smallint not null check (priority between 0 and 3),
    reaction_time_s integer not null,
    overlap_s integer not null,
    spread double precision not null,
    rules_at timestamptz not null,
    active_id text,
    next_id text,
    generation integer not null,
    not_before timestamptz,
    not_after timestamptz,
    due_at timestamptz,
    next_attempt_at timestamptz,
    check_at timestamptz,
    state text not null check (state in ('idle', 'due', 'dispatched', 'issued', 'overlap',
                                         'failed', 'expired', 'paused')),
    attempts integer not null default 0,
    first_due_at timestamptz,
    last_error_class text,
    last_error_at timestamptz,
    fence bigint not null default 0,
    announced_fence bigint not null default 0,
    lapsed_fence bigint not null default 0,
    announced_lapsed_fence bigint not null default 0,
    lease_owner text,
    lease_until timestamptz,
    dispatched_at timestamptz,
    traceparent text,
    check (next_id is null or state in ('issued', 'overlap', 'paused'))
);
comment on column renewal_slot.announced_fence is
    'last dispatch whose event has a PubAck; behind fence means it is published again';
comment on column renewal_slot.lapsed_fence is 'last dispatch whose lease ran out';
comment on column renewal_slot.check_at is 'when time alone changes something in this slot';
create table revocation (
    fingerprint_sha256 text primary key,
    revoked_at timestamptz not null,
    reason text not null
);
create table failed_delivery (
    message_sha256 bytea primary key,
    attempts integer not null,
    error text not null,
    first_at timestamptz not null default now(),
    last_at timestamptz not null default now()
);
"""
INDEXES = """
create unique index certificate_slot on certificate (slot_id, role);
create index certificate_serial on certificate (serial);
create index certificate_window on certificate using brin (issued_at)
    with (pages_per_range = 16, autosummarize = on);
create index certificate_unannounced on certificate (changed_at) where reached <> announced;
create index slot_due on renewal_slot (priority, next_attempt_at) where state = 'idle';
create index slot_expiry on renewal_slot (priority, not_after) where state = 'idle';
create index slot_leases on renewal_slot (lease_until) where state = 'dispatched';
create index slot_checks on renewal_slot (check_at);
create index slot_unannounced on renewal_slot (dispatched_at) where announced_fence < fence;
create index slot_lapsed on renewal_slot (last_error_at)
    where announced_lapsed_fence < lapsed_fence;
"""
GRANTS = {
    "certificate": "select, insert, update",
    "renewal_slot": "select, insert, update",
    "revocation": "select, insert",
    "failed_delivery": "select, insert, update, delete",
    "heartbeat": "select, update",
}


def upgrade() -> None:
    for statement in (TABLES + INDEXES).split(";\n"):
        if statement.strip():
            op.execute(statement)
    for table, rights in GRANTS.items():
        op.execute(f"grant {rights} on {table} to {runtime_role()}")


def downgrade() -> None:
    for table in GRANTS:
        op.execute(f"drop table {table}")
