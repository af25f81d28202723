"""What the audit log costs: from the bus to the committed leaf, on disk, to verify, to deliver.

    .venv/bin/python benchmarks/audit_log.py --records 1000000

On a real PostgreSQL and NATS, with est-audit as a process of its own:

- ``ingest``: the stream is filled while est-audit is stopped, then it takes everything: records a
  second, and CPU time of its process for each, from which comes what one core takes;
- ``disk``: octets of the audit schema and of the stream for each record;
- ``verify``: ``est-audit verify`` of an export of the whole log: seconds and peak memory;
- ``sinks``: each kind of sink gets a backlog from a receiver in another process that reads and
  confirms and does nothing else: records a second, CPU time of est-audit for each;
- ``delay``: at a constant rate, how long from the time of a record to the receiver: p50 and p99.

Nothing is kept but the figures, in docs/benchmarks/audit.json or ``--out``.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import click
import yaml

from audit import checkpoint_key, main
from audit.packed_leaf import unpack
from audit.settings import Settings
from audit_append import enrollment
from estbench import machine
from estbench.processes import cpu_s
from estcore.messages import permissions, topics
from estcore.messages.audit import AuditBatch
from estcore.messages.envelope import encode
from estcore.runtime import command_line
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.command_line import CONTEXT, PATH
from estcore.runtime.settings import BusSettings, read_secret
from estcore.runtime.topology import declare
from estdev.nats import EmbeddedNATS
from estdev.ports import free_port
from estdev.postgres import EmbeddedPostgres

TOGETHER = 32
"""Records in a message: as many as a busy signer has ready at once."""
PART = 100_000
"""Records in the stream at once, below its limit."""
FILE = Path(__file__).parents[1] / "docs/benchmarks/audit.json"
KINDS = ("syslog", "splunk", "splunk-acknowledged", "elasticsearch", "otlp", "webhook")
TOPIC = "audit.issue.ca-signer"


@dataclass
class Servers:
    """A PostgreSQL and a NATS with the schema and the streams of est-audit."""

    folder: Path
    postgres: EmbeddedPostgres
    nats: EmbeddedNATS
    config: dict[str, Any]
    vkey: str
    database: asyncpg.Connection

    async def size(self) -> int:
        return int(await self.database.fetchval("select size from audit.head"))

    async def until(self, records: int) -> None:
        while await self.size() < records:
            await asyncio.sleep(0.05)

    async def delivered(self, sink: str) -> int:
        query = "select coalesce((select next_index from audit.sink_cursor where sink = $1), 0)"
        return int(await self.database.fetchval(query, sink))

    @asynccontextmanager
    async def service(self, *sinks: dict[str, Any]) -> AsyncIterator[int]:
        """est-audit with these sinks; yields its process id."""
        path = self.folder / "audit.yaml"
        path.write_text(yaml.safe_dump(self.config | {"sinks": list(sinks)}))
        command = [sys.executable, "-m", "audit.main", "run", "--config", str(path)]
        log = (self.folder / "audit.log").open("ab")
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield process.pid
        finally:
            process.terminate()
            process.wait()
            log.close()

    @asynccontextmanager
    async def publisher(self) -> AsyncIterator[Bus]:
        settings = BusSettings(
            url=self.nats.url,
            nkey_seed_file=self.nats.seed_file("ca-signer"),
            senders_file=self.nats.senders_file,
        )
        bus = await Bus.connect(settings, "ca-signer", "bench")
        try:
            yield bus
        finally:
            await bus.close()


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Servers]:
    postgres = EmbeddedPostgres(folder, free_port())
    users = {
        "migrate": permissions.provisioner(),
        "ca-signer": permissions.signer(),
        "audit": permissions.audit(),
    }
    nats = EmbeddedNATS(folder, free_port(), users)
    await postgres.start()
    try:
        role = (await postgres.provision(["audit"]))["audit"]
        await nats.start()
        key_file = folder / "checkpoint.pem"
        vkey = checkpoint_key.create_key(key_file, "bench/audit")
        config = {
            "instance": "bench",
            "bus": {
                "url": nats.url,
                "nkey_seed_file": str(nats.seed_file("audit")),
                "migration_nkey_seed_file": str(nats.seed_file("migrate")),
                "senders_file": str(nats.senders_file),
            },
            "database": {
                "url": postgres.url(role.runtime),
                "password_file": str(role.runtime_password_file),
                "migration_url": postgres.url(role.owner),
                "migration_password_file": str(role.owner_password_file),
            },
            "checkpoint": {"origin": "bench/audit", "key_file": str(key_file)},
        }
        settings = Settings(**config)
        seed = read_secret(nats.seed_file("migrate"), "seed")
        bus = await Bus.connect(settings.bus, "migrate", "bench", seed=seed)
        await declare(bus, topics.owned_by("ca-signer"), (), replicas=1)
        await bus.close()
        await main.migrate(settings)
        database = await postgres.superuser()
        yield Servers(folder, postgres, nats, config, str(vkey), database)
        await database.close()
    finally:
        await nats.stop(kill=True)
        await postgres.stop(immediate=True)
        shutil.rmtree(postgres.home, ignore_errors=True)


def messages(records: int) -> list[bytes]:
    """Return messages as ca-signer publishes them, some enrollments each."""
    each = TOGETHER // 4
    return [
        encode(AuditBatch(records=tuple(r for n in range(each) for r in enrollment(first + n))))
        for first in range(0, records // 4, each)
    ]


async def fill(servers: Servers, records: int) -> None:
    """Publish records; est-audit is not there to take them."""
    async with servers.publisher() as bus:
        made = messages(records)
        for first in range(0, len(made), 64):
            await bus.publish_confirmed([Outgoing(TOPIC, m) for m in made[first : first + 64]])


async def ingest(servers: Servers, records: int) -> dict[str, Any]:
    """Take records by parts; the fastest and the median part, and the CPU time of all."""
    seconds, cpu, rates = 0.0, 0.0, []
    for start in range(0, records, PART):
        part = min(PART, records - start)
        await fill(servers, part)
        before = await servers.size()
        async with servers.service() as pid:
            await servers.until(before + 1)
            first, used, began = await servers.size(), cpu_s(pid), time.monotonic()
            await servers.until(before + part)
            taken = await servers.size() - first
            seconds += (lasted := time.monotonic() - began)
            cpu += cpu_s(pid) - used
            rates.append(taken / lasted)
    return {
        "records": records,
        "records_per_s": round(statistics.median(rates)),
        "best_records_per_s": round(max(rates)),
        "cpu_us_per_record": round(cpu / records * 1e6, 1),
        "records_per_core_s": round(records / cpu),
        "share_of_a_core": round(cpu / seconds, 2),
    }


async def disk(servers: Servers) -> dict[str, Any]:
    """What is on disk, once every record is indexed."""
    indexed = "select coalesce(max(end_index), 0) from audit.record_chunk"
    async with servers.service():
        while int(await servers.database.fetchval(indexed)) < await servers.size() - 500:
            await asyncio.sleep(1)
    records = await servers.size()
    query = (
        "select sum(pg_total_relation_size(c.oid)) from pg_class c join pg_namespace n"
        " on n.oid = c.relnamespace where n.nspname = 'audit' and c.relkind in ('r', 'm')"
    )
    octets = int(await servers.database.fetchval(query))
    packed = int(
        await servers.database.fetchval("select sum(octet_length(packed_leaf)) from audit.record")
    )
    some = await servers.database.fetch(
        "select packed_leaf from audit.record tablesample system (5) limit 5000"
    )
    leaves = [len(unpack(row[0]).encode()) for row in some]
    return {
        "records": records,
        "database_octets_per_record": round(octets / records),
        "leaf_octets": round(sum(leaves) / len(leaves)),
        "packed_leaf_octets": round(packed / records),
    }


async def verify(servers: Servers) -> dict[str, Any]:
    """Export the log, and verify the file as an auditor does."""
    out, config = servers.folder / "export.jsonl", servers.folder / "audit.yaml"
    records = await servers.size()
    async with servers.service():
        await servers.until(records + 1)
        began = time.monotonic()
        await _command("audit.main", "export", "--out", str(out), "--config", str(config))
        exported = time.monotonic() - began
    vkey = servers.folder / "audit.vkey"
    vkey.write_text(servers.vkey + "\n")
    began, cpu = time.monotonic(), _children_s()
    await _command("estclient.cli", "audit", "verify", "--export", str(out), "--vkey", str(vkey))
    seconds = time.monotonic() - began
    return {
        "records": records,
        "export_s": round(exported, 1),
        "verify_s": round(seconds, 1),
        "verify_cpu_s": round(_children_s() - cpu, 1),
        "export_octets_per_record": round(out.stat().st_size / records),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
    }


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


async def _command(module: str, *arguments: str) -> None:
    script = f"import sys; from {module} import main; sys.exit(main())"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, *arguments)
    if await process.wait():
        raise click.ClickException(f"{module} {arguments[0]} failed")


@asynccontextmanager
async def receiver(folder: Path, kind: str, times: Path | None = None) -> AsyncIterator[Any]:
    """A receiver in a process of its own; yields the settings of its sink."""
    command = [sys.executable, "-m", "estbench.audit_receiver", kind, str(folder)]
    command += [str(times)] if times else []
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent / "tests" / "support")])
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert process.stdout is not None
    try:
        yield json.loads(await asyncio.to_thread(process.stdout.readline))
    finally:
        process.terminate()
        process.wait()


async def sinks(servers: Servers, backlog: int) -> dict[str, Any]:
    """Each kind of sink gets the newest ``backlog`` records."""
    found = {}
    for kind in KINDS:
        folder = servers.folder / kind
        folder.mkdir()
        size = await servers.size()
        start = max(0, size - backlog)
        await servers.database.execute(
            "insert into audit.sink_cursor (sink, next_index, checkpoint_size) values ($1, $2, $3)",
            kind,
            start,
            size,
        )
        async with receiver(folder, kind) as sink, servers.service(sink) as pid:
            while (first := await servers.delivered(kind)) == start:
                await asyncio.sleep(0.02)
            used, began = cpu_s(pid), time.monotonic()
            while await servers.delivered(kind) < size:
                await asyncio.sleep(0.02)
            seconds, cpu = time.monotonic() - began, cpu_s(pid) - used
        found[kind] = {
            "records_per_s": round((size - first) / seconds),
            "cpu_us_per_record": round(cpu / (size - first) * 1e6, 1),
            "records_per_core_s": round((size - first) / cpu),
        }
        click.echo(f"  {kind:20} {json.dumps(found[kind])}")
    return found


async def delay(servers: Servers, rate: int, seconds: float) -> dict[str, Any]:
    """Publish at a constant rate; the receiver writes how old each record was."""
    folder = servers.folder / "delay"
    folder.mkdir()
    times = folder / "times"
    async with (
        receiver(folder, "syslog", times) as sink,
        servers.service(sink | {"name": "delay"}),
        servers.publisher() as bus,
    ):
        size = await servers.size()
        await servers.database.execute(
            "insert into audit.sink_cursor (sink, next_index, checkpoint_size)"
            " values ('delay', $1, $1) on conflict (sink) do update set next_index = $1",
            size,
        )
        await servers.until(size + 1)
        await asyncio.sleep(3)
        began, sent = time.monotonic(), 0
        while time.monotonic() - began < seconds:
            message = encode(AuditBatch(records=tuple(enrollment(sent))))
            await bus.publish_confirmed([Outgoing(TOPIC, message)])
            sent += 4
            await asyncio.sleep(max(0.0, began + sent / rate - time.monotonic()))
        await servers.until(size + sent)
        await asyncio.sleep(3)
    ages = sorted(float(line) for line in times.read_text().split())[-sent:]
    return {
        "records_per_s": rate,
        "records": len(ages),
        "p50_ms": round(statistics.median(ages) * 1000, 1),
        "p99_ms": round(ages[int(len(ages) * 0.99)] * 1000, 1),
        "max_ms": round(ages[-1] * 1000, 1),
    }


async def measure(records: int, backlog: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="audit-bench-", dir="/var/tmp") as name:
        async with running(Path(name)) as servers:
            figures: dict[str, Any] = {
                "machine": machine.describe(),
                "load_average": round(machine.load_average(), 1),
                "backlog": min(backlog, records),
            }
            for part, work in (
                ("delay", delay(servers, 300, 20)),
                ("ingest", ingest(servers, records)),
                ("sinks", sinks(servers, min(backlog, records))),
                ("disk", disk(servers)),
                ("verify", verify(servers)),
            ):
                figures[part] = await work
                click.echo(f"{part:8} {json.dumps(figures[part])}")
    return figures


@click.command("audit_log", help="Measure the audit log.", context_settings=CONTEXT)
@click.option("--records", type=int, default=1_000_000, show_default=True)
@click.option("--backlog", type=int, default=1_000_000, show_default=True, help="For each sink.")
@click.option("--out", type=PATH, default=FILE, help="Where the figures go.")
def audit_log(records: int, backlog: int, out: Path) -> None:
    figures = asyncio.run(measure(records, backlog))
    out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(command_line.run(audit_log, "audit_log"))
