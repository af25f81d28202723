"""An audit log with many records, written by SQL: for plans and figures of searches.

Leaves are those of real records and have their hashes; the chain is not kept. Of twenty records
eighteen are those of six enrollments (intent, outcome, the call at est-frontend), one is a
refusal, one a revocation by an operator. The records end at ``last`` and are evenly spread over
``days`` before it, so they lie in several months.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from audit import indexer, search, term_store
from estcore.messages.audit_queries import AuditSearch
from estsuite_testing.audit_stack import AuditWorld

_RECORDS = r"""
with numbered as (
    select n, n / 20 * 6 + least(n % 20, 17) / 3 as call, n % 20 as place,
        $3::timestamptz - ($4 - n) * $5::interval as at
    from generate_series($1::bigint, $2::bigint - 1) as n),
named as (
    select *, 't' || call % 20 as tenant, 's' || call % 500 as service,
        'host-' || call / 5 || '.ward-' || call % 200 || '.clinic.example' as host,
        md5('serial' || call) || '00' as serial, md5('call' || call)::uuid::text as correlation,
        case when place < 18 then
            (array['certificate.issue', 'certificate.issue', 'est.simplereenroll'])[place % 3 + 1]
            when place = 18 then 'est.simpleenroll' else 'operator.certificate-revoke' end as action,
        case when place < 18 then (array['intent', 'outcome', 'outcome'])[place % 3 + 1]
            when place = 18 then 'denied' else 'outcome' end as phase
    from numbered),
texts as (
    select *, case phase when 'intent' then 'unknown' when 'denied' then 'failure'
            else 'success' end as outcome,
        case when action like 'est.%' then 'est-frontend' else 'ca-signer' end as producer,
        to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as moment
    from named),
leaves as (
    select *, '{"log_index":' || n || ',"record":{"action":"' || action || '","actor":{'
        || case when place = 19 then '"auth_method":"command","rule":"operator-' || call % 7
              || '","subject":"certificate:issuing/CN=operator-' || call % 7 || '","type":"human"'
            else '"auth_method":"certificate","subject":"certificate:issuing/CN=' || host
              || '","type":"service"' end
        || '},"correlation_id":"' || correlation || '","occurred_at":"' || moment
        || '","outcome":"' || outcome || '","phase":"' || phase || '","producer":{"boot_id":"b",'
        || '"instance":"i","service":"' || producer || '"}'
        || case when phase = 'denied' then ',"reason":"no rule","reason_code":"policy.no_rule"'
            else '' end
        || ',"record_id":"' || md5('record' || n)::uuid || '","severity":"info","target":{'
        || '"issuer_id":"issuing","policy_version":"' || repeat('a', 64) || '","profile":"device",'
        || '"san":["dns:' || host || '"],"serial":"' || serial || '","service":"' || service
        || '","spki_sha256":"' || md5('a' || call) || md5('b' || call) || '","subject":"CN=' || host
        || '","tenant":"' || tenant || '"}},"recorded_at":"' || moment
        || '","topic":"audit.issue.' || producer || '"}' as leaf
    from texts)
insert into record (log_index, recorded_at, record_id, occurred_at, correlation_id, action, phase,
    outcome, service, instance, boot_id, producer_seq, leaf, leaf_hash, prev_hash)
select n, at, md5('record' || n)::uuid, at, correlation, action, phase, outcome, producer, 'i', 'b',
    null, leaf, sha256('\x00'::bytea || convert_to(leaf, 'UTF8')), sha256(''::bytea)
from leaves
"""
_CHUNK = 20_000


async def write_records(connection: Any, count: int, *, last: dt.datetime, days: int = 100) -> None:
    """Write ``count`` records into an empty log, and the months that they need."""
    for ago in range(days + 1):
        await connection.execute("select ensure_month($1)", last - dt.timedelta(days=ago))
    step = dt.timedelta(days=days) / count
    for first in range(0, count, _CHUNK):
        end = min(first + _CHUNK, count)
        await connection.execute(_RECORDS, first, end, last, count, step)
    await connection.execute("update head set size = $1, recorded_at = $2", count, last)


async def index_records(connection: Any) -> int:
    """Index everything as the job of the service does; returns up to where."""
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    while True:
        start, since = await term_store.indexed(connection)
        rows = await term_store.unindexed(
            connection, start, since or epoch, term_store.CHUNK_RECORDS
        )
        if not rows:
            return start
        async with connection.transaction():
            for chunk in indexer.chunks(rows):
                await indexer.index(connection, chunk)


async def found(world: AuditWorld, **conditions: Any) -> list[dict[str, Any]]:
    """Return all rows of a search, page by page."""
    rows: list[dict[str, Any]] = []
    query = AuditSearch(**conditions)
    connection: Any = await world.runtime()
    try:
        while True:
            page = await search.search(connection, query)
            rows += page.rows
            if page.next is None:
                return rows
            query = query.model_copy(update={"before": page.next})
    finally:
        await connection.close()
