"""The life of a service process, and its command line: run, migrate, check-config.

Order on the way down: readiness fails first, jobs stop fetching and finish what they hold,
then connections close, then telemetry is flushed. A job that crashes takes the process down;
the platform starts it again.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import uvloop

from estcore.errors import ConfigurationError, ESTSuiteError
from estcore.runtime import logs
from estcore.runtime.console import output_closed
from estcore.runtime.logs import fields
from estcore.runtime.settings import ServiceSettings, load_settings

log = logging.getLogger(__name__)

S = TypeVar("S", bound=ServiceSettings)
Job = Callable[[asyncio.Event], Awaitable[None]]
EXIT_CONFIGURATION = 2
EXIT_FAILED = 1


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
        _, late = await asyncio.wait(tasks, timeout=stop_timeout_s)
        for task in late:
            log.warning("job did not stop in time", extra=fields(job=task.get_name()))
            task.cancel()


async def _job(job: Job, stop: asyncio.Event) -> None:
    await job(stop)


async def sleep_or_stop(stop: asyncio.Event, seconds: float) -> bool:
    """Sleep ``seconds`` or until ``stop``; returns whether to stop."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return False
    return True


def stop_on_signals() -> asyncio.Event:
    """Return an event set by SIGTERM and SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


class ServiceCommand(Generic[S]):
    """The command line of one service."""

    def __init__(
        self,
        name: str,
        *,
        prefix: str,
        settings: type[S],
        run: Callable[[S], Awaitable[None]],
        migrate: Callable[[S], Awaitable[None]],
        check: Callable[[S], None] | None = None,
    ) -> None:
        self.name, self.prefix, self.settings = name, prefix, settings
        self._run, self._migrate, self._check = run, migrate, check
        self.parser = argparse.ArgumentParser(prog=name)
        self.verbs = self.parser.add_subparsers(dest="verb", required=True)
        self._extra: dict[str, Callable[[S, argparse.Namespace], Awaitable[None]]] = {}
        for verb, text in (
            ("run", "serve until SIGTERM"),
            ("migrate", "bring database schema and streams to this version"),
            ("check-config", "read the configuration and everything it names, then stop"),
        ):
            self._with_config(self.verbs.add_parser(verb, help=text))

    def _with_config(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--config", type=Path, help=f"YAML settings; or {self.prefix}_CONFIG")

    def verb(
        self, name: str, text: str, action: Callable[[S, argparse.Namespace], Awaitable[None]]
    ) -> argparse.ArgumentParser:
        """Add a verb of the service's own; returns its parser for arguments."""
        parser = self.verbs.add_parser(name, help=text)
        self._with_config(parser)
        self._extra[name] = action
        return parser

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Carry out the command line; returns the exit code."""
        parsed = self.parser.parse_args(arguments)
        try:
            settings = load_settings(self.settings, self.prefix, parsed.config)
            logs.configure(self.name, settings.instance, settings.telemetry.log_level)
            if self._check is not None and parsed.verb in {"run", "check-config"}:
                # A migration job holds neither the CA key nor any other secret of ``run``.
                self._check(settings)
            if parsed.verb == "check-config":
                sys.stdout.write(f"{self.name}: configuration is good\n")
                return 0
            uvloop.run(self._action(settings, parsed))
        except ConfigurationError as exc:
            sys.stderr.write(f"{self.name}: {exc.reason} [{exc.code}]\n")
            return EXIT_CONFIGURATION
        except ESTSuiteError as exc:
            sys.stderr.write(f"{self.name}: {exc.reason} [{exc.code}]\n")
            return EXIT_FAILED
        except ExceptionGroup as group:
            return self._crashed(group)
        except KeyboardInterrupt:
            return 130
        return 0

    async def _action(self, settings: S, parsed: argparse.Namespace) -> None:
        if parsed.verb == "run":
            await self._run(settings)
        elif parsed.verb == "migrate":
            await self._migrate(settings)
        else:
            await self._extra[parsed.verb](settings, parsed)

    def _crashed(self, group: BaseExceptionGroup[BaseException]) -> int:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        if isinstance(first, BrokenPipeError) and output_closed():
            raise first
        if isinstance(first, ConfigurationError):
            sys.stderr.write(f"{self.name}: {first.reason} [{first.code}]\n")
            return EXIT_CONFIGURATION
        log.error("service stops after a crash", exc_info=first)
        return EXIT_FAILED


def executable(command: str) -> str:
    """Return the path of a command installed beside this Python."""
    beside = Path(sys.executable).parent / command
    if not beside.exists():
        raise ConfigurationError(f"{command} is not installed beside {sys.executable}")
    return str(beside)
