"""One drill after the other in one suite under light load, and a report of them."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from estbench.machine import describe, load_average
from estcore.errors import ESTSuiteError
from estcore.runtime.bus import Bus
from estcore.runtime.settings import BusSettings
from estsuite_testing.chaos.clients import CACertsWatcher, Fleet
from estsuite_testing.chaos.history import History
from estsuite_testing.chaos.losses import Losses, find_losses
from estsuite_testing.chaos.run import excuse, logged
from estsuite_testing.chaos.world import World, remove, start_world, stop_world
from estsuite_testing.drills.catalogue import Drill
from estsuite_testing.drills.observation import Observer
from estsuite_testing.drills.recovery import recover
from estsuite_testing.drills.report import Recovery, Report, Result, page, summary
from estsuite_testing.runbook_pages import Watched

RESULTS, MARKDOWN = "results.json", "report.md"
_CLIENTS = 2
_PAUSE_S = 0.6
_CALM_S = 2.0
_PATIENCE = 3.0
"""So many times the allowed time is waited, to say how long it took."""
_LAST_S = 60.0
_DELIVERED_S = 60.0
_LOOK_S = 0.05
_NEVER = Recovery(ready_s=None, enrolled_s=None, delivered_s=None)


async def run_drills(
    drills: Sequence[Drill],
    out: Path,
    *,
    calm_s: float = _CALM_S,
    delivered_s: float = _DELIVERED_S,
    keep: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Do every drill alone, one after the other; write ``results.json`` and ``report.md``.

    A drill after which the suite does not become well is the last one. With ``keep`` the folder of
    the suite stays, and is named by ``say``, when one failed.
    """
    machine, load = describe(), load_average()
    folder = Path(tempfile.mkdtemp(prefix="drills-"))
    history = History(folder)

    def report_of(course: _Course) -> Report:
        return Report(
            machine=machine,
            load_average=load,
            results=course.results,
            not_done=[drill.name for drill in drills[len(course.results) :]],
            certificates=course.certificates,
        )

    world = await start_world(folder, seed=1)
    try:
        async with _course(world, history, delivered_s) as course:
            for drill in drills:
                result = await course.perform(drill, calm_s)
                say(summary(result))
                write(report_of(course), out)
                if result.recovery.seconds is None:
                    break
    finally:
        history.write()
        await stop_world(world)
    report = report_of(course)
    if report.passed or not keep:
        remove(world)
    else:
        say(f"kept: {folder}")
    return report


