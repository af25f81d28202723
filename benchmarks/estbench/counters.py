"""Counters beside CPU time: what PostgreSQL, JetStream and the signer have done so far."""

from __future__ import annotations

import re

import asyncpg
import nats

from estcore.messages.topics import STREAMS
from estdev.nats import EmbeddedNATS

REPORTED_S = 10.5
"""An idle backend of PostgreSQL reports what it did ten seconds later (PGSTAT_IDLE_INTERVAL)."""
_POSTGRES = """
select (select sum(xact_commit) from pg_stat_database)::float8 as transactions,
       (select sum(tup_inserted) from pg_stat_database)::float8 as rows_inserted,
       (select sum(tup_updated) from pg_stat_database)::float8 as rows_updated,
       (select wal_records from pg_stat_wal)::float8 as wal_records,
       (select wal_fpi from pg_stat_wal)::float8 as wal_full_pages,
       (select wal_bytes from pg_stat_wal)::float8 as wal_bytes,
       (select sum(fsyncs) from pg_stat_io where object = 'wal')::float8 as wal_fsyncs
"""


async def postgres_counts(connection: asyncpg.Connection) -> dict[str, float]:
    """Return transactions, rows and WAL of the whole cluster."""
    row = await connection.fetchrow(_POSTGRES)
    assert row is not None
    return dict(row)


async def stream_counts(server: EmbeddedNATS) -> dict[str, float]:
    """Return how many messages all streams have stored, from JetStream's own API."""
    client = await nats.connect(
        server.url,
        nkeys_seed=str(server.seed_file("migrate")),
        inbox_prefix=b"_INBOX_migrate",
        connect_timeout=5,
    )
    try:
        manager = client.jsm()
        stored = [(await manager.stream_info(s.name)).state.last_seq for s in STREAMS]
    finally:
        await client.close()
    return {"stream_messages": float(sum(stored))}


def metric(text: str, name: str) -> float:
    """Return the sum over all labels of a metric in Prometheus's text format."""
    found = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
    return sum(float(value) for value in found)
