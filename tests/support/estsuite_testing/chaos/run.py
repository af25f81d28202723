"""One run: start, load, faults, heal, check. ``Outcome`` says what was found."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from estcore.errors import ESTSuiteError
from estsuite_testing.chaos.clients import CACertsWatcher, Fleet
from estsuite_testing.chaos.faults import Nemesis
from estsuite_testing.chaos.history import History
from estsuite_testing.chaos.losses import find_losses
from estsuite_testing.chaos.world import World, remove, start_world, stop_world

CLIENTS = 4
_HEAL_S = 90.0
_EXCUSED_S = 6.0
_TRACEBACK = re.compile(r"Traceback \(most recent call last\)|\"traceback\"")


@dataclass
class Outcome:
    """What came of a run."""

    seed: int
    folder: Path
    faults: Counter[str] = field(default_factory=Counter)
    operations: int = 0
    issued: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    recovery_s: float = 0.0
    longest_s: float = 0.0
    violations: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What a person reads."""
        done = ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items()))
        answers = ", ".join(f"{name} {count}" for name, count in self.answers.most_common(12))
        return [
            f"seed               {self.seed}",
            f"faults             {self.faults.total()}: {done}",
            f"operations         {self.operations}, certificates {self.issued}",
            f"answers            {answers}",
            f"longest operation  {self.longest_s:.1f} s",
            f"all ready after    {self.recovery_s:.1f} s from the end of the last fault",
            f"violations         {len(self.violations)}",
            *(f"  {violation}" for violation in self.violations),
        ]


async def run_chaos(
    folder: Path, *, seed: int, seconds: float, clients: int = CLIENTS, pause_s: float = 0.5
) -> Outcome:
    """Run for so long; the folder is removed when there are no violations.

    ``pause_s`` is what a client rests between two operations.
    """
    folder.mkdir(parents=True, exist_ok=True)
    history = History(folder)
    outcome = Outcome(seed, folder)
    world = await start_world(folder, seed)
    try:
        fleet = Fleet(
            history=history,
            folder=world.folder,
            root=world.layout.root_file,
            secret=world.secret,
            ports=list(world.ports.values()),
            random=random.Random(seed + 1),
            pause_s=pause_s,
        )
        await _load(world, fleet, outcome, clients=clients, seconds=seconds)
        await _check(world, history, outcome)
    except ESTSuiteError as exc:
        outcome.violations.append(f"not well again: {exc.reason}")
    finally:
        history.write()
        await stop_world(world)
    outcome.violations += logged(world)
    if not outcome.violations:
        remove(world)
    return outcome


async def _load(
    world: World, fleet: Fleet, outcome: Outcome, *, clients: int, seconds: float
) -> None:
    history, root = fleet.history, world.layout.root_file
    stop, end = asyncio.Event(), asyncio.Event()
    excused = {instance: asyncio.Event() for instance in world.ports}
    watchers = [
        CACertsWatcher(history=history, root=root, port=port, excused=excused[instance])
        for instance, port in world.ports.items()
    ]
    nemesis = Nemesis(world=world, history=history, seed=outcome.seed)
    async with asyncio.TaskGroup() as group:
        group.create_task(world.supervise(end))
        for instance, event in excused.items():
            group.create_task(excuse(world, instance, event, end))
        watching = [group.create_task(watcher.run(stop)) for watcher in watchers]
        working = group.create_task(fleet.run(stop, clients))
        tormenting = group.create_task(nemesis.run(stop))
        await asyncio.sleep(seconds)
        stop.set()
        await asyncio.gather(tormenting, *watching)
        history.note("healing")
        try:
            outcome.recovery_s = await world.until_ready(_HEAL_S)
            async with asyncio.timeout(_HEAL_S):
                await working
        except TimeoutError:
            working.cancel()
        finally:
            end.set()
    outcome.faults.update(str(e["fault"]) for e in history.events if e["event"] == "begin")
    outcome.operations = len(history.operations)
    outcome.answers.update(a for o in history.operations for a in o.answers)
    outcome.longest_s = max(
        ((o.ended_s or time.monotonic()) - o.started_s for o in history.operations), default=0.0
    )
    outcome.violations += history.faults + world.died


async def excuse(world: World, instance: str, event: asyncio.Event, stop: asyncio.Event) -> None:
    """Excuse a front end that was ended or frozen, until a moment after it is well."""
    until = 0.0
    while not stop.is_set():
        if not world.is_running(instance):
            until = time.monotonic() + _EXCUSED_S
        if time.monotonic() < until:
            event.set()
        else:
            event.clear()
        await asyncio.sleep(0.05)


async def _check(world: World, history: History, outcome: Outcome) -> None:
    losses = await find_losses(world, history)
    outcome.issued = losses.issued
    outcome.violations += losses.sentences


def logged(world: World) -> list[str]:
    """Tracebacks in the logs of services: no fault excuses one."""
    found = []
    for path in sorted(world.layout.logs.glob("*.log")):
        if path.name in {"postgres.log", "nats.log", "siem.log"}:
            continue
        text = path.read_text(errors="replace")
        count = len(_TRACEBACK.findall(text))
        if count:
            found.append(f"{path.name}: {count} tracebacks")
    return found
