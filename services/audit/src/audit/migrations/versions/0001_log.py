"""The log: records by month, head, checkpoints, sinks, windows."""

from __future__ import annotations

from alembic import op

from estcore.runtime import alembic_env

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TABLES = """
create table heartbeat (
    id boolean primary key default true check (id),
    at timestamptz not null default now()
);
comment on table heartbeat is 'written by each process, to see that PostgreSQL stores';
insert into heartbeat default values;
create table head (
    log         smallint primary key default 1 check (log = 1),
    size        bigint not null default 0,
    frontier    bytea not null default ''::bytea,
    last_hash   bytea not null,
    recorded_at timestamptz not null default '1970-01-01 00:00:00+00'
);
insert into head (last_hash) values (decode(repeat('00', 32), 'hex'));

create table record (
    log_index      bigint not null,
    recorded_at    timestamptz not null,
    record_id      uuid not null,
    occurred_at    timestamptz not null,
    correlation_id text not null,
    action         text not null,
    phase          text not null,
    outcome        text not null,
    service        text not null,
    instance       text not null,
    boot_id        text not null,
    producer_seq   bigint,
    leaf           text not null,
    leaf_hash      bytea not null,
    prev_hash      bytea not null,
    primary key (log_index, recorded_at)
) partition by range (recorded_at);
alter table record alter column leaf set storage external;
create index record_correlation_id on record (correlation_id);
create index record_occurred_at on record using brin (occurred_at) with (autosummarize = on);

create table seen (
    record_id uuid primary key,
    log_index bigint not null
);

create table issued (
    issuance_id text primary key,
    issued_at   timestamptz not null
);
create index issued_issued_at on issued (issued_at);

create table checkpoint (
    size      bigint primary key,
    root      bytea not null,
    note      text not null,
    signed_at timestamptz not null
);

create table sink_cursor (
    sink            text primary key,
    next_index      bigint not null default 0,
    checkpoint_size bigint not null default 0,
    epoch           bigint not null default 0,
    moved_at        timestamptz not null default now()
);

create table sink_dead_letter (
    sink      text not null,
    log_index bigint not null,
    reason    text not null,
    at        timestamptz not null default now(),
    primary key (sink, log_index)
);

create table window_check (
    start    timestamptz primary key,
    "end"    timestamptz not null,
    expected bigint not null,
    found    bigint not null,
    state    text not null check (state in ('equal', 'open', 'given_up')),
    attempts int not null,
    at       timestamptz not null default now()
);
"""

_IMMUTABLE = """
create function refuse_change() returns trigger language plpgsql as $$
begin
    raise exception '% on % is refused: the audit log is append-only', tg_op, tg_table_name
        using errcode = 'insufficient_privilege';
end $$;
"""

_MONTHS = """
create function ensure_month(moment timestamptz) returns void
language plpgsql security definer set search_path from current set timezone to 'UTC' as $$
declare
    first date := date_trunc('month', moment)::date;
    name  text := 'record_' || to_char(first, 'YYYYMM');
begin
    if to_regclass(name) is not null then
        return;
    end if;
    execute format(
        'create table %I partition of record for values from (%L) to (%L)'
        ' with (toast_tuple_target = 8160)',
        name, first, (first + interval '1 month')::date
    );
    execute format(
        'create trigger no_truncate before truncate on %I'
        ' for each statement execute function refuse_change()', name
    );
    execute format('alter table %I enable always trigger no_truncate', name);
end $$;
revoke execute on function ensure_month(timestamptz) from public;
"""


def _protect(table: str) -> None:
    op.execute(
        f"create trigger no_change before update or delete on {table}"
        " for each row execute function refuse_change()"
    )
    op.execute(
        f"create trigger no_truncate before truncate on {table}"
        " for each statement execute function refuse_change()"
    )
    op.execute(f"alter table {table} enable always trigger no_change")
    op.execute(f"alter table {table} enable always trigger no_truncate")


def upgrade() -> None:
    role = alembic_env.runtime_role()
    for statement in _TABLES.split(";\n"):
        if statement.strip():
            op.execute(statement)
    op.execute(_IMMUTABLE)
    for table in ("record", "seen", "checkpoint"):
        _protect(table)
    for statement in (_MONTHS[: _MONTHS.index("revoke")], _MONTHS[_MONTHS.index("revoke") :]):
        op.execute(statement)
    op.execute("select ensure_month(now()), ensure_month(now() + interval '1 month')")
    op.execute(f"grant select, insert on record, seen, issued, checkpoint to {role}")
    op.execute(f"grant select, update on head, heartbeat to {role}")
    op.execute(f"grant select, insert, update on sink_cursor, window_check to {role}")
    op.execute(f"grant select, insert, delete on sink_dead_letter to {role}")
    op.execute(f"grant execute on function ensure_month(timestamptz) to {role}")


def downgrade() -> None:
    op.execute("drop function ensure_month(timestamptz)")
    for table in (
        "heartbeat",
        "window_check",
        "sink_dead_letter",
        "sink_cursor",
        "checkpoint",
        "issued",
        "seen",
        "record",
        "head",
    ):
        op.execute(f"drop table {table}")
    op.execute("drop function refuse_change()")
