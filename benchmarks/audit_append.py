"""CPU-ms per record and per enrollment of the audit service, on real PostgreSQL and NATS.

``.venv/bin/python benchmarks/audit_append.py [ENROLLMENTS] [BATCH]``: publishes intent, outcome
and two more records per enrollment in batches as ca-signer does, then measures what the service
alone (a process of its own) uses to take them all. PostgreSQL and NATS are not counted.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import asyncpg
import click
import yaml

from audit import checkpoint_key, main
from audit.settings import Settings
from estcore import ids
from estcore.messages import permissions, topics
from estcore.messages.audit import Actor, AuditBatch, AuditRecord, Producer, Target
from estcore.messages.envelope import encode
from estcore.runtime import command_line
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.command_line import CONTEXT
from estcore.runtime.settings import BusSettings, read_secret
from estcore.runtime.topology import declare
from estdev.nats import EmbeddedNATS
from estdev.ports import free_port
from estdev.postgres import EmbeddedPostgres

RECORDS = 4


async def measure(folder: Path, enrollments: int, batch: int) -> None:
    postgres = EmbeddedPostgres(folder, free_port())
    nats = EmbeddedNATS(
        folder,
        free_port(),
        {
            "migrate": permissions.provisioner(),
            "ca-signer": permissions.signer(),
            "audit": permissions.audit(),
        },
    )
    await postgres.start()
    try:
        role = (await postgres.provision(["audit"]))["audit"]
        await nats.start()
        key_file = folder / "checkpoint.pem"
        checkpoint_key.create_key(key_file, "bench/audit")
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
        path = folder / "audit.yaml"
        path.write_text(yaml.safe_dump(config))
        connection = await postgres.superuser()
        for rate in (0, 300):
            await one(nats, path, connection, enrollments, batch, rate)
        await connection.close()
    finally:
        await nats.stop(kill=True)
        await postgres.stop(immediate=True)
        shutil.rmtree(postgres.home, ignore_errors=True)


async def one(
    nats: EmbeddedNATS,
    config: Path,
    connection: asyncpg.Connection,
    enrollments: int,
    batch: int,
    rate: int,
) -> None:
    service = subprocess.Popen([sys.executable, "-m", "audit.main", "run", "--config", config])
    bus = await Bus.connect(
        BusSettings(
            url=nats.url,
            nkey_seed_file=nats.seed_file("ca-signer"),
            senders_file=nats.senders_file,
        ),
        "ca-signer",
        "b",
    )
    try:
        count = "select size from audit.head"
        before = await connection.fetchval(count)
        while await connection.fetchval(count) == before:
            await asyncio.sleep(0.1)
        await asyncio.sleep(1)
        before = await connection.fetchval(count)
        start_cpu, started = cpu_ms(service.pid), time.monotonic()
        for first in range(0, enrollments, batch):
            records = [r for n in range(batch) for r in enrollment(first + n)]
            payload = encode(AuditBatch(records=tuple(records)))
            await bus.publish_confirmed([Outgoing("audit.issue.ca-signer", payload)])
            if rate:
                await asyncio.sleep(max(0, started + (first + batch) / rate - time.monotonic()))
        wanted = before + enrollments * RECORDS
        while await connection.fetchval(count) < wanted:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)
        seconds = time.monotonic() - started
        used = cpu_ms(service.pid) - start_cpu
        result = {
            "enrollments": enrollments,
            "per_message": batch,
            "offered_per_s": rate or "unbounded",
            "taken_per_s": round(enrollments / seconds),
            "cpu_ms_per_record": round(used / enrollments / RECORDS, 4),
            "cpu_ms_per_enrollment": round(used / enrollments, 4),
        }
        print(json.dumps(result))
    finally:
        await bus.close()
        service.terminate()
        service.wait()


def enrollment(number: int) -> list[AuditRecord]:
    """Two front-end records, intent and outcome, with a certificate of usual size."""
    now = dt.datetime.now(dt.UTC)  # noqa: TID251 - a benchmark
    issuance = ids.uuid7()
    target = {
        "tenant": "demo",
        "service": "web",
        "slot_id": issuance,
        "request_id": issuance,
        "issuance_id": issuance,
        "label": "dev",
        "profile": "server",
        "issuer_id": "issuing-1",
        "policy_version": "a" * 64,
        "subject": "CN=web.example.org",
        "san": ("dns:web.example.org",),
        "csr_sha256": "b" * 64,
        "spki_sha256": "c" * 64,
        "serial": "01" * 18,
        "certificate_sha256": "d" * 64,
    }
    certificate = base64.b64encode(os.urandom(620)).decode()
    made = []
    for phase, outcome in (("intent", "unknown"), ("outcome", "success")) * 2:
        extra = {"certificate": certificate, "issued_at": now} if phase == "outcome" else {}
        made.append(
            AuditRecord(
                record_id=ids.uuid7(),
                producer=Producer(service="ca-signer", instance="s-0", boot_id="b"),
                occurred_at=now,
                correlation_id=issuance,
                action="certificate.issue" if len(made) < 2 else "certificate.returned",
                phase=phase,
                outcome=outcome,
                actor=Actor(type="service", subject="secret:web", auth_method="secret"),
                target=Target(**(target | (extra if len(made) < 2 else {}))),
            )
        )
    return made


def cpu_ms(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


@click.command("audit_append", help="Measure the audit service.", context_settings=CONTEXT)
@click.argument("enrollments", type=int, default=4000)
@click.argument("batch", type=int, default=8)
def audit_append(enrollments: int, batch: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(measure(Path(name), enrollments, batch))


if __name__ == "__main__":
    sys.exit(command_line.run(audit_append, "audit_append"))
