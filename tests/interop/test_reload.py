"""Every server of docs/onboarding changes its certificate under load, and no client notices.

One agent keeps all certificates; each server has clients of its own that connect and send requests
all the time. The files, commands and programs are those of the pages.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from estsuite_testing.foreign.toolchains import jdk, of_group
from estsuite_testing.reload.databases import NATSClient, PostgreSQLClient
from estsuite_testing.reload.grpc_client import GRPCClient
from estsuite_testing.reload.http import HTTPClient
from estsuite_testing.reload.load import Client, Tally, load, recording_context
from estsuite_testing.reload.world import PREPARE, Running, World, database_user, reload_world

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

ROTATIONS = 3
WITHIN_S = 150


@dataclass(frozen=True)
class Server:
    """A server of a page: its section with the commands, its port there, and its clients."""

    name: str
    page: str
    section: str
    port: str
    client: Client
    ends_idle: bool = False
    """Whether a reload ends idle connections."""


def servers(home: Path) -> list[Server]:
    http = HTTPClient()
    postgresql = PostgreSQLClient(home / "postgresql.password")
    return [
        Server("nginx", "nginx.md", "Run", "9441", http, ends_idle=True),
        Server("haproxy", "haproxy.md", "Run", "9442", http),
        Server("asyncio", "python.md", "asyncio", "9443", http),
        Server("aiohttp", "python.md", "aiohttp", "9444", http),
        Server("uvicorn", "python.md", "uvicorn", "9445", http),
        Server("gunicorn", "python.md", "gunicorn", "9446", http),
        Server("grpcio", "python.md", "grpcio", "9447", GRPCClient()),
        Server("go", "go.md", "Run", "9448", http),
        Server("postgresql", "postgresql.md", "Run", "9449", postgresql),
        Server("nats-server", "nats-server.md", "Run", "9450", NATSClient()),
        Server("node", "node.md", "Run", "9451", http),
        Server("java", "java.md", "Run", "9452", http),
        Server("envoy", "envoy.md", "Run", "9453", http),
    ]


async def test_no_client_notices_three_rotations(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "asyncio")  # a warning for each connection of nats-py
    async with reload_world(tmp_path) as world, AsyncExitStack() as running:
        every = servers(world.home)
        await _prepare(world, every)
        agent = await running.enter_async_context(world.agent())
        async with asyncio.TaskGroup() as group:
            for server in every:
                group.create_task(_start(world, server, running))
        look = world.page("README.md").commands(PREPARE)[3]
        assert "serial=" in await world.run(look)
        tallies = await _use(world, every, agent)
        _check(every, tallies)
        await _until_proven(world, len({server.page for server in every}))


def _check(every: list[Server], tallies: dict[str, Tally]) -> None:
    print("", *(tally.line() for tally in tallies.values()), sep="\n")
    failed = [f"{t.name}: {line}" for t in tallies.values() for line in t.failed[:10]]
    assert not failed, "\n".join(failed)
    for server in every:
        tally = tallies[server.name]
        assert len(tally.fingerprints) > ROTATIONS, tally.line()
        assert server.ends_idle or (tally.ended, tally.repeated) == (0, 0), tally.line()


async def _prepare(world: World, every: list[Server]) -> None:
    """Fetch the programs, write the pages' files, and do what takes longer than a certificate."""
    for package in ("nginx", "haproxy", "socat"):
        await asyncio.to_thread(world.add_debian, package)
    await asyncio.to_thread(world.add_postgresql)
    java, _ = await asyncio.to_thread(jdk)
    world.path += [java, *(of_group(name).parent for name in ("go", "node", "envoy"))]
    for page in sorted({server.page for server in every}):
        world.page(page).write(world.home)
        for script in world.page(page).preparation():
            await world.run(script)
    for server in every:
        for script in world.page(server.page).commands(server.section)[:-1]:
            await world.run(script, **_user(server))


async def _start(world: World, server: Server, running: AsyncExitStack) -> None:
    script = world.page(server.page).commands(server.section)[-1]
    port = world.ports[server.port]
    await running.enter_async_context(world.server(server.name, script, port, **_user(server)))


def _user(server: Server) -> dict[str, Any]:
    return database_user() if server.name == "postgresql" else {}


async def _until_proven(world: World, definitions: int) -> None:
    """Wait until the audit log has every rotation of every slot as proven, and none as stalled."""
    async with asyncio.timeout(30):
        while True:
            records = await world.stack.records()
            assert "rotation.stalled" not in {record["action"] for record in records}
            proven = Counter(
                record["target"]["slot_id"]
                for record in records
                if record["action"] == "rotation.activated"
            )
            if sum(count >= ROTATIONS for count in proven.values()) == definitions:
                return
            await asyncio.sleep(1)


async def _use(world: World, every: list[Server], agent: Running) -> dict[str, Tally]:
    """Load every server until each has presented enough certificates."""
    tallies = {server.name: Tally(server.name) for server in every}
    stop = asyncio.Event()
    root = world.stack.layout.root_file
    async with asyncio.TaskGroup() as group:
        for server in every:
            tally, client = tallies[server.name], server.client
            context = functools.partial(recording_context, root, tally, client.alpn)
            group.create_task(load(client, world.ports[server.port], context, tally, stop))
        try:
            async with asyncio.timeout(WITHIN_S):
                while any(len(tally.fingerprints) <= ROTATIONS for tally in tallies.values()):
                    await asyncio.sleep(0.5)
        except TimeoutError:
            print(agent.end_of_log())
        finally:
            stop.set()
    return tallies
