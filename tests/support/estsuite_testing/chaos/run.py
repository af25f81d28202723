"""One run: start, load, faults, heal, check. ``Outcome`` says what was found."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from estcore.errors import ESTSuiteError
from estsuite_testing.chaos.checker import (
    check_ledger,
    check_operations,
    check_receiver,
    check_siem,
    check_slots,
)
from estsuite_testing.chaos.clients import CACertsWatcher, Fleet
from estsuite_testing.chaos.faults import Nemesis
from estsuite_testing.chaos.history import History
from estsuite_testing.chaos.receivers import Receiver
from estsuite_testing.chaos.world import World, lines, remove, start_world, stop_world
from estsuite_testing.e2e_stack import Stack

CLIENTS = 4
_HEAL_S = 90.0
_RECORDED_S = 150.0
_UNREAD_S = 60.0
_SIEM_S = 60.0
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
    outcome.violations += _logged(world)
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
            group.create_task(_excuse(world, instance, event, end))
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


async def _excuse(world: World, instance: str, event: asyncio.Event, stop: asyncio.Event) -> None:
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
    stack = world.stack()
    try:
        await stack.until_recorded(_RECORDED_S)
    except TimeoutError:
        outcome.violations.append(f"events or records are under way after {_RECORDED_S:.0f} s")
    ledger = await stack.ledger()
    renewal = lines(await stack.export("renewal"))
    outcome.issued = sum(row["state"] == "issued" for row in ledger)
    outcome.violations += check_operations(history.operations, ledger)
    outcome.violations += check_ledger(ledger)
    outcome.violations += check_slots(ledger, renewal)
    gone = _ended(history.events)
    for finding in await stack.findings():
        # What a killed process had not published is lost, and on record.
        of_gone = any(instance in finding.sentence for instance in gone)
        at_end = finding.code == "sequence.gap" and " missing at the end of " in finding.sentence
        if not (at_end and of_gone):
            outcome.violations.append(f"audit verify --cross: {finding}")
    records = await stack.records()
    deadline = time.monotonic() + _SIEM_S
    assert world.suite.siem is not None
    while missing := check_siem(records, world.suite.siem.messages()):
        if time.monotonic() > deadline:
            outcome.violations += missing[:20]
            break
        await asyncio.sleep(1)
    for receiver in world.receivers:
        outcome.violations += await _check_receiver(world, stack, receiver)


async def _check_receiver(world: World, stack: Stack, receiver: Receiver) -> list[str]:
    """Deliver the dead letters of a sink, then look for every record at its receiver."""
    config = str(world.layout.config_file("audit"))
    deliver = ("sinks", "dead-letters", "--sink", receiver.kind, "--deliver", "--config", config)
    deadline = time.monotonic() + _SIEM_S
    while True:
        await world.suite.command("audit", *deliver)
        leaves = [json.loads(leaf) for leaf in await stack.leaves()]
        found = check_receiver(receiver.kind, leaves, list(receiver.taken), receiver.turned_away)
        if not found or time.monotonic() > deadline:
            return [*found, *receiver.faulty]
        await asyncio.sleep(2)


def _ended(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the instances whose last records nothing could send again, as findings name them.

    They were killed; or stopped, and all streams were lost before audit had read them.
    """
    lost_s = [float(e["at_s"]) for e in events if e.get("fault") == "streams_lost"]
    found = []
    for event in events:
        at_s, what = float(event["at_s"]), str(event.get("what"))
        if event.get("fault") == "service_killed":
            found += what.removeprefix("kill -9 ").split(", ")
        elif event.get("fault") == "service_stopped" and any(
            at_s <= loss_s < at_s + _UNREAD_S for loss_s in lost_s
        ):
            found.append(what.removeprefix("SIGTERM "))
    return [f"/{instance}/" for instance in found]


def _logged(world: World) -> list[str]:
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
