"""The life of a service process, and its command line: run, migrate, check-config.

Order on the way down: readiness fails first, jobs stop fetching and finish what they hold,
then connections close, then telemetry is flushed. A job that crashes takes the process down;
the platform starts it again.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import random
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

import click
import uvloop

from estcore.clock import monotonic_s
from estcore.errors import ConfigurationError, Unavailable
from estcore.runtime import command_line, logs
from estcore.runtime.command_line import EXIT_FAILED, PATH, Group
from estcore.runtime.console import output_closed
from estcore.runtime.logs import fields
from estcore.runtime.process import lock_memory, return_large_blocks
from estcore.runtime.settings import ServiceSettings, load_settings
from estcore.runtime.terminal import write_line

log = logging.getLogger(__name__)

_AGAIN_S = 1.0
_MOMENT = random.random()  # noqa: S311 - spreading, not secrecy
"""The part of a second at which this process wakes."""

S = TypeVar("S", bound=ServiceSettings)
Job = Callable[[asyncio.Event], Awaitable[None]]
Action = TypeVar("Action", bound=Callable[..., Awaitable[None]])


async def run_jobs(jobs: Sequence[Job], *, stop: asyncio.Event, stop_timeout_s: float) -> None:
    """Run jobs until ``stop`` is set; each then finishes what it holds and returns.

    The first crash cancels the rest and surfaces. After ``stop_timeout_s`` what still runs is
    cancelled: everything it held is redelivered.
    """
    # What exists by now lives as long as the process: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_job(job, stop)) for job in jobs]
        await stop.wait()
        begun = monotonic_s()
        _, late = await asyncio.wait(tasks, timeout=stop_timeout_s)
        took = round(monotonic_s() - begun, 1)
        log.info("jobs finished what they held", extra=fields(seconds=took, cut_off=len(late)))
        for task in late:
            log.warning("job did not stop in time", extra=fields(job=task.get_name()))
            task.cancel()


async def _job(job: Job, stop: asyncio.Event) -> None:
    await job(stop)


def wake_at(seconds: float) -> float:
    """Return the time of the loop's clock in about ``seconds``.

    Where it is a second or more, all these times of a process are whole seconds apart: jobs that
    look now and then wake it together, since a wake-up costs more than what is done in it. Each
    process has a moment of its own, or all of a machine would ask PostgreSQL at once.
    """
    until = asyncio.get_running_loop().time() + seconds
    return round(until - _MOMENT) + _MOMENT if seconds >= 1 else until


async def sleep_or_stop(stop: asyncio.Event, seconds: float) -> bool:
    """Sleep about ``seconds`` (``wake_at``) or until ``stop``; returns whether to stop."""
    try:
        async with asyncio.timeout_at(wake_at(seconds)):
            await stop.wait()
    except TimeoutError:
        return False
    return True


async def event_or_stop(stop: asyncio.Event, event: asyncio.Event, seconds: float) -> bool:
    """Wait for ``event``, ``seconds`` at most, or until ``stop``; returns whether to stop."""
    waits = [asyncio.ensure_future(one.wait()) for one in (stop, event)]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    return stop.is_set()


async def done_or_stop(stop: asyncio.Event, step: Callable[[], Awaitable[None]], name: str) -> bool:
    """Do a step of the start until bus and database allow it; False when the process stops before.

    A process that ended instead would be started again, later each time, by its platform.
    """
    while not stop.is_set():
        try:
            await step()
        except Unavailable as exc:
            log.warning("start deferred", extra=fields(step=name, code=exc.code, reason=exc.reason))
            await sleep_or_stop(stop, _AGAIN_S)
        else:
            return True
    return False


def stop_on_signals() -> asyncio.Event:
    """Return an event set by SIGTERM and SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end(number: signal.Signals) -> None:
        if not stop.is_set():
            log.info("service stops", extra=fields(signal=number.name))
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number)
    return stop