def write(report: Report, out: Path) -> None:
    """Write the report as JSON and as Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    (out / RESULTS).write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (out / MARKDOWN).write_text(f"# Drills\n\n{page(report)}", encoding="utf-8")


@asynccontextmanager
async def _course(world: World, history: History, delivered_s: float) -> AsyncIterator[_Course]:
    """A supervisor for as long as drills are done."""
    end = asyncio.Event()
    course = _Course(world, history, delivered_s)
    async with asyncio.TaskGroup() as group:
        group.create_task(world.supervise(end))
        for instance, event in course.excused.items():
            group.create_task(excuse(world, instance, event, end))
        try:
            yield course
        finally:
            end.set()


@asynccontextmanager
async def _watched(world: World, runbook: str) -> AsyncIterator[Watched]:
    """What an operator can see; the lengths of streams only where a runbook may name them."""
    if not runbook:
        yield Watched(world.stack(), None)
        return
    nats = world.layout.nats
    seed = nats.seed_file("migrate")
    settings = BusSettings(url=nats.url, nkey_seed_file=seed)
    bus = await Bus.connect(settings, "migrate", "drills", seed=seed.read_text().strip())
    try:
        yield Watched(world.stack(), bus)
    finally:
        await bus.close()


@dataclass
class _Course:
    """What drills have in common: the suite, its clients, and what is known already."""

    world: World
    history: History
    delivered_s: float
    results: list[Result] = field(default_factory=list)
    certificates: int = 0
    excused: dict[str, asyncio.Event] = field(init=False)
    _known: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.excused = {instance: asyncio.Event() for instance in self.world.ports}
        self._fleet = Fleet(
            history=self.history,
            folder=self.world.folder,
            root=self.world.layout.root_file,
            secret=self.world.secret,
            ports=list(self.world.ports.values()),
            random=random.Random(1),
            pause_s=_PAUSE_S,
        )

    async def perform(self, drill: Drill, calm_s: float) -> Result:
        """Do one drill, and look for losses when the suite is well."""
        async with _watched(self.world, drill.runbook) as watched:
            await watched.begin()
            observer = Observer(self.world, watched, drill.runbook)
            result = await self._perform(drill, observer, calm_s)
        self.results.append(result)
        return result

    async def _perform(self, drill: Drill, observer: Observer, calm_s: float) -> Result:
        world, history = self.world, self.history
        watchers = [
            CACertsWatcher(
                history=history,
                root=world.layout.root_file,
                port=port,
                excused=self.excused[instance],
            )
            for instance, port in world.ports.items()
        ]
        first, faults, died = len(history.operations), len(history.faults), len(world.died)
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for watcher in watchers:
                group.create_task(watcher.run(stop))
            group.create_task(observer.run(stop))
            working = group.create_task(self._fleet.run(stop, _CLIENTS))
            await asyncio.sleep(calm_s)
            fault = _Fault(drill, world, history)
            doing = group.create_task(fault.do())
            over_s = await fault.over(doing)
            give_up_s = drill.within_s * _PATIENCE
            name = f"dev-drill-{len(self.results)}"
            recovery = await recover(world, name, over_s, give_up_s)
            await doing
            stop.set()
            await asyncio.wait([working], timeout=_LAST_S)
            working.cancel()
        wrong = fault.wrong
        done = history.operations[first:]
        answers = Counter(answer for operation in done for answer in operation.answers)
        await observer.finish(answers)
        losses = await self._losses(recovery, wrong)
        ended = [o.ended_s - o.started_s for o in done if o.ended_s is not None]
        cacerts = len(history.faults) - faults
        return Result(
            name=drill.name,
            what=fault.what,
            runbook=drill.runbook,
            lasted_s=round(over_s - fault.begun_s, 2),
            within_s=drill.within_s,
            operations=len(done),
            answers=dict(answers),
            longest_s=round(max(ended, default=0.0), 2),
            cacerts=sum(watcher.asked for watcher in watchers),
            cacerts_failed=cacerts,
            readiness=observer.readiness,
            symptoms=observer.symptoms,
            unseen=observer.unseen,
            recovery=recovery,
            lost_certificates=losses.certificates,
            lost_slots=losses.slots,
            lost_records=losses.records,
            wrong=[*wrong, *world.died[died:], *history.faults[faults:], *self._new(logged(world))],
        )

    async def _losses(self, recovery: Recovery, wrong: list[str]) -> Losses:
        """Search for losses that no earlier drill had."""
        if recovery == _NEVER:
            wrong.append("losses were not looked for: the suite is not well")
            return Losses()
        try:
            losses = await find_losses(self.world, self.history, delivered_s=self.delivered_s)
        except ESTSuiteError as exc:
            wrong.append(f"losses could not be looked for: {exc}")
            return Losses()
        self.certificates = losses.issued
        return Losses(
            losses.issued,
            self._new(losses.certificates),
            self._new(losses.slots),
            self._new(losses.records),
        )

    def _new(self, sentences: Sequence[str]) -> list[str]:
        found = [sentence for sentence in sentences if sentence not in self._known]
        self._known |= set(found)
        return found


class _Fault:
    """The fault of one drill; after its end it may go on to clear up."""

    def __init__(self, drill: Drill, world: World, history: History) -> None:
        self._drill, self._world, self._history = drill, world, history
        self.what = drill.name
        self.wrong: list[str] = []
        self.begun_s = time.monotonic()

    async def do(self) -> None:
        """Do it; returns when everything is cleared up."""
        kind = self._drill.kind
        try:
            async with self._drill.fault(self._world) as text:
                self.what = text
                self._history.note("begin", fault=kind, what=text)
        except (ESTSuiteError, OSError, TimeoutError) as exc:
            self.wrong.append(f"the fault could not be done: {exc}")
        self._history.note("end", fault=kind, what=self.what)

    async def over(self, doing: asyncio.Task[None]) -> float:
        """Wait for its end, which is before that of ``doing`` where clearing up takes time."""
        while not doing.done():
            if self._world.over_s > self.begun_s:
                return self._world.over_s
            await asyncio.wait([doing], timeout=_LOOK_S)
        return time.monotonic()
