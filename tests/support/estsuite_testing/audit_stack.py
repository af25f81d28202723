"""The audit service in this process, on real servers."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg

from audit import checkpoint_key, main
from audit.auditor_commands import AuditorCommands
from audit.packed_leaf import LEAF, unpack
from audit.settings import AppendSettings, CheckpointSettings, Settings
from audit.sink_settings import SinkSettings
from estcore import ids
from estcore.clock import SystemClock
from estcore.errors import BusUnavailable
from estcore.messages import topics
from estcore.messages.audit import Actor, AuditBatch, AuditRecord, Producer, Target
from estcore.messages.commands import CommandAnswered
from estcore.messages.envelope import decode, encode
from estcore.messages.topics import command_topic
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.database import Database
from estcore.runtime.service import Job, run_jobs
from estcore.runtime.settings import DatabaseSettings
from estcore.runtime.topology import declare
from estsuite_testing.platform import Platform

ORIGIN = "test.example/audit"
START = dt.datetime(2026, 1, 2, 12, 0, tzinfo=dt.UTC)


def make_record(number: int, **changes: Any) -> AuditRecord:
    """A refusal of a front end; one thing is changed by each test."""
    values: dict[str, Any] = {
        "record_id": ids.record_id("test", str(number)),
        "producer": Producer(service="ca-signer", instance="s-0", boot_id="boot"),
        "occurred_at": START + dt.timedelta(milliseconds=number),
        "correlation_id": f"call-{number // 3}",
        "action": "auth.denied",
        "phase": "denied",
        "outcome": "failure",
        "actor": Actor(type="service", subject="CN=ä"),
        "target": Target(label="dev", subject="CN=device"),
    }
    return AuditRecord(**(values | changes))


class AuditWorld:
    """A database and a bus with the audit service's schema, streams and consumers."""

    def __init__(self, platform: Platform, folder: Path) -> None:
        self.platform = platform
        self.folder = folder
        self.key_file = folder / "checkpoint.pem"
        self.vkey = checkpoint_key.create_key(self.key_file, ORIGIN)

    def settings(self, **changes: Any) -> Settings:
        values: dict[str, Any] = {
            "instance": "audit-0",
            "bus": self.platform.bus("audit"),
            "database": self.platform.database("audit"),
            "append": AppendSettings(linger_ms=5, retry_s=0.2),
            "checkpoint": CheckpointSettings(origin=ORIGIN, key_file=self.key_file, interval_s=0.3),
            "stop_timeout_s": 10,
        }
        return Settings(**(values | changes))

    async def migrate(self) -> None:
        bus = await self.platform.provisioner()
        await declare(bus, topics.owned_by("ca-signer"), (), replicas=1)
        await bus.close()
        await main.migrate(self.settings())

    async def superuser(self) -> asyncpg.Connection:
        connection = await self.platform.postgres.superuser()
        await connection.execute("set search_path to audit")
        return connection

    async def value(self, query: str, *arguments: Any) -> Any:
        connection = await self.superuser()
        try:
            return await connection.fetchval(query, *arguments)
        finally:
            await connection.close()

    async def leaves(self, where: str) -> list[dict[str, Any]]:
        """Return the leaves of the records of an SQL condition, in the order of the log."""
        connection = await self.superuser()
        try:
            rows = await connection.fetch(
                f"select {LEAF} from record where {where} order by log_index"
            )
        finally:
            await connection.close()
        return [json.loads(unpack(row[0])) for row in rows]

    async def runtime(self) -> asyncpg.Connection:
        settings: DatabaseSettings = self.platform.database("audit")
        assert settings.password_file
        return await asyncpg.connect(
            settings.url,
            password=settings.password_file.read_text(),
            server_settings={"search_path": "audit"},
        )

    async def wait(self, query: str, expected: Any, *, timeout_s: float = 90) -> None:
        """Wait until the query has the expected answer.

        By default for longer than the consumer's ``ack_wait_s``: what was delivered to a service
        that had just stopped is delivered again after it.
        """
        found = None
        try:
            async with asyncio.timeout(timeout_s):
                while (found := await self.value(query)) != expected:
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{query}: {found}, not {expected}") from None

    async def until_not_ready(self, port: int, *, timeout_s: float = 30) -> None:
        """Wait until the replica says that it is not ready."""
        async with asyncio.timeout(timeout_s):
            while not (await ready(port)).startswith("not ready"):
                await asyncio.sleep(0.05)

    @asynccontextmanager
    async def service(self, **changes: Any) -> AsyncIterator[int]:
        """A running replica; yields its admin port."""
        stop = asyncio.Event()
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        settings = self.settings(**changes)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(main.run(settings, stop=stop, started=port.set_result))
            try:
                yield await port
            finally:
                stop.set()
                await asyncio.wait({task}, timeout=20)

    @asynccontextmanager
    async def publisher(self, user: str = "ca-signer") -> AsyncIterator[Publisher]:
        bus = await Bus.connect(self.platform.bus(user), user, "s-0")
        try:
            yield Publisher(bus)
        finally:
            await bus.close()


class Publisher:
    """Publishes like ca-signer does."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus

    async def send(self, *records: AuditRecord, traceparents: tuple[str, ...] = ()) -> None:
        batch = AuditBatch(records=records, traceparents=traceparents)
        await self.raw(encode(batch))

    async def raw(self, payload: bytes) -> None:
        await self.bus.publish_confirmed([Outgoing("audit.issue.ca-signer", payload)])


async def ready(port: int) -> str:
    """The body of /readyz."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.closing(writer):
        writer.write(b"GET /readyz HTTP/1.1\r\n\r\n")
        body = await reader.read()
    return body.decode().split("\r\n\r\n")[1]


async def empty_world(platform: Platform, folder: Path) -> AuditWorld:
    """Return a world whose log is empty and for which nothing waits in the streams."""
    stored = await platform.stored_messages()
    for name in {consumer.stream for consumer in topics.AUDIT_CONSUMERS} & stored.keys():
        await platform.purge_stream(name)
    connection = await platform.postgres.superuser()
    await connection.execute("drop schema if exists audit cascade")
    await connection.execute("create schema audit authorization audit_owner")
    await connection.execute("grant usage on schema audit to audit")
    await connection.close()
    world = AuditWorld(platform, folder)
    await world.migrate()
    return world


@asynccontextmanager
async def answering(
    world: AuditWorld, *more: Job, sinks: Sequence[SinkSettings] = ()
) -> AsyncIterator[Any]:
    """AuditorCommands on the bus; gives a function that sends a command as an operator does."""
    settings = world.settings(sinks=sinks)
    bus = await Bus.connect(settings.bus, "audit", "audit-1")
    database = await Database.connect(settings.database, "audit", "audit")
    client = await Bus.connect(world.platform.bus("operator"), "operator", "estctl", signs=False)
    stop = asyncio.Event()
    key = checkpoint_key.load_key(settings.checkpoint)
    commands = AuditorCommands(bus, database, settings, SystemClock(), key)
    jobs = [commands.run, *more]
    task = asyncio.ensure_future(run_jobs(jobs, stop=stop, stop_timeout_s=5))

    async def ask(data: bytes, verb: str = "audit-search") -> CommandAnswered:
        topic = command_topic("audit", verb)
        for _ in range(20):
            try:
                answer = await client.request(topic, data, answered_by=("audit",))
                return decode(CommandAnswered, answer)
            except BusUnavailable:  # not subscribed yet
                await asyncio.sleep(0.1)
        raise AssertionError("no answer")

    try:
        yield ask
    finally:
        stop.set()
        await task
        await client.close()
        await bus.close()
        await database.close()
