"""Renewal information for many certificates: how a front end keeps it, and how it answers polls.

    .venv/bin/python benchmarks/renewal_info.py --certificates 1000000 --connections 200

Starts a local suite, publishes entries as est-renewal does, and prints: octets of an entry in the
stream and on the front end's disk, how long a front end with an empty folder reads, its memory, and
for polls on connections that stay open latency and CPU time. Nothing is kept.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import click

from estbench.processes import cpu_s, pss_mb
from estcore.clock import unix_ms
from estcore.est.renewal_info import CertificateId
from estcore.ids import new_serial_number
from estcore.messages.renewal_info import (
    RenewalInfoEntry,
    encode_entries,
    entry_key,
    expiry_day,
)
from estcore.messages.topics import PKI_RENEWAL_INFO, renewal_info_topic
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.settings import BusSettings
from estdev.layout import Layout, Ports
from estdev.local import LocalSuite, admin_get

DAYS = 90
DAY_S = 86_400
TOGETHER = 256
"""As many as a batch of renewal, all of one day."""
KEY_ID = bytes(range(20))
MEASURED_S = 20
WARM_UP_S = 5
"""Time in which the connections are made; not measured."""


def certificates(count: int) -> list[CertificateId]:
    """Return ids of certificates issued in the past."""
    first = unix_ms() - DAYS * DAY_S * 1000
    return [CertificateId(KEY_ID, new_serial_number(now_ms=first + n)) for n in range(count)]


def messages(ids: list[CertificateId]) -> Iterator[Outgoing]:
    """Yield what renewal publishes about certificates that expire over ``DAYS``."""
    now = unix_ms() // 1000
    for start in range(0, len(ids), TOGETHER):
        not_after = now + DAY_S + start * DAYS * DAY_S // len(ids)
        entries = [
            RenewalInfoEntry.model_validate(
                {
                    "key": entry_key(certificate_id),
                    "version": 0,
                    "start": not_after - 10 * DAY_S,
                    "end": not_after - 7 * DAY_S,
                    "not_after": not_after,
                    "rotation": random.randbytes(16),
                }
            )
            for certificate_id in ids[start : start + TOGETHER]
        ]
        for payload in encode_entries(entries):
            yield Outgoing(renewal_info_topic(expiry_day(not_after)), payload, ttl_s=200 * DAY_S)


async def publish(suite: LocalSuite, ids: list[CertificateId]) -> tuple[float, float]:
    """Publish all; returns seconds, and octets of an entry in the stream."""
    nats = suite.layout.nats
    settings = BusSettings(
        url=nats.url, nkey_seed_file=nats.seed_file("renewal"), senders_file=nats.senders_file
    )
    bus = await Bus.connect(settings, "renewal", "bench")
    started = time.monotonic()
    batch: list[Outgoing] = []
    for message in messages(ids):
        batch.append(message)
        if len(batch) == TOGETHER:
            await bus.publish_confirmed(batch, timeout_s=30)
            batch = []
    await bus.publish_confirmed(batch, timeout_s=30)
    took = time.monotonic() - started
    await bus.close()
    seed = nats.seed_file("migrate")
    admin = await Bus.connect(
        BusSettings(url=nats.url, nkey_seed_file=seed),
        "migrate",
        "bench",
        seed=seed.read_text().strip(),
        signs=False,
    )
    info = await admin.client.jetstream().stream_info(PKI_RENEWAL_INFO)
    await admin.close()
    return took, info.state.bytes / len(ids)


async def until_read(suite: LocalSuite, count: int) -> float:
    """Wait until the front end has all entries; returns seconds."""
    started = time.monotonic()
    port = suite.services["est-frontend"].admin_port
    while True:
        lines = (await admin_get(port, "/metrics")).splitlines()
        metrics = dict(line.rsplit(" ", 1) for line in lines if line[:1] not in {"#", ""})
        applied = float(metrics.get("est_frontend_renewal_info_applied_total", 0))
        if applied >= count and float(metrics["est_frontend_renewal_info_lag"]) == 0:
            return time.monotonic() - started
        await asyncio.sleep(0.1)


async def poll(suite: LocalSuite, ids: list[CertificateId], connections: int) -> list[float]:
    """Poll random certificates on connections that stay open; returns latencies in seconds."""
    base = f"https://localhost:{suite.layout.ports.est}/.well-known/est/renewal-info/"
    connector = aiohttp.TCPConnector(
        ssl=ssl.create_default_context(cafile=str(suite.layout.root_file)), limit=connections
    )
    latencies: list[float] = []
    until = time.monotonic() + WARM_UP_S + MEASURED_S
    measured_from = time.monotonic() + WARM_UP_S

    async def client(session: aiohttp.ClientSession) -> None:
        while (started := time.monotonic()) < until:
            async with session.get(f"{base}{random.choice(ids)}") as response:
                await response.read()
                if response.status != 200:
                    raise SystemExit(f"answered {response.status}")
            if started > measured_from:
                latencies.append(time.monotonic() - started)
            await asyncio.sleep(random.uniform(0, 2 * connections / RATE))

    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(client(session))
    return latencies


RATE = 500
"""Polls a second, so that the load generator does not compete for the cores."""


async def measure(count: int, connections: int) -> None:
    """Print all figures."""
    folder = Path(tempfile.mkdtemp(prefix="renewal-info-"))
    ports = Ports.free()
    ports.choose()
    suite = LocalSuite(Layout(folder, ports))
    try:
        await suite.start()
        write = sys.stdout.write
        running = suite.services["est-frontend"]
        write(f"empty: {pss_mb(running.process.pid):.1f} MiB PSS\n")
        ids = certificates(count)
        took, octets = await publish(suite, ids)
        write(f"published {count} in {took:.1f} s, {octets:.0f} octets each in the stream\n")
        await until_read(suite, count)
        await suite.stop_service("est-frontend", kill=True)
        shutil.rmtree(suite.layout.folder / "state" / "est-frontend")
        started = time.monotonic()
        running = await suite.start_service("est-frontend", "est-frontend", wait=True)
        pid = running.process.pid
        await until_read(suite, count)
        took = time.monotonic() - started
        write(f"read from an empty folder in {took:.1f} s from its start, {cpu_s(pid):.1f} CPU-s\n")
        state = suite.layout.folder / "state" / "est-frontend"
        size = sum(file.stat().st_size for file in state.glob("renewal-info.sqlite*"))
        write(f"{size / count:.0f} octets each on disk, {pss_mb(pid):.1f} MiB PSS\n")
        before = cpu_s(pid)
        latencies = sorted(await poll(suite, ids, connections))
        # With the handshakes, which are few.
        cpu_us = (
            (cpu_s(pid) - before) / len(latencies) * MEASURED_S / (MEASURED_S + WARM_UP_S) * 1e6
        )
        p50, p99 = statistics.median(latencies), latencies[int(len(latencies) * 0.99)]
        write(
            f"{len(latencies) / MEASURED_S:.0f} polls/s on {connections} connections: "
            f"p50 {p50 * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms, {cpu_us:.0f} CPU-us each, "
            f"{pss_mb(pid):.1f} MiB PSS\n"
        )
    finally:
        await suite.stop()
        shutil.rmtree(folder, ignore_errors=True)


@click.command(help=__doc__)
@click.option("--certificates", "count", default=1_000_000, show_default=True)
@click.option("--connections", default=200, show_default=True)
def main(count: int, connections: int) -> None:
    """Measure."""
    asyncio.run(measure(count, connections))


if __name__ == "__main__":
    main()
