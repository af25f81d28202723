"""Delivery to a SIEM over real TLS: everything, in order, again after a break."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from audit import sink_commands
from audit.sink_settings import SyslogSink
from estcore.messages.audit import AuditRecord
from estcore.tlog.checkpoint import parse_signed
from estsuite_testing.audit_stack import AuditWorld
from estsuite_testing.siem import SIEM

pytestmark = pytest.mark.integration
Build = Callable[..., AuditRecord]


@pytest.fixture
async def siem(tmp_path: Path) -> AsyncIterator[SIEM]:
    receiver = SIEM(tmp_path)
    await receiver.start()
    yield receiver
    await receiver.stop()


def a_sink(siem: SIEM, **changes: Any) -> SyslogSink:
    values: dict[str, Any] = {
        "name": "siem",
        "host": "127.0.0.1",
        "port": siem.port,
        "ca_file": siem.ca_file,
        "certificate_file": siem.certificate_file,
        "key_file": siem.key_file,
        "batch": 10,
        "resend": 5,
        "timeout_s": 2,
        "backoff_max_s": 0.3,
    }
    return SyslogSink(**(values | changes))


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not check():
            await asyncio.sleep(0.02)


async def test_every_record_and_checkpoint_arrives_in_order(
    world: AuditWorld, record: Build, siem: SIEM
) -> None:
    async with world.service(sinks=(a_sink(siem),)), world.publisher() as publisher:
        await publisher.send(*(record(n) for n in range(50)))
        await until(lambda: len(siem.indexes) >= 51)
        await until(lambda: bool(siem.notes))
        assert siem.indexes == list(range(51)), (siem.connections, siem.indexes)
        signed = parse_signed(siem.notes[-1])
        signed.verify(world.vkey)
        await world.wait("select next_index from sink_cursor", 51)
        assert signed.checkpoint.size <= 51


async def test_after_a_break_it_goes_on_without_a_gap(
    world: AuditWorld, record: Build, siem: SIEM
) -> None:
    siem.break_after = 23
    async with world.service(sinks=(a_sink(siem, name="other"),)), world.publisher() as publisher:
        await publisher.send(*(record(n) for n in range(40)))
        await until(lambda: 40 in siem.indexes)
        assert set(siem.indexes) >= set(range(41))
        assert siem.connections == 2
        await world.wait("select count(*) from record where action = 'audit.sink_fault'", 1)
        await world.wait("select count(*) from record where action = 'audit.sink_recovered'", 1)


async def test_a_dead_sink_stalls_neither_the_log_nor_the_other_sink(
    world: AuditWorld, record: Build, siem: SIEM, tmp_path: Path
) -> None:
    dead = a_sink(siem, name="dead", port=1)
    wrong_name = a_sink(siem, name="wrong", server_name="else.test")
    by_name = a_sink(siem, server_name="siem.test")
    refused = a_sink(siem, name="refused", certificate_file=None, key_file=None)
    sinks = (dead, wrong_name, refused, by_name)
    async with world.service(sinks=sinks), world.publisher() as publisher:
        await publisher.send(*(record(n) for n in range(20)))
        await until(lambda: len(set(siem.indexes)) >= 24)
        await world.wait("select count(*) from record where action = 'audit.sink_fault'", 3)
        await world.wait("select count(*) from sink_cursor where next_index > 0", 1)


async def test_replay_sends_again_and_is_on_record(
    world: AuditWorld, record: Build, siem: SIEM
) -> None:
    sink = a_sink(siem, name="again", resend=0)
    settings = world.settings(sinks=(sink,))
    async with world.service(sinks=(sink,)), world.publisher() as publisher:
        await publisher.send(*(record(n) for n in range(20)))
        await until(lambda: 20 in siem.indexes)
        before = len(siem.indexes)
        await world.wait("select next_index >= 21 from sink_cursor where sink = 'again'", True)
        await sink_commands.replay(settings, name="again", start=5)
        await until(lambda: len(siem.indexes) >= before + 16)
        assert siem.indexes[before:].count(5) == 1
        await world.wait("select count(*) from record where action = 'audit.replay'", 1)


async def test_a_record_too_large_is_trimmed_and_says_so(
    world: AuditWorld, record: Build, siem: SIEM
) -> None:
    async with world.service(sinks=(a_sink(siem, name="big"),)), world.publisher() as publisher:
        await publisher.send(record(1, details={"much": "x" * 9000}), record(2))
        await until(lambda: 2 in siem.indexes)
        frame = siem.frames[siem.indexes.index(1)]
        assert b'trimmed="true" omitted="details"' in frame


async def test_the_command_delivers_on_the_event_loop_it_runs_on(
    world: AuditWorld, record: Build, siem: SIEM
) -> None:
    """The service runs on uvloop, whose transports are not those of asyncio."""
    settings = world.settings(sinks=(a_sink(siem, name="process"),))
    config = world.folder / "audit.yaml"
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude_none=True)))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "audit.main", "run", "--config", str(config), stderr=-1
    )
    try:
        async with world.publisher() as publisher:
            await publisher.send(*(record(n) for n in range(50)))
            await until(lambda: 50 in siem.indexes)
            await siem.stop()
            await publisher.send(*(record(n) for n in range(50, 60)))
            await siem.start()
            await until(lambda: 60 in siem.indexes)
        assert set(siem.indexes) >= set(range(61))
        process.terminate()
        _, log = await process.communicate()
        assert process.returncode == 0, log.decode()
        assert await world.value("select max(size) = (select size from head) from checkpoint")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
