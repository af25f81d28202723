"""How long operators wait for a page of certificates in a large ledger.

``.venv/bin/python benchmarks/search.py [ROWS]``: fills a ledger (1,000,000 certificates by
default), then asks each kind of search 200 times with other values, first and later pages,
as ``estctl cert list`` does. Also says what entering a certificate into the directory costs, and
what the signer's gauges cost. On a real PostgreSQL; nothing else runs.
"""

from __future__ import annotations

import asyncio
import datetime as dt
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
from ca_signer.connections import SCHEMA, SCRIPTS
from ca_signer.ledger import certificate_index, certificate_search
from ca_signer.ledger.certificate_search import Query
from ca_signer.ledger.inventory_metrics import EXPIRING, STATES
from estcore.clock import SystemClock
from estcore.runtime import command_line
from estcore.runtime.command_line import CONTEXT
from estcore.runtime.database import Database
from estcore.runtime.migrations import migrate
from estcore.runtime.settings import DatabaseSettings
from estdev.ports import free_port
from estdev.postgres import EmbeddedPostgres
from estsuite_testing.many_certificates import write_certificates

TIMES = 200
_CHUNK = 20_000


def searches(rows: int) -> dict[str, Callable[[], Query]]:
    """Each kind of search, with other values at each call."""
    pick = random.Random(7).randrange

    def soon() -> Query:
        start = SystemClock().now() + dt.timedelta(days=pick(30))
        end = start + dt.timedelta(days=7)
        return Query(expires_after=start, expires_before=end, state="good")

    return {
        "newest": Query,
        "exact name": lambda: Query(
            name=f"host-{(h := pick(rows // 5))}.ward-{h * 5 % 200}.clinic.example"
        ),
        "beginning of a name": lambda: Query(name=f"host-{pick(10, 1000)}*"),
        "end of a name": lambda: Query(name=f"*.ward-{pick(200)}.clinic.example"),
        "owner": lambda: Query(tenant=f"t{(n := pick(500)) % 20}", service=f"s{n}"),
        "owner, revoked": lambda: Query(tenant=f"t{(n := pick(10) * 50) % 20}", service=f"s{n}",
                                        state="revoked"),
        "profile": lambda: Query(profile="device", state="good"),
        "team": lambda: Query(team=f"team-{pick(50)}"),
        "cluster, good": lambda: Query(cluster=f"cluster-{pick(8)}", state="good"),
        "expiring in a week": soon,
        "revoked": lambda: Query(state="revoked"),
        "held": lambda: Query(state="held"),
    }  # fmt: skip


async def fill(database: Database, rows: int) -> float:
    """Write the rows; returns the microseconds that entering one into the directory took."""
    entering = 0.0
    for first in range(0, rows, _CHUNK):
        async with database.connection() as connection:
            written = await write_certificates(connection, first, min(first + _CHUNK, rows))
            for start in range(0, len(written), 500):
                began = time.perf_counter()
                await certificate_index.enter(connection, written[start : start + 500])
                entering += time.perf_counter() - began
        sys.stderr.write(f"\r{first + len(written):>9} rows")
    sys.stderr.write("\n")
    return entering / rows * 1e6


async def measure(database: Database, rows: int) -> None:
    print(f"{'search':22}  p50 ms  p95 ms  max ms   (first page; with the next one)")
    for name, make in searches(rows).items():
        first, later = [], []
        for _ in range(TIMES):
            query = make()
            took, cursor = await one(database, query)
            first.append(took)
            if cursor is not None:
                later.append((await one(database, Query(**{**vars(query), "after": cursor})))[0])
        parts = [
            f"{p50:7.1f} {p95:7.1f} {top:7.1f}" for p50, p95, top in map(spread, (first, later))
        ]
        print(f"{name:22} {parts[0]}   {parts[1]}")


async def one(database: Database, query: Query) -> tuple[float, str | None]:
    began = time.perf_counter()

    async def work(connection: asyncpg.Connection) -> str | None:
        return (await certificate_search.search(connection, query))[1]

    cursor = await database.run(work)
    return (time.perf_counter() - began) * 1000, cursor


def spread(times: list[float]) -> tuple[float, float, float]:
    if len(times) < 2:
        return 0, 0, 0
    return statistics.median(times), statistics.quantiles(times, n=20)[18], max(times)


async def gauges(database: Database) -> None:
    for name, sql in (("states", STATES), ("expiring", EXPIRING)):
        async with database.connection() as connection:
            began = time.perf_counter()
            await connection.fetch(sql)
            print(f"gauges, {name:14} {(time.perf_counter() - began) * 1000:7.0f} ms")


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
        await migrate(settings, schema=SCHEMA, scripts=SCRIPTS)
        database = await Database.connect(settings, "ca-signer", SCHEMA)
        entering = await fill(database, rows)
        print(f"{rows} serial numbers by the signer's generator, none refused by the unique index")
        print(f"{rows} certificates; entering one in groups of 500: {entering:.0f} us")
        admin = await postgres.superuser()
        await admin.execute("vacuum analyze")
        await admin.close()
        await measure(database, rows)
        await gauges(database)
        await database.close()
    finally:
        await postgres.stop(immediate=True)
        shutil.rmtree(postgres.home, ignore_errors=True)


@click.command("search", help="Measure searches in a ledger of ROWS.", context_settings=CONTEXT)
@click.argument("rows", type=int, default=1_000_000)
def search(rows: int) -> None:
    work = Path(tempfile.mkdtemp(prefix="estsuite-bench-"))
    try:
        asyncio.run(run(work, rows))
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(command_line.run(search, "search"))
