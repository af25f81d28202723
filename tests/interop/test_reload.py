"""Every server of docs/onboarding changes its certificate under load, and no client notices.

One agent keeps all certificates; each server has clients of its own that connect and send requests
all the time. The files, commands and programs are those of the pages.
"""

from __future__ import annotations

import asyncio
import functools
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from estsuite_testing.reload.http import HTTPClient
from estsuite_testing.reload.load import Client, Tally, load, recording_context
from estsuite_testing.reload.world import LIFETIME_S, World, reload_world

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

ROTATIONS = 3
WITHIN_S = 3 * LIFETIME_S


@dataclass(frozen=True)
class Server:
    """A server of a page: its section with the commands, and its clients."""

    name: str
    page: str
    section: str
    port: str
    client: Client
    ends_connections: bool = False
    """Whether a reload ends idle connections."""


SERVERS = [
    Server("nginx", "nginx.md", "Run", "9441", HTTPClient(), ends_connections=True),
    Server("haproxy", "haproxy.md", "Run", "9442", HTTPClient()),
    Server("asyncio", "python.md", "asyncio", "9443", HTTPClient()),
    Server("aiohttp", "python.md", "aiohttp", "9444", HTTPClient()),
    Server("uvicorn", "python.md", "uvicorn", "9445", HTTPClient()),
    Server("gunicorn", "python.md", "gunicorn", "9446", HTTPClient()),
]


async def test_no_client_notices_three_rotations(tmp_path: Path) -> None:
    async with reload_world(tmp_path) as world, AsyncExitStack() as servers:
        tallies = {server.name: Tally(server.name) for server in SERVERS}
        for page in sorted({server.page for server in SERVERS}):
            world.page(page).write(world.home)
        for package in ("nginx", "haproxy", "socat"):
            await asyncio.to_thread(world.add_debian, package, package)
        await servers.enter_async_context(world.agent())
        for server in SERVERS:
            *before, run = world.page(server.page).commands(server.section)
            for script in before:
                await world.run(script)
            await servers.enter_async_context(
                world.server(server.name, run, world.ports[server.port])
            )
        await _use(world, tallies)
        await world.stack.until_recorded()
        actions = [record["action"] for record in await world.stack.records()]

    print(*(tally.line() for tally in tallies.values()), sep="\n")
    failed = [line for tally in tallies.values() for line in (tally.name, *tally.failed[:10])]
    assert not any(tally.failed for tally in tallies.values()), "\n".join(failed)
    for server in SERVERS:
        tally = tallies[server.name]
        assert len(tally.fingerprints) > ROTATIONS, tally.line()
        assert server.ends_connections or (tally.ended, tally.repeated) == (0, 0), tally.line()
    assert "rotation.stalled" not in actions
    print(sorted(set(actions)))


async def _use(world: World, tallies: dict[str, Tally]) -> None:
    """Load every server until it has presented enough certificates."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for server in SERVERS:
            tally = tallies[server.name]
            context = functools.partial(recording_context, world.stack.layout.root_file, tally)
            port = world.ports[server.port]
            group.create_task(load(server.client, port, context, tally, stop))
        try:
            async with asyncio.timeout(WITHIN_S):
                while any(len(tally.fingerprints) <= ROTATIONS for tally in tallies.values()):
                    await asyncio.sleep(0.5)
        except TimeoutError:
            print(world.agent_log()[-5000:])
        finally:
            stop.set()
