"""kill -9 of every producer with audit records that are not published: verification names them."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import shutil

import pytest

from estcore.messages.audit import AuditBatch, AuditRecord
from estcore.messages.envelope import encode
from estcore.messages.topics import audit_refusal_topic
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.settings import BusSettings
from estcore.tlog.findings import Finding
from estdev.ports import free_port
from estsuite_testing.e2e_stack import Stack, make_csr
from estsuite_testing.raw_client import Client, b64

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.asyncio(loop_scope="module"),
]
KILLED = "killed"
OTHERS = ("ca-signer", "renewal", "audit")


async def found(stack: Stack, *instances: str) -> list[Finding]:
    """Findings about these instances, when nothing is on its way any more."""
    await stack.until_recorded()
    findings = await stack.findings(later=dt.timedelta(minutes=10))
    return [f for f in findings if any(f"/{name}/" in f.sentence for name in instances)]


async def start(stack: Stack) -> int:
    """Start a further front end that flushes its records every five seconds; return its port."""
    port = free_port()
    environment = {
        "EST_FRONTEND__LISTEN__PORT": str(port),
        "EST_FRONTEND__TRAIL__FLUSH_EVERY_S": "5",
    }
    suite = stack.suite
    await suite.start_service("est-frontend", KILLED, wait=True, environment=environment)
    return port


async def refused(stack: Stack, port: int, count: int) -> None:
    client = Client.of(stack)
    client.port, client.basic = port, "Basic bm9ib2R5Om5vdGhpbmc="
    _, csr = make_csr("dev-killed")
    for answer in await asyncio.gather(*(client.enroll(b64(csr)) for _ in range(count))):
        assert answer.status in {401, 429}


async def again(stack: Stack) -> None:
    """Publish every record of the front end a second time."""
    records = [
        AuditRecord(**r) for r in await stack.records() if r["producer"]["instance"] == KILLED
    ]
    nats = stack.layout.nats
    seed = nats.seed_file("est-frontend")
    settings = BusSettings(url=nats.url, nkey_seed_file=seed, senders_file=nats.senders_file)
    bus = await Bus.connect(settings, "est-frontend", KILLED)
    try:
        body = encode(AuditBatch(records=tuple(records)))
        topic = audit_refusal_topic("est-frontend", "default")
        await bus.publish_confirmed([Outgoing(topic, body)])
    finally:
        await bus.close()


async def test_a_front_end_killed_with_unpublished_refusals_is_named(stack: Stack) -> None:
    boots = stack.layout.folder / "state" / KILLED / "boots"
    port = await start(stack)
    await refused(stack, port, 7)
    (file,) = boots.iterdir()
    await stack.suite.stop_service(KILLED, kill=True)
    last = int(file.read_text())
    assert last >= 8
    await start(stack)
    await stack.suite.stop_service(KILLED)
    (gap,) = await found(stack, KILLED)
    assert gap.code == "sequence.gap"
    assert f"est-frontend/{KILLED}/{file.name}" in gap.sentence
    assert gap.sentence.endswith(f" to {last}")
    assert int(gap.sentence.split()[0]) >= 7
    # An orderly stop and messages delivered twice are nothing new.
    await refused(stack, await start(stack), 3)
    await stack.suite.stop_service(KILLED)
    await start(stack)
    await stack.suite.stop_service(KILLED)
    await again(stack)
    assert [str(f) for f in await found(stack, KILLED)] == [str(gap)]
    # A state folder that is lost is no gap.
    await refused(stack, await start(stack), 3)
    await asyncio.sleep(6)  # flushed
    await stack.suite.stop_service(KILLED, kill=True)
    shutil.rmtree(boots)
    await start(stack)
    await stack.suite.stop_service(KILLED)
    codes = [f.code for f in await found(stack, KILLED)]
    assert codes == ["sequence.gap", "sequence.end_unknown"]


@pytest.mark.logs_errors("audit log not writable")
async def test_every_other_service_killed_with_an_unpublished_record_is_named(
    stack: Stack,
) -> None:
    suite, layout = stack.suite, stack.layout
    await stack.until_recorded()
    boots = {name: layout.folder / "state" / name / "boots" for name in OTHERS}
    before = {name: [file.name for file in folder.iterdir()] for name, folder in boots.items()}
    sizes = {name: (layout.logs / f"{name}.log").stat().st_size for name in OTHERS}
    await layout.nats.stop(kill=True)
    await layout.postgres.stop(immediate=True)
    os.utime(layout.nats.senders_file)
    async with asyncio.timeout(20):
        for name in OTHERS:
            log = layout.logs / f"{name}.log"
            while b"configuration reloaded" not in log.read_bytes()[sizes[name] :]:
                await asyncio.sleep(0.1)
    for name in OTHERS:
        await suite.stop_service(name, kill=True)
    await layout.postgres.start()
    await layout.nats.start()
    await asyncio.gather(*(suite.start_service(name, name, wait=True) for name in OTHERS))
    gaps = await found(stack, *OTHERS)
    assert {f.code for f in gaps} == {"sequence.gap"}, json.dumps([str(f) for f in gaps])
    for name in OTHERS:
        (gap,) = [f for f in gaps if f"/{name}/" in f.sentence]
        assert any(boot in gap.sentence for boot in before[name])
