"""Search: the index of terms, which is written behind the log, by month as the log is."""

from alembic import op

from estcore.runtime.alembic_env import runtime_role

revision = "0003"
down_revision = "0002"

TABLES = """
create table record_term (
    term        bigint not null,
    recorded_at timestamptz not null,
    chunk       bigint not null,
    places      bytea not null
) partition by range (recorded_at);
comment on table record_term is 'which records of a chunk have a term: two octets each';
create index record_term_term on record_term (term, recorded_at, chunk);
create table record_chunk (
    first_index bigint primary key,
    end_index   bigint not null,
    recorded_at timestamptz not null
);
comment on table record_chunk is 'chunks of the log whose terms are indexed';
create index record_chunk_recorded_at on record_chunk (recorded_at);
drop index record_correlation_id
"""

# A superset of ensure_month of 0001: the months of the index too.
MONTHS = """
create or replace function ensure_month(moment timestamptz) returns void
language plpgsql security definer set search_path from current set timezone to 'UTC' as $$
declare
    first date := date_trunc('month', moment)::date;
    until date := (first + interval '1 month')::date;
    name  text := 'record_' || to_char(first, 'YYYYMM');
    terms text := 'record_term_' || to_char(first, 'YYYYMM');
begin
    if to_regclass(name) is null then
        execute format(
            'create table %I partition of record for values from (%L) to (%L)'
            ' with (toast_tuple_target = 8160)', name, first, until
        );
        execute format(
            'create trigger no_truncate before truncate on %I'
            ' for each statement execute function refuse_change()', name
        );
        execute format('alter table %I enable always trigger no_truncate', name);
    end if;
    if to_regclass(terms) is null then
        execute format(
            'create table %I partition of record_term for values from (%L) to (%L)',
            terms, first, until
        );
    end if;
end $$
"""

EXISTING = """
select ensure_month(to_date(right(relid::text, 6), 'YYYYMM')::timestamp at time zone 'UTC')
from pg_partition_tree('record') where level = 1
"""

PREVIOUS_MONTHS = """
create or replace function ensure_month(moment timestamptz) returns void
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
end $$
"""


def upgrade() -> None:
    for statement in TABLES.split(";\n"):
        op.execute(statement)
    op.execute(MONTHS)
    op.execute(EXISTING)
    role = runtime_role()
    op.execute(f"grant select, insert on record_term, record_chunk to {role}")


def downgrade() -> None:
    op.execute(PREVIOUS_MONTHS)
    op.execute("drop table record_chunk")
    op.execute("drop table record_term")
    op.execute("create index record_correlation_id on record (correlation_id)")
