"""What one enrollment costs PostgreSQL, with small and with large tables.

``.venv/bin/python benchmarks/storage.py [ROWS]``: fills the tables of ledger, renewal and audit,
once with 10,000 enrollments and once with ROWS (1,000,000 by default), then stores new ones with
the services' own statements, in turn, right after a checkpoint and later. Says what each took:
CPU time of PostgreSQL's processes, WAL, whole pages in it, updates that touched no index. Then
claims slots while 50,000 are due. On a real PostgreSQL; no service runs.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import asyncpg
import click

from audit import store
from audit.chain import Chain
from audit.main import MIGRATIONS as AUDIT_SCRIPTS
from audit.record_decoder import read
from ca_signer import connections as ledger_connections
from ca_signer.ledger.issuances import IssuanceStore
from ca_signer.model import IssuanceIntent, IssuedCertificate, RequestFacts
from ca_signer.publishing.audit_records import AuditRecords
from estbench import rows
from estcore import ids
from estcore.clock import SystemClock
from estcore.messages.audit_batches import encode_records, join_records, parts
from estcore.messages.envelope import decode, encode_mapping
from estcore.messages.events import CertificateIssued
from estcore.pki.profile import Priority
from estcore.runtime import command_line
from estcore.runtime.command_line import CONTEXT
from estcore.runtime.database import Database
from estcore.runtime.migrations import migrate
from estcore.runtime.settings import DatabaseSettings
from estdev.ports import free_port
from estdev.postgres import EmbeddedPostgres
from renewal.dispatch.claims import claim, count_due
from renewal.events.projection import project
from renewal.main import MIGRATIONS as RENEWAL_SCRIPTS
from renewal.rotation.schedule import priority_rank
from renewal.settings import LeaseSettings, RotationSettings

SMALL = 10_000
DUE = 50_000
_BATCH, _ANNOUNCED, _MARKED = 5, 20, 200
_PRIORITY = priority_rank(Priority.NORMAL)
_CLOCK = SystemClock()
_SCHEMAS = {
    "ca_signer": ledger_connections.SCRIPTS,
    "renewal": RENEWAL_SCRIPTS,
    "audit": AUDIT_SCRIPTS,
}


@dataclass(frozen=True)
class Cost:
    """What a number of enrollments took, each."""

    cpu_us: float
    octets: float
    records: float
    whole_pages: float


class Server:
    """A PostgreSQL with the three schemas, and the statements of the services on it."""

    def __init__(self, folder: Path, filled: int) -> None:
        self.filled = filled
        self.postgres = EmbeddedPostgres(folder, free_port())

    async def start(self) -> None:
        """Start it, migrate, connect."""
        await self.postgres.start()
        roles = await self.postgres.provision(list(_SCHEMAS))
        found = {}
        for schema, scripts in _SCHEMAS.items():
            role = roles[schema]
            settings = DatabaseSettings.model_validate(
                {
                    "url": self.postgres.url(role.runtime),
                    "password_file": role.runtime_password_file,
                    "migration_url": self.postgres.url(role.owner),
                    "migration_password_file": role.owner_password_file,
                }
            )
            await migrate(settings, schema=schema, scripts=scripts)
            found[schema] = await Database.connect(settings, "benchmark", schema)
        self.ledger = IssuanceStore(found["ca_signer"], lease_s=60)
        self.renewal, self.audit = found["renewal"], found["audit"]
        self.admin = await self.postgres.superuser()
        await self.admin.execute("create extension if not exists pg_walinspect")
        async with self.audit.connection() as connection:
            await store.ensure_months(connection, _CLOCK.now())
            self.chain = await Chain.load(connection, _CLOCK)
        self.build = AuditRecords(_CLOCK, "bench", ids.uuid7())

    async def stop(self) -> None:
        """Stop it and remove its data."""
        for database in (self.ledger.database, self.renewal, self.audit):
            await database.close()
        await self.admin.close()
        await self.postgres.stop(immediate=True)
        shutil.rmtree(self.postgres.home, ignore_errors=True)

    async def enroll(self, count: int, subject: str = "host") -> None:
        """Store that many enrollments, in groups such as sixteen clients at once make."""
        issued: list[IssuedCertificate] = []
        for number in range(0, count, _BATCH):
            intents = [
                intent(f"{subject}-{ids.uuid7()}") for _ in range(min(_BATCH, count - number))
            ]
            recorded = await self.ledger.insert(intents)
            if len(recorded) != len(intents):
                raise RuntimeError("not every intent was recorded")
            await self._append(join_records([self.build.intent(i) for i in intents]))
            signed = [(i, der := i.tbs + os.urandom(80), sha256(der).digest()) for i in intents]
            issued += await self.ledger.store(signed)
            last = number + _BATCH >= count
            if len(issued) % _ANNOUNCED == 0 or last:
                await self._announce(issued[-(len(issued) % _ANNOUNCED or _ANNOUNCED) :])
            if len(issued) >= _MARKED or last:
                await self.ledger.mark_announced([i.intent.issuance_id for i in issued])
                issued = []

    async def _announce(self, issued: list[IssuedCertificate]) -> None:
        await self._append([encode_mapping(self.build.outcome(i)) for i in issued])
        events = [
            decode(CertificateIssued, encode_mapping(self.build.issued_event(i))) for i in issued
        ]

        async def work(connection: asyncpg.Connection) -> None:
            await project(connection, events, [], rotation=RotationSettings())

        await self.renewal.run(work)

    async def _append(self, records: list[bytes]) -> None:
        entries = [e for p in parts(records) for e in read(encode_records(records[p])).entries]
        if not entries:
            raise RuntimeError("no records")
        async with self.audit.connection() as connection:
            await self.chain.append(connection, entries)

    async def measure(self, count: int) -> Cost:
        """Store that many and return what each took."""
        start = await self._insert_position()
        began = self._cpu_us()
        await self.enroll(count)
        used = self._cpu_us() - began
        row = await self.admin.fetchrow(
            "select sum(count)::float8, sum(combined_size)::float8 "
            "from pg_get_wal_stats($1::text::pg_lsn, pg_current_wal_flush_lsn())",
            start,
        )
        pages = await self.admin.fetchval(
            "select count(*) from pg_get_wal_block_info($1::text::pg_lsn, pg_current_wal_flush_lsn(), false) "
            "where block_fpi_length > 0",
            start,
        )
        return Cost(used / count, row[1] / count, row[0] / count, pages / count)

    async def relations(self, count: int) -> list[asyncpg.Record]:
        """Return WAL by relation of that many more enrollments."""
        start = await self._insert_position()
        await self.enroll(count)
        found: list[asyncpg.Record] = await self.admin.fetch(
            "select coalesce(n.nspname || '.' || c.relname, 'other') as relation, "
            "count(*)::float8 / $2 as changes, "
            "sum(coalesce(block_data_length, 0) + record_length - total_blocks_length)::float8 / $2"
            " as octets, "
            "count(*) filter (where block_fpi_length > 0)::float8 / $2 as pages "
            "from (select *, sum(block_data_length + block_fpi_length) over (partition by start_lsn)"
            "  as total_blocks_length from "
            "  pg_get_wal_block_info($1::text::pg_lsn, pg_current_wal_flush_lsn(), false)) b "
            "left join pg_class c on pg_relation_filenode(c.oid) = b.relfilenode "
            "left join pg_namespace n on n.oid = c.relnamespace "
            "group by 1 order by 3 desc",
            start,
            count,
        )
        return found

    async def updates(self) -> list[asyncpg.Record]:
        """Return rows updated since the start, and how many of them without touching an index."""
        await asyncio.sleep(1.5)
        found: list[asyncpg.Record] = await self.admin.fetch(
            "select schemaname || '.' || relname as relation, n_tup_ins, n_tup_upd, n_tup_hot_upd "
            "from pg_stat_user_tables where n_tup_upd > 50 order by n_tup_upd desc"
        )
        return found

    async def claims(self, times: int) -> list[float]:
        """Return the milliseconds that each claim of 100 slots takes with many due."""
        await self.admin.execute(
            "update renewal.renewal_slot set next_attempt_at = now() - interval '1 minute' "
            "- random() * interval '1 hour', "
            "not_after = now() + interval '1 day' + random() * interval '30 days' "
            "where slot_id in (select slot_id from renewal.renewal_slot limit $1)",
            DUE,
        )
        await self.admin.execute("vacuum analyze renewal.renewal_slot")
        found = []
        for _ in range(times):

            async def work(connection: asyncpg.Connection) -> int:
                began = time.perf_counter()
                claimed = await claim(
                    connection,
                    priority=_PRIORITY,
                    due=(await count_due(connection))[_PRIORITY],
                    limit=100,
                    owner="bench",
                    traceparent=None,
                    leases=LeaseSettings(),
                )
                found.append((time.perf_counter() - began) * 1000)
                return len(claimed)

            if await self.renewal.run(work) != 100:
                raise RuntimeError("fewer than 100 slots claimed")
        return found

    async def _insert_position(self) -> str:
        return str(await self.admin.fetchval("select pg_current_wal_insert_lsn()::text"))

    def _cpu_us(self) -> float:
        return sum(_cpu_ns(pid) for pid in _children(self.postgres.pid)) / 1000


def intent(name: str) -> IssuanceIntent:
    """Return a new intent, of the size of one for a P-256 key."""
    now = _CLOCK.now().replace(microsecond=0)
    key, presented = os.urandom(32), os.urandom(32).hex()
    return IssuanceIntent(
        issuance_id=ids.uuid7(),
        enrollment_id=os.urandom(32),
        request_id=ids.uuid7(),
        issuer_id="issuing",
        serial_number=ids.new_serial_number(),
        tbs=os.urandom(620),
        tenant="clinic",
        service="devices",
        profile="service-mtls",
        slot_id=ids.slot_id("clinic", "devices", "issuing", "service-mtls", name, ()),
        subject=f"CN={name}",
        san=(f"dns:{name}.clinic.example",),
        spki_sha256=key,
        not_before=now,
        not_after=now + dt.timedelta(days=90),
        predecessor_sha256=None,
        presented_sha256=bytes.fromhex(presented),
        secret_id=None,
        sign_before=now + dt.timedelta(minutes=5),
        context=RequestFacts(
            correlation_id=ids.uuid7(),
            operation="simpleenroll",
            group="default",
            instance="bench-1",
            label="devices",
            principal="certificate:factory/bench",
            auth_method="certificate",
            presented_serial=presented[:32],
            presented_sha256=presented,
            rule="devices",
            policy_version=presented[:16],
            profile_version=presented[:16],
            priority="normal",
            key_algorithm="EC-P256",
            csr_sha256=key.hex(),
            reaction_time_s=86_400,
            overlap_s=3_600,
            spread=0.05,
        ),
    )


def _children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        yield from map(int, (task / "children").read_text().split())


def _cpu_ns(pid: int) -> int:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


async def run(folder: Path, filled: int, count: int, rounds: int) -> None:
    servers = [Server(folder / f"{n}", n) for n in sorted({SMALL, filled})]
    async with AsyncExitStack() as stack:
        for server in servers:
            await server.start()
            stack.push_async_callback(server.stop)
            await server.enroll(1, "bench-client")
            await rows.fill(server.admin, server.filled, lambda text: print(text, file=sys.stderr))
            await server.enroll(200)
        print("rows     when               CPU us  WAL octets  records  whole pages")
        costs: dict[tuple[int, str], list[Cost]] = {}
        for number in range(rounds):
            for server in servers if number % 2 == 0 else servers[::-1]:
                await server.admin.execute("checkpoint")
                for when in ("after a checkpoint", "later"):
                    costs.setdefault((server.filled, when), []).append(await server.measure(count))
        for (n, when), found in sorted(costs.items()):
            median = [
                statistics.median(values) for values in zip(*map(_values, found), strict=True)
            ]
            least = min(cost.cpu_us for cost in found)
            print(
                f"{n:>9,} {when:18} {median[0]:6.0f} {median[1]:10.0f} {median[2]:8.1f} "
                f"{median[3]:8.2f}   (least {least:.0f} us)"
            )
        largest = servers[-1]
        print("\nWAL by relation, later: changes, octets without whole pages, whole pages")
        for row in await largest.relations(count):
            print(f"{row[0]:45} {row[1]:6.2f} {row[2]:7.0f} {row[3]:6.2f}")
        print("\nupdates, without an index")
        for row in await largest.updates():
            print(f"{row[0]:45} {row[2]:8} {row[3]:8}")
        for server in servers:
            if server.filled >= 2 * DUE:
                times = await server.claims(100)
                print(
                    f"\nclaim of 100 slots, {DUE:,} due of {server.filled:,}: "
                    f"median {statistics.median(times):.1f} ms, most {max(times):.1f} ms"
                )


def _values(cost: Cost) -> tuple[float, ...]:
    return cost.cpu_us, cost.octets, cost.records, cost.whole_pages


@click.command("storage", help="Measure an enrollment in PostgreSQL.", context_settings=CONTEXT)
@click.argument("filled", metavar="ROWS", type=int, default=1_000_000)
@click.option("-n", "count", type=int, default=1_000, show_default=True, help="a measurement")
@click.option("--rounds", type=int, default=3, show_default=True)
def storage(filled: int, count: int, rounds: int) -> None:
    work = Path(tempfile.mkdtemp(prefix="estsuite-bench-"))
    try:
        asyncio.run(run(work, filled, count, rounds))
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(command_line.run(storage, "storage"))