class ServiceCommand(Generic[S]):
    """The command line of one service.

    ``about`` is the first line of its help, ``distribution`` the package it is installed by.
    """

    def __init__(  # noqa: PLR0913 - one word per part of the command
        self,
        name: str,
        *,
        about: str,
        distribution: str,
        prefix: str,
        settings: type[S],
        run: Callable[[S], Awaitable[None]],
        migrate: Callable[[S], Awaitable[None]],
        check: Callable[[S], None] | None = None,
    ) -> None:
        self.name, self.prefix, self.settings = name, prefix, settings
        self._check = check
        self.group = Group(name, distribution=distribution, help=about)
        self.config_option = click.option(
            "--config", type=PATH, help=f"YAML file with the settings; or {prefix}_CONFIG."
        )

        @self.group.command("run", help="Serve until SIGTERM.")
        @self.config_option
        def _run(config: Path | None) -> int:
            from estcore.runtime.admin import note_build  # not for offline commands

            note_build(name, distribution)

            async def serve(settings: S) -> None:
                log.info("service starts", extra=fields(version=metadata.version(distribution)))
                await run(settings)
                log.info("service stopped")

            return self.execute(config, serve, check=True)

        @self.group.command("migrate", help="Migrate the database schema and the streams.")
        @self.config_option
        def _migrate(config: Path | None) -> int:
            # A migration job holds neither the CA key nor any other secret of ``run``.
            return self.execute(config, migrate)

        @self.group.command("check-config", help="Check the settings and every file they name.")
        @self.config_option
        def _check_config(config: Path | None) -> int:
            return self.execute(config, self._report, check=True)

    def verb(
        self, name: str, text: str, *, under: click.Group | None = None
    ) -> Callable[[Action], Action]:
        """Decorate the action of a further verb: it gets the settings and the options."""

        def register(action: Action) -> Action:
            @functools.wraps(action)
            def callback(config: Path | None, **values: Any) -> int:
                return self.execute(config, lambda settings: action(settings, **values))

            (under or self.group).command(name, help=text)(self.config_option(callback))
            return action

        return register

    def verbs(self, name: str, text: str) -> Group:
        """Add a group of verbs."""
        group = Group(name, help=text)
        self.group.add_command(group)
        return group

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Carry out the command line; returns the exit code."""
        return command_line.run(self.group, self.name, arguments)

    def execute(
        self, config: Path | None, action: Callable[[S], Awaitable[None]], *, check: bool = False
    ) -> int:
        """Load the settings and carry out an action with them; returns the exit code.

        Raises:
            ConfigurationError: the settings, or with ``check`` a file they name, cannot be used.
            ESTSuiteError: as the action raises.
        """
        settings = load_settings(self.settings, self.prefix, config)
        logs.configure(self.name, settings.instance, settings.telemetry.log_level)
        _warn_of_plaintext(settings)
        if check:
            return_large_blocks()
            _lock_memory()
            from estcore.runtime.bus import senders_of  # NATS, not for offline commands

            senders_of(settings.bus)
            if self._check is not None:
                self._check(settings)

        async def carry_out() -> None:
            asyncio.get_running_loop().set_exception_handler(not_retrieved)
            await action(settings)

        try:
            uvloop.run(carry_out())
        except ExceptionGroup as group:
            return self._crashed(group)
        return 0

    async def _report(self, _: S) -> None:
        write_line(f"{self.name}: configuration is good")

    def _crashed(self, group: BaseExceptionGroup[BaseException]) -> int:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        if isinstance(first, BrokenPipeError) and output_closed():
            raise first
        if isinstance(first, ConfigurationError):
            raise first
        log.error("service stops after a crash", exc_info=first)
        return EXIT_FAILED


def not_retrieved(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report what no task awaits; not a name that could not be resolved in time.

    Who connects gives up after its deadline, and reports that; the look-up goes on without it and
    fails later, once for each attempt while no server answers for names.
    """
    if isinstance(context.get("exception"), socket.gaierror):
        log.debug("a look-up failed after its deadline")
    else:
        loop.default_exception_handler(context)


def _lock_memory() -> None:
    if not lock_memory():
        log.info(
            "memory is not locked and may be swapped",
            extra=fields(remedy="no swap, or RLIMIT_MEMLOCK unlimited (LimitMEMLOCK=infinity)"),
        )


def _warn_of_plaintext(settings: ServiceSettings) -> None:
    for name, part in settings:
        servers = getattr(part, "plaintext", None)
        if servers:
            log.warning(
                "connection without TLS to another host is allowed",
                extra=fields(setting=f"{name}.allow_plaintext", servers=", ".join(servers)),
            )


def executable(command: str) -> str:
    """Return the path of a command installed beside this Python."""
    beside = Path(sys.executable).parent / command
    if not beside.exists():
        raise ConfigurationError(f"{command} is not installed beside {sys.executable}")
    return str(beside)
