"""A TLS server under load through many rotations, agent and renewal killed at random.

The server is the program of docs/onboarding/python.md, the agent that of docs/onboarding/README.md,
with certificates of two minutes. Clients connect anew and keep connections, verify against the
root, and count each failed handshake and request. Agent and renewal are killed (SIGKILL) at random
moments, often while a rotation is under way, and started again after a moment, as a service
manager does.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from estsuite_testing.reload.http import HTTPClient
from estsuite_testing.reload.load import Tally, load, recording_context
from estsuite_testing.reload.world import PREPARE, World, reload_world
from renewalbench.results import Rotations, conditions

_SERVER, _PORT = "asyncio", "9443"
_AWAY_S = (0.2, 5.0)
_PATIENCE = 3
"""Lifetimes that one rotation may take before the run is given up."""


class Agent:
    """``estctl agent``, which a service manager starts again when it ends."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._command = world.page("README.md").commands(PREPARE)[2]
        self._process: asyncio.subprocess.Process | None = None
        self.ended_by_itself = 0
        self.kills = 0

    async def start(self) -> None:
        """Start it."""
        with (self._world.home / "logs" / "agent.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *("bash", "-euc", f"exec {self._command.strip()}"),
                cwd=self._world.home,
                env=self._world.environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Kill it with everything that it started."""
        process = self._process
        assert process is not None
        if process.returncode is not None:
            self.ended_by_itself += 1
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        await process.wait()

    async def kill(self, away_s: float) -> None:
        """Kill it and start it again."""
        await self.end()
        self.kills += 1
        await asyncio.sleep(away_s)
        await self.start()


class RenewalService:
    """est-renewal of the suite, killed and started again."""

    def __init__(self, world: World) -> None:
        self._suite = world.stack.suite
        self.kills = 0

    async def kill(self, away_s: float) -> None:
        """Kill it and start it again."""
        await self._suite.stop_service("renewal", kill=True)
        self.kills += 1
        await asyncio.sleep(away_s)
        await self._suite.start_service("renewal", "renewal", wait=False)


@asynccontextmanager
async def disturbed(
    agent: Agent, renewal: RenewalService, every_s: float, chance: random.Random
) -> AsyncIterator[None]:
    """Kill one, the other or both, again and again; both run when the context ends."""
    stop = asyncio.Event()

    async def disturb() -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(chance.uniform(0.2, 1.8) * every_s):
                    await stop.wait()
                return
            choices: list[list[Agent | RenewalService]] = [[agent], [renewal], [agent, renewal]]
            async with asyncio.TaskGroup() as group:
                for one in chance.choice(choices):
                    group.create_task(one.kill(chance.uniform(*_AWAY_S)))

    async with asyncio.TaskGroup() as group:
        group.create_task(disturb())
        try:
            yield
        finally:
            stop.set()


async def rotate(
    folder: Path,
    rotations: int,
    progress: Callable[[str], object],
    *,
    lifetime_s: int = 120,
    reaction_s: int = 40,
    every_s: float = 20,
    clients: int = 4,
    seed: int = 7,
) -> Rotations:
    """Run until the server has presented that many further certificates.

    Raises:
        RuntimeError: a rotation did not come.
    """
    found, began = conditions(), time.monotonic()
    async with reload_world(folder, lifetime_s=lifetime_s, reaction_s=reaction_s) as world:
        page = world.page("python.md")
        page.write(world.home)
        agent, renewal = Agent(world), RenewalService(world)
        await agent.start()
        tallies = [Tally(f"clients {n}") for n in range(clients)]
        seen: dict[str, None] = {}
        try:
            await _until(lambda: (world.home / "state/python/current/cert.pem").exists(), 60)
            script = page.commands(_SERVER)[-1]
            async with (
                world.server(_SERVER, script, world.ports[_PORT]),
                disturbed(agent, renewal, every_s, random.Random(seed)),
                _loaded(world, tallies),
            ):
                while len(seen) <= rotations:
                    count = len(seen)
                    await _until(functools.partial(_another, tallies, seen), _PATIENCE * lifetime_s)
                    if len(seen) > count:
                        progress(f"certificate {len(seen)} after {time.monotonic() - began:.0f} s")
            await agent.end(signal.SIGTERM)
            problems = await _judge(world)
        except BaseException:
            progress((world.home / "logs" / "agent.log").read_text()[-4000:])
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                await agent.end()
    failures = [failure for tally in tallies for failure in tally.failed]
    for line in [*failures[:20], *problems]:
        progress(line)
    return Rotations(
        **found,
        rotations=len(seen) - 1,
        lifetime_s=lifetime_s,
        handshakes=sum(t.handshakes for t in tallies),
        requests=sum(t.requests for t in tallies),
        failed=len(failures),
        connections_ended=sum(t.ended for t in tallies),
        agent_kills=agent.kills,
        agent_ended=max(0, agent.ended_by_itself - 1),  # the last time by a signal
        renewal_kills=renewal.kills,
        stalled=len(problems),
        minutes=round((time.monotonic() - began) / 60, 1),
    )


@asynccontextmanager
async def _loaded(world: World, tallies: list[Tally]) -> AsyncIterator[None]:
    client, stop = HTTPClient(), asyncio.Event()
    root, port = world.stack.layout.root_file, world.ports[_PORT]
    async with asyncio.TaskGroup() as group:
        for tally in tallies:
            context = functools.partial(recording_context, root, tally, client.alpn)
            group.create_task(load(client, port, context, tally, stop))
        try:
            yield
        finally:
            stop.set()


def _another(tallies: list[Tally], seen: dict[str, None]) -> bool:
    """Note certificates that were presented; returns whether there is one more."""
    count = len(seen)
    for tally in tallies:
        seen.update(dict.fromkeys(tally.fingerprints))
    return len(seen) > count


async def _judge(world: World) -> list[str]:
    """Return what the services recorded that must not have been."""
    await world.stack.until_recorded()
    records = await world.stack.records()
    bad = ("rotation.stalled", "rotation.expired")
    return [f"{r['action']} {r['target']}" for r in records if r["action"] in bad]


async def _until(reached: Callable[[], bool], within_s: float) -> None:
    end = time.monotonic() + within_s
    while not reached():
        if time.monotonic() > end:
            raise RuntimeError(f"nothing came in {within_s} s")
        await asyncio.sleep(0.1)
