"""The straight path, and what may go wrong on it, against real servers."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from audit import export, main
from audit.chain import leaf_text
from audit.packed_leaf import pack, unpack
from estcore.clock import SystemClock
from estcore.errors import BusUnavailable
from estcore.messages.audit import AuditRecord
from estcore.runtime.database import Database
from estcore.runtime.settings import TelemetrySettings
from estcore.tlog.verify import Options, Report, verify
from estsuite_testing.audit_stack import AuditWorld

pytestmark = pytest.mark.integration
Build = Callable[..., AuditRecord]
FOREIGN = "select count(*) from record where service <> 'audit'"


async def lines(world: AuditWorld, correlation_id: str | None = None) -> list[bytes]:
    database = await Database.connect(world.settings().database, "audit", "audit")
    try:
        name = world.vkey.name
        return [x async for x in export.lines(database, name, str(world.vkey), correlation_id)]
    finally:
        await database.close()


async def judged(world: AuditWorld) -> Report:
    options = Options(now=SystemClock().now(), key=world.vkey)
    return verify(await lines(world), options).report


async def test_records_are_kept_in_order_and_the_log_verifies(
    world: AuditWorld, record: Build
) -> None:
    async with world.service() as _, world.publisher() as publisher:
        await publisher.send(*(record(n) for n in range(10)))
        await publisher.send(*(record(n) for n in range(10, 20)))
        await world.wait(FOREIGN, 20)
        await world.wait("select max(size) = (select size from head) from checkpoint", True)
    report = await judged(world)
    assert report.ok, report.findings
    assert report.sealed == report.records == 22
    kept = [
        json.loads(json.loads(x)["leaf"])["record"]
        for x in (await lines(world))[1:-1]
        if b'"record"' in x
    ]
    assert [r["record_id"] for r in kept if r["producer"]["service"] != "audit"] == [
        record(n).record_id for n in range(20)
    ]
    assert [r["action"] for r in kept if r["producer"]["service"] == "audit"] == [
        "audit.start",
        "audit.stop",
    ]
    part = await lines(world, "call-3")
    options = Options(now=SystemClock().now(), key=world.vkey)
    assert verify(part, options).report.ok
    assert len(part) == 5


async def test_what_is_delivered_twice_is_kept_once(world: AuditWorld, record: Build) -> None:
    async with world.service() as _, world.publisher() as publisher:
        await publisher.send(record(1), record(2), record(1))
        await world.wait(FOREIGN, 2)
        await publisher.send(record(2), record(3))
        await publisher.send(record(1), record(2))
        await world.wait(FOREIGN, 3)
        await publisher.send(record(4))
        await world.wait(FOREIGN, 4)
    assert (await judged(world)).ok


@pytest.mark.logs_errors("audit message unreadable")
async def test_an_unreadable_message_is_set_aside_and_its_good_records_are_kept(
    world: AuditWorld, record: Build
) -> None:
    good = record(1).model_dump(mode="json", exclude_none=True)
    bad = good | {"record_id": "no", "details": {"x": 1.5}}
    async with world.service() as _, world.publisher() as publisher:
        await publisher.raw(b"{")
        await publisher.raw(json.dumps({"records": [good, bad | {"details": None}]}).encode())
        await publisher.raw(json.dumps({"records": [bad]}).encode())
        await publisher.raw(json.dumps({"records": []}).encode())
        target = {"issuance_id": "i", "issued_at": "0001-01-01T00:00:00+14:00"}
        issue = {"action": "certificate.issue", "phase": "outcome", "outcome": "success"}
        late = good | issue | {"record_id": record(7).record_id, "target": target}
        await publisher.raw(json.dumps({"records": [late]}).encode())
        await publisher.send(record(2))
        await world.wait(FOREIGN, 2)
        await world.wait("select count(*) from record where action = 'audit.dead_letter'", 5)
    dead = await world.leaves("action = 'audit.dead_letter'")
    reasons = [leaf["record"]["reason_code"] for leaf in dead]
    assert sorted(reasons) == [
        "not-a-batch",
        "not-a-record",
        "not-a-record",
        "not-json",
        "refused",
    ]
    assert (await judged(world)).ok


async def test_nothing_is_lost_when_postgres_crashes_under_load(
    world: AuditWorld, record: Build
) -> None:
    sent = 0
    stop = asyncio.Event()

    async def load() -> None:
        nonlocal sent
        async with world.publisher() as publisher:
            while not stop.is_set():
                batch = [record(n) for n in range(sent, sent + 20)]
                with contextlib.suppress(BusUnavailable):
                    await publisher.send(*batch)
                    sent += 20
                await asyncio.sleep(0.01)

    async with world.service() as port, asyncio.TaskGroup() as group:
        group.create_task(load())
        for _ in range(2):
            await asyncio.sleep(0.7)
            await world.platform.postgres.stop(immediate=True)
            await asyncio.sleep(0.7)
            await world.platform.postgres.start()
        await asyncio.sleep(0.5)
        stop.set()
        await asyncio.sleep(0.1)
        await world.wait(FOREIGN, sent)
        assert port
    assert sent > 100
    report = await judged(world)
    assert report.ok, report.findings


async def test_of_two_replicas_one_writes_and_the_other_takes_over(
    world: AuditWorld, record: Build, readiness: Callable[[int], Awaitable[str]]
) -> None:
    async with world.publisher() as publisher:
        async with world.service(instance="audit-0") as first:
            await world.wait("select count(*) from record where instance = 'audit-0'", 1)
            async with world.service(instance="audit-1") as second:
                # The standby's own start is on record through the writer.
                await world.wait("select count(*) from record where instance = 'audit-1'", 1)
                assert await readiness(first) == "ready\n"
                assert await readiness(second) == "ready\n"
                await publisher.send(record(1))
                await world.wait(FOREIGN, 1)
                # The writer's session ends as if its host had died.
                await world.value(
                    "select count(pg_terminate_backend(pid)) from pg_locks"
                    " where locktype = 'advisory' and granted"
                )
                for number in range(2, 30):
                    await publisher.send(record(number))
                    await asyncio.sleep(0.02)
                await world.wait(FOREIGN, 29)
        # The stop of one that did not write waits on the bus for the next writer.
        async with world.service(instance="audit-2"):
            await world.wait(
                "select count(distinct instance) from record where action = 'audit.stop'", 2
            )
    report = await judged(world)
    assert report.ok, report.findings


async def test_the_runtime_role_may_only_append(world: AuditWorld, record: Build) -> None:
    async with world.service() as _, world.publisher() as publisher:
        await publisher.send(record(1))
        await world.wait(FOREIGN, 1)
    month = await world.value("select tableoid::regclass::text from record limit 1")
    for connection in (await world.runtime(), await world.superuser()):
        for statement in (
            "update {} set packed_leaf = 'x'",
            "delete from {}",
            "truncate {}",
        ):
            for table in ("record", "seen", "checkpoint", month):
                with pytest.raises(Exception, match=r"append-only|denied|column") as caught:
                    await connection.execute(statement.format(table))
                assert type(caught.value).__name__ in {
                    "InsufficientPrivilegeError",
                    "UndefinedColumnError",
                }
        await connection.close()
    assert (await judged(world)).ok


async def test_a_log_that_was_begun_before_leaves_were_packed_goes_on(
    world: AuditWorld, record: Build
) -> None:
    async with world.service() as _, world.publisher() as publisher:
        await publisher.send(*(record(n) for n in range(10)))
        await world.wait(FOREIGN, 10)
    connection = await world.superuser()
    await connection.execute("alter table record disable trigger all")
    for index, packed in await connection.fetch("select log_index, packed_leaf from record"):
        await connection.execute(
            "update record set leaf = $1, packed_leaf = null where log_index = $2",
            unpack(packed),
            index,
        )
    await connection.close()
    async with world.service() as _, world.publisher() as publisher:
        await publisher.send(*(record(n) for n in range(5, 20)))
        await world.wait(FOREIGN, 20)
        await world.wait("select max(size) = (select size from head) from checkpoint", True)
    assert await world.value("select count(leaf) > 0 and count(packed_leaf) > 0 from record")
    report = await judged(world)
    assert report.ok, report.findings
    found = [leaf["record"]["record_id"] for leaf in await world.leaves("service <> 'audit'")]
    assert found == [record(n).record_id for n in range(20)]


PASSED = leaf_text(3, "2026-11-30T12:00:00.000000Z", '{"reason_code":"auth.passed"}', "audit.x")
CHANGED = f"update record set packed_leaf = '\\x{pack(PASSED).hex()}' where log_index = 3"


@pytest.mark.parametrize(
    ("statement", "code", "place"),
    [
        (CHANGED, "record.leaf_hash", "record 3"),
        (
            f"update record set packed_leaf = null, leaf = '{PASSED}' where log_index = 3",
            "record.leaf_hash",
            "record 3",
        ),
        (
            "update record set packed_leaf = set_byte(packed_leaf, 9, 255 - get_byte(packed_leaf, 9))"
            " where log_index = 3",
            "record.leaf_hash",
            "record 3",
        ),
        ("update record set packed_leaf = '' where log_index = 3", "record.leaf_hash", "record 3"),
        ("delete from record where log_index = 3", "record.index", "record 4"),
        ("delete from record where log_index > 3", "checkpoint.records", "checkpoint"),
        ("update record set prev_hash = leaf_hash where log_index = 3", "record.prev_hash", "3"),
        ("update checkpoint set note = replace(note, E'\\n', E'\\nx')", "checkpoint", "checkpoint"),
        ("update checkpoint set size = size + 1", "checkpoint.size", "checkpoint"),
    ],
)
async def test_what_a_superuser_changes_is_found(
    world: AuditWorld, record: Build, statement: str, code: str, place: str
) -> None:
    async with world.service() as _, world.publisher() as publisher:
        await publisher.send(*(record(n) for n in range(10)))
        await world.wait(FOREIGN, 10)
    connection = await world.superuser()
    for table in ("record", "checkpoint"):
        await connection.execute(f"alter table {table} disable trigger all")
    assert "0" not in (await connection.execute(statement)).split()[-1:]
    await connection.close()
    report = await judged(world)
    assert any(f.code.startswith(code) and place in f.place for f in report.findings)


async def test_a_start_waits_for_its_dependencies_and_stops_on_request(
    world: AuditWorld, tmp_path: Path, readiness: Callable[[int], Awaitable[str]]
) -> None:
    bus = world.platform.bus("audit").model_copy(update={"url": "nats://127.0.0.1:1"})
    stop = asyncio.Event()
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as group:
        group.create_task(main.run(world.settings(bus=bus), stop=stop, started=port.set_result))
        assert await readiness(await port) == "not ready: starting\n"
        stop.set()


async def test_a_sampled_trace_reaches_the_append(world: AuditWorld, record: Build) -> None:
    exported = bytearray()

    async def collector(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        packed = b"content-encoding: gzip" in head.lower()
        exported.extend(gzip.decompress(body) if packed else body)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(collector, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    telemetry = TelemetrySettings(otlp_endpoint=f"http://127.0.0.1:{port}/v1/traces")
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    async with world.service(telemetry=telemetry), world.publisher() as publisher:
        await publisher.send(record(1), traceparents=(f"00-{trace}-{span}-01",))
        await world.wait(FOREIGN, 1)
    server.close()
    assert b"audit append" in exported
    assert bytes.fromhex(trace) in exported
    assert bytes.fromhex(span) in exported
