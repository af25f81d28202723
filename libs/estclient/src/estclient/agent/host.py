"""The agent of a host: one runner for each definition, all in one process.

Every ``reload_every_s`` the definitions are looked at: a new one starts, a changed one is started
again, one that is gone stops. Their state goes to the status file, the metrics, the health port and
the service manager, which is notified when every definition has had a credential that its service
can read, or after ``ready_timeout_s``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from estclient.agent import metrics
from estclient.agent.definition_folder import Definition, Definitions
from estclient.agent.event_listener import EventListener
from estclient.agent.host_settings import HostSettings
from estclient.agent.process_lock import locked
from estclient.agent.runner import Outcome, Runner
from estclient.agent.service_manager import ServiceManager
from estclient.agent.status_file import LOCK, write_status
from estcore.clock import Clock, SystemClock, monotonic_s
from estcore.errors import in_words
from estcore.runtime.admin import AdminServer
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop
from estcore.runtime.settings import AdminSettings

log = logging.getLogger(__name__)

_TICK_S = 1.0
_WRITE_EVERY_S = 600.0
EXIT_CODES: dict[str, int] = {"done": 0, "failed": 1, "invalid": 2, "attention": 3, "pending": 4}
"""Exit codes of ``--once``, and which one counts where definitions differ: ``WORST`` first."""
WORST = ("attention", "invalid", "failed", "pending", "done")


class Host:
    """All certificates of one host."""

    def __init__(
        self,
        settings: HostSettings,
        definitions: Definitions,
        *,
        clock: Clock | None = None,
        manager: ServiceManager | None = None,
    ) -> None:
        self._settings = settings
        self._definitions = definitions
        self._clock = clock or SystemClock()
        self._manager = manager or ServiceManager()
        self._runners: dict[str, Runner] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._listeners: dict[str, tuple[EventListener, asyncio.Event]] = {}
        self._removals: dict[str, Callable[[], None]] = {}
        self._reported: dict[str, str] = {}
        self._status = ""
        self._written_at = float("-inf")
        self._ready = False
        self.reload = asyncio.Event()
        """Set to look at the definitions at once."""
        self.port: int | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Keep every definition until ``stop``.

        Raises:
            ConfigurationError: another process has the state folder, or the port is taken.
        """
        with locked(self._settings.state_folder / LOCK):
            admin = await self._start_admin()
            try:
                async with asyncio.TaskGroup() as group:
                    await self._supervise(group, stop)
            finally:
                self._report(force=True)
                for name in self._runners:
                    metrics.forget(name)
                if admin is not None:
                    await admin.stop()

    async def once(self, timeout_s: float) -> int:
        """Advance every definition until it is done or only others can help; see ``EXIT_CODES``.

        Raises:
            ConfigurationError: another process has the state folder.
        """
        with locked(self._settings.state_folder / LOCK):
            self._read()
            self._runners = {
                name: Runner(definition, self._clock)
                for name, definition in self._definitions.good.items()
            }
            outcomes: list[str] = ["invalid" for _ in self._definitions.problems]
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(r.once(timeout_s)) for r in self._runners.values()]
            outcomes += [_outcome(task) for task in tasks]
            self._report(force=True)
            for name in self._runners:
                metrics.forget(name)
        return next((EXIT_CODES[name] for name in WORST if name in outcomes), 0)

    @property
    def missing(self) -> list[str]:
        """Names of definitions whose service has no valid credential."""
        return [n for n, r in self._runners.items() if not r.agent.is_usable()]

    async def _supervise(self, group: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        started = read_at = monotonic_s()
        self._change(group)
        tick_s = (
            min(_TICK_S, self._settings.reload_every_s, self._manager.watchdog_s or _TICK_S) / 2
        )
        while not await sleep_or_stop(stop, tick_s):
            now = monotonic_s()
            if now - read_at >= self._settings.reload_every_s or self.reload.is_set():
                self.reload.clear()
                read_at = now
                self._change(group)
            late = now - started >= self._settings.ready_timeout_s
            if not self._ready and (late or not self.missing):
                self._become_ready()
            self._manager.alive()
            self._report()
        self._manager.stopping()
        await self._stop_all()

    def _become_ready(self) -> None:
        self._ready = True
        missing = self.missing
        if missing:
            log.warning("ready without every credential", extra=fields(missing=missing))
        self._manager.ready()

    def _read(self) -> None:
        """Read the definitions; each problem is logged once."""
        self._definitions.read()
        problems = {n: f"{e.reason} [{e.code}]" for n, e in self._definitions.problems.items()}
        for name, text in problems.items():
            if self._reported.get(name) != text:
                log.error("definition cannot be used", extra=fields(definition=name, error=text))
        self._reported = problems
        metrics.DEFINITIONS.labels("good").set(len(self._definitions.good))
        metrics.DEFINITIONS.labels("invalid").set(len(problems))

    def _change(self, group: asyncio.TaskGroup) -> None:
        """Start, stop and start again what the definitions say."""
        self._read()
        good = self._definitions.good
        for name, runner in list(self._runners.items()):
            task = self._tasks[name]
            if good.get(name) == runner.definition and not task.done():
                continue
            if task.done():
                self._forget(name)
            elif not runner.stop.is_set():
                runner.stop.set()
                self._end_later(task)
        for name, definition in good.items():
            if name not in self._runners:
                self._start(group, definition)

    def _end_later(self, task: asyncio.Task[None]) -> None:
        """Cancel a task that does not stop in time; the next look starts the new definition."""
        loop = asyncio.get_running_loop()
        deadline = loop.call_later(self._settings.stop_timeout_s, task.cancel)
        task.add_done_callback(lambda _: deadline.cancel())
        task.add_done_callback(lambda _: self.reload.set())

    def _start(self, group: asyncio.TaskGroup, definition: Definition) -> None:
        runner = Runner(definition, self._clock)
        name = definition.name
        self._runners[name] = runner
        self._tasks[name] = group.create_task(runner.run(), name=f"definition {name}")
        self._attach(group, runner)
        log.info("definition started", extra=fields(definition=name))

    def _attach(self, group: asyncio.TaskGroup, runner: Runner) -> None:
        """Let the runner receive rotation events by the connection of its bus."""
        settings = runner.definition.settings
        if settings.bus is None:
            return
        key = settings.bus.model_dump_json()
        if key not in self._listeners:
            listener = EventListener(
                settings.bus, self._settings.name, settings.retry_s, settings.longest_retry_s
            )
            ended = asyncio.Event()
            self._listeners[key] = listener, ended
            group.create_task(listener.run(ended), name="rotation events")
        listener, _ = self._listeners[key]
        self._removals[runner.definition.name] = listener.add(settings, runner.agent.receive)

    def _forget(self, name: str) -> None:
        del self._runners[name], self._tasks[name]
        remove = self._removals.pop(name, None)
        if remove is not None:
            remove()
        for key, (listener, ended) in list(self._listeners.items()):
            if listener.is_idle:
                ended.set()
                del self._listeners[key]
        metrics.forget(name)
        log.info("definition stopped", extra=fields(definition=name))

    async def _stop_all(self) -> None:
        for runner in self._runners.values():
            runner.stop.set()
        for _, ended in self._listeners.values():
            ended.set()
        if self._tasks:
            _, late = await asyncio.wait(
                self._tasks.values(), timeout=self._settings.stop_timeout_s
            )
            for task in late:
                task.cancel()

    async def _start_admin(self) -> AdminServer | None:
        if self._settings.admin is None:
            return None
        checks = {
            "definitions": lambda: not self._definitions.problems,
            "credentials": lambda: not self.missing,
        }
        settings = AdminSettings(host=self._settings.admin.host, port=self._settings.admin.port)
        admin = AdminServer(settings, checks)
        self.port = await admin.start()
        return admin

    def report(self) -> dict[str, Any]:
        """Return the status of everything, as it is written to the status file."""
        now = self._clock.now()
        return {
            "name": self._settings.name,
            "time": now.isoformat(timespec="seconds"),
            "ready": self._ready,
            "definitions": {n: r.agent.report() for n, r in self._runners.items()},
            "problems": {
                name: {"code": exc.code, "reason": exc.reason}
                for name, exc in self._definitions.problems.items()
            },
        }

    def _report(self, *, force: bool = False) -> None:
        for name, runner in self._runners.items():
            runner.counted = metrics.observe(name, runner.agent.progress, runner.counted)
        self._manager.status(self._summary())
        report = self.report()
        text = str(report | {"time": ""})
        if not force and text == self._status and monotonic_s() - self._written_at < _WRITE_EVERY_S:
            return
        self._status, self._written_at = text, monotonic_s()
        try:
            write_status(self._settings.state_folder, report)
        except OSError as exc:
            log.warning("status not written", extra=fields(error=in_words(exc)))

    def _summary(self) -> str:
        states = [r.agent.progress.state for r in self._runners.values()]
        counts: dict[str, int] = {state: states.count(state) for state in sorted(set(states))}
        if self._definitions.problems:
            counts["invalid"] = len(self._definitions.problems)
        return ", ".join(f"{n} {state}" for state, n in counts.items()) or "no definitions"


def _outcome(task: asyncio.Task[Outcome]) -> str:
    with contextlib.suppress(asyncio.CancelledError):
        return task.result()
    return "failed"
