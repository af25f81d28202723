"""How long auditors wait for a page of records in a large audit log.

``.venv/bin/python benchmarks/audit_search.py [ROWS]``: fills a log (1,000,000 records by default,
in the months of 100 days), indexes it as the service does, then asks each kind of search 200
times with other values, first and later pages, as ``estctl audit search`` does. Also says what
indexing a record costs and how large everything is. On a real PostgreSQL; nothing else runs.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import asyncpg
import click

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from audit.main import MIGRATIONS
from audit.search import search as search_log
from audit.settings import SCHEMA
from estcore.messages.audit_queries import AuditSearch
from estcore.runtime import command_line
from estcore.runtime.command_line import CONTEXT
from estcore.runtime.migrations import migrate
from estcore.runtime.settings import DatabaseSettings
from estdev.ports import free_port
from estdev.postgres import EmbeddedPostgres
from estsuite_testing.many_records import index_records, write_records

TIMES = 200
LAST = dt.datetime(2026, 6, 20, 12, 0, tzinfo=dt.UTC)
DAYS = 100


def searches(rows: int) -> dict[str, Callable[[], AuditSearch]]:
    """Each kind of search, with other values at each call."""
    pick = random.Random(7).randrange
    calls = rows // 20 * 6

    def digest(what: str) -> str:
        return hashlib.md5(f"{what}{pick(calls)}".encode(), usedforsecurity=False).hexdigest()

    def correlation() -> str:
        text = digest("call")
        return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))

    def host() -> str:
        call = pick(calls // 5) * 5
        return f"host-{call // 5}.ward-{call % 200}.clinic.example"

    def week() -> tuple[dt.datetime, dt.datetime]:
        since = LAST - dt.timedelta(days=pick(7, DAYS))
        return since, since + dt.timedelta(days=7)

    def in_week(**conditions: str) -> AuditSearch:
        since, until = week()
        return AuditSearch(since=since, until=until, **conditions)  # type: ignore[arg-type]

    return {
        "newest": AuditSearch,
        "correlation id": lambda: AuditSearch(correlation_id=correlation()),
        "serial number": lambda: AuditSearch(serial=digest("serial") + "00"),
        "name": lambda: AuditSearch(name=host()),
        "principal": lambda: AuditSearch(principal=f"certificate:issuing/CN={host()}"),
        "operator": lambda: AuditSearch(principal=f"operator-{pick(7)}"),
        "owner": lambda: AuditSearch(owner=f"t{(n := pick(500)) % 20}/s{n}"),
        "tenant": lambda: AuditSearch(owner=f"t{pick(20)}"),
        "action": lambda: AuditSearch(action="operator.certificate-revoke"),
        "refused": lambda: AuditSearch(phase="denied"),
        "refused, of an owner": lambda: AuditSearch(
            phase="denied", owner=f"t{(n := pick(500)) % 20}/s{n}"
        ),
        "operator, of an owner": lambda: AuditSearch(
            principal=f"operator-{pick(7)}", owner=f"t{(n := pick(500)) % 20}/s{n}"
        ),
        "week": in_week,
        "week, action": lambda: in_week(action="est.simplereenroll"),
        "week, operator": lambda: in_week(principal=f"operator-{pick(7)}"),
        "name that is nowhere": lambda: AuditSearch(name=f"nowhere-{pick(9999)}"),
    }


async def measure(connection: asyncpg.Connection, rows: int) -> None:
    print(f"{'search':22}  p50 ms  p95 ms  max ms   (first page; with the next one)   rows")
    for name, make in searches(rows).items():
        first, later, found = [], [], 0
        for _ in range(TIMES):
            query = make()
            took, cursor, count = await one(connection, query)
            first.append(took)
            found += count
            if cursor is not None:
                query = query.model_copy(update={"before": cursor})
                later.append((await one(connection, query))[0])
        parts = [
            f"{p50:7.1f} {p95:7.1f} {top:7.1f}" for p50, p95, top in map(spread, (first, later))
        ]
        print(f"{name:22} {parts[0]}   {parts[1]}   {found / TIMES:5.1f}", flush=True)


async def one(connection: asyncpg.Connection, query: AuditSearch) -> tuple[float, int | None, int]:
    began = time.perf_counter()
    page = await search_log(connection, query)
    return (time.perf_counter() - began) * 1000, page.next, len(page.rows)


def spread(times: list[float]) -> tuple[float, float, float]:
    if len(times) < 2:
        return 0, 0, 0
    return statistics.median(times), statistics.quantiles(times, n=20)[18], max(times)


async def sizes(connection: asyncpg.Connection, rows: int) -> None:
    for table in ("record", "record_term", "record_chunk"):
        sql = """select sum(pg_table_size(relid)), sum(pg_indexes_size(relid)), sum(reltuples)
            from pg_partition_tree($1::text::regclass) join pg_class c on c.oid = relid
            where isleaf"""
        size, index, tuples = await connection.fetchrow(sql, table)
        if table == "record_chunk":
            size = await connection.fetchval("select pg_table_size('record_chunk')")
            index = await connection.fetchval("select pg_indexes_size('record_chunk')")
        print(
            f"{table:14} {int(tuples or 0):>10} rows, {(size or 0) / rows:6.0f} octets a record,"
            f" indexes {(index or 0) / rows:6.0f}"
        )


async def run(folder: Path, rows: int) -> None:
    postgres = EmbeddedPostgres(folder, free_port())
    await postgres.start()
    try:
        role = (await postgres.provision([SCHEMA]))[SCHEMA]
        settings = DatabaseSettings.model_validate(
            {
                "url": postgres.url(role.runtime),
                "password_file": role.runtime_password_file,
                "migration_url": postgres.url(role.owner),
                "migration_password_file": role.owner_password_file,
            }
        )
        await migrate(settings, schema=SCHEMA, scripts=MIGRATIONS)
        admin = await postgres.superuser()
        await admin.execute("set search_path to audit")
        began = time.perf_counter()
        await write_records(admin, rows, last=LAST, days=DAYS)
        print(f"{rows} records written by SQL in {time.perf_counter() - began:.0f} s", flush=True)
        began = time.perf_counter()
        await index_records(admin)
        took = time.perf_counter() - began
        print(f"indexed: {took:.0f} s, {took / rows * 1e6:.0f} us a record", flush=True)
        await admin.execute("vacuum analyze")
        await sizes(admin, rows)
        await measure(admin, rows)
        await admin.close()
    finally:
        await postgres.stop(immediate=True)
        shutil.rmtree(postgres.home, ignore_errors=True)


@click.command(
    "audit_search", help="Measure searches in an audit log of ROWS.", context_settings=CONTEXT
)
@click.argument("rows", type=int, default=1_000_000)
def audit_search(rows: int) -> None:
    work = Path(tempfile.mkdtemp(prefix="estsuite-bench-"))
    try:
        asyncio.run(run(work, rows))
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(command_line.run(audit_search, "audit_search"))
