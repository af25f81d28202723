"""A whole suite on this machine: start in order, watch, stop in order."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from estcore.errors import ConfigurationError
from estcore.runtime.logs import JSONFormatter
from estcore.runtime.service import executable
from estdev.layout import COMMANDS, WITH_DATABASE, Layout
from estdev.nats import EmbeddedNATS
from estdev.ports import free_port
from estdev.postgres import EmbeddedPostgres
from estdev.siem import LocalSIEM
from estsetup.service_settings import AUDIT_ORIGIN

Progress = Callable[[str], None]
_READY_S = 40
_INHERITED = {"PATH", "HOME", "LANG", "TZ", "TMPDIR"}
_SETTINGS = ("EST_FRONTEND__", "CA_SIGNER__", "EST_RENEWAL__", "EST_AUDIT__")
"""Variables that services read as settings, over those of the file."""


@dataclass
class Running:
    """One service process."""

    service: str
    instance: str
    admin_port: int
    process: asyncio.subprocess.Process
    log: IO[bytes]


class LocalSuite:
    """PostgreSQL, NATS, development CA, four services and a local SIEM in one folder."""

    def __init__(self, layout: Layout, progress: Progress = lambda _: None) -> None:
        self.layout = layout
        self.services: dict[str, Running] = {}
        self._progress = progress
        self.siem: LocalSIEM | None = None
        self._lock: IO[str] | None = None
        self.environment: dict[str, str] = {}

    @property
    def url(self) -> str:
        """Base URL of EST."""
        return f"https://localhost:{self.layout.ports.est}/.well-known/est"

    def pids(self) -> list[int]:
        """Process ids of servers and services."""
        own = [r.process.pid for r in self.services.values() if r.process.returncode is None]
        return [self.layout.postgres.pid, self.layout.nats.pid, *own]

    async def start(self) -> None:
        """Start everything; data of an earlier run are continued.

        Raises:
            ConfigurationError: a port is taken, a server or service does not start; one line
                that names the log.
        """
        layout = self.layout
        layout.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock_folder()
        layout.prepare()
        self._progress("starting PostgreSQL")
        await layout.postgres.start()
        layout.roles = await layout.postgres.provision(WITH_DATABASE)
        self._progress("starting NATS with JetStream")
        await layout.nats.start()
        first = self._make_ca_needed
        if first:
            self._progress("making the development CA")
        await self._make_ca()  # also what an interrupted start has not made
        if first:
            self._progress("migrating schemas and streams")
            for service in WITH_DATABASE:
                layout.write_settings(service, service, 0)
            await self._migrate_all()
            self._progress("starting the local SIEM and the services")
            await self._start_siem()
            await self._start_services()
        else:
            # They were migrated before, and services wait for a schema that is not theirs yet.
            self._progress("starting the local SIEM and the services, migrating schemas")
            await self._start_siem()
            await self._start_services(self._migrate_all())

    async def _migrate_all(self) -> None:
        # The ledger's first: its streams are what the consumers of the others read.
        await self._migrate(WITH_DATABASE[0])
        await asyncio.gather(*(self._migrate(service) for service in WITH_DATABASE[1:]))

    async def _migrate(self, service: str) -> None:
        await self.command(service, "migrate", "--config", str(self.layout.config_file(service)))

    async def _start_services(self, *beside: Coroutine[None, None, None]) -> None:
        starts = (self.start_service(service, service, wait=True) for service in COMMANDS)
        tasks = [asyncio.ensure_future(work) for work in (*starts, *beside)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _lock_folder(self) -> None:
        self._lock = (self.layout.folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise ConfigurationError(
                f"another suite is running in {self.layout.folder}", code="suite.running"
            ) from exc

    @property
    def _make_ca_needed(self) -> bool:
        return not (self.layout.ca / "server" / "server.pem").exists()

    async def _make_ca(self) -> None:
        layout = self.layout
        passphrase = ["--passphrase-file", str(layout.secrets / "ca.passphrase")]
        folder = ["--folder", str(layout.ca)]
        if not layout.root_file.exists():
            await self.run("ca-signer", "ca", "init", "--name", "Clinic Dev", *folder, *passphrase)
        if self._make_ca_needed:
            out = ["--out", str(layout.ca / "server"), "--host", "localhost", "--host", "127.0.0.1"]
            await self.run("ca-signer", "ca", "server-certificate", *folder, *passphrase, *out)
        key = layout.secrets / "audit-checkpoint.pem"
        if not key.exists():
            vkey = await self.run(
                "est-audit", "keygen", "--origin", AUDIT_ORIGIN, "--out", str(key)
            )
            (layout.config / "audit.vkey").write_text(vkey.strip() + "\n")

    async def _start_siem(self) -> None:
        server = self.layout.ca / "server"
        self.siem = LocalSIEM(
            self.layout.ports.siem,
            self.layout.siem_file,
            server / "server.pem",
            server / "server.key",
        )
        await self.siem.start()

    async def command(self, service: str, *arguments: str) -> str:
        """Run a service's command to its end; returns what it printed.

        Raises:
            ConfigurationError: it failed; with its own line.
        """
        return await self.run(COMMANDS[service], *arguments)

    async def run(self, command: str, *arguments: str) -> str:
        """Run one of the suite's commands to its end; returns what it printed.

        Raises:
            ConfigurationError: it failed; with its own line.
        """
        pipe = asyncio.subprocess.PIPE
        process = await self.spawn(command, *arguments, stdout=pipe, stderr=pipe)
        out, err = await process.communicate()
        if process.returncode != 0:
            lines = err.decode(errors="replace").strip().splitlines() or ["no message"]
            raise ConfigurationError(f"{command} {arguments[0]}: {lines[-1]}", code="suite.command")
        return out.decode()

    async def start_service(
        self, service: str, instance: str, *, wait: bool, environment: dict[str, str] | None = None
    ) -> Running:
        """Start one more process of a service under an instance name.

        Raises:
            ConfigurationError: it ended or did not become ready; the message names its log.
        """
        admin_port = free_port()
        config = self.layout.write_settings(service, instance, admin_port)
        log = (self.layout.logs / f"{instance}.log").open("ab")
        process = await self.spawn(
            COMMANDS[service],
            "run",
            "--config",
            str(config),
            stdout=log,
            stderr=log,
            environment=environment,
        )
        running = Running(service, instance, admin_port, process, log)
        self.services[instance] = running
        if wait:
            await self.wait_ready(running)
        return running

    async def spawn(
        self,
        command: str,
        *arguments: str,
        stdout: IO[bytes] | int,
        stderr: IO[bytes] | int,
        environment: dict[str, str] | None = None,
    ) -> asyncio.subprocess.Process:
        """Start one of the suite's commands in a session of its own."""
        return await asyncio.create_subprocess_exec(
            executable(command),
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env={**self._environment(), **(environment or {})},
            start_new_session=True,
        )

    async def wait_ready(self, running: Running) -> None:
        """Wait until a service says it is ready.

        Raises:
            ConfigurationError: it ended, or takes too long.
        """
        log = self.layout.logs / f"{running.instance}.log"
        answer = "no answer"
        for _ in range(_READY_S * 10):
            if running.process.returncode is not None:
                line = last_line(log)
                raise ConfigurationError(f"{running.service} ended: {line} (log: {log})")
            answer = await admin_get(running.admin_port, "/readyz")
            if answer.startswith("ready"):
                return
            await asyncio.sleep(0.1)
        raise ConfigurationError(f"{running.service} is {answer.strip()} (log: {log})")

    async def stop_service(self, instance: str, *, kill: bool = False) -> None:
        """Stop a service process in order, or kill it."""
        running = self.services.pop(instance)
        if running.process.returncode is None:
            running.process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            try:
                async with asyncio.timeout(40):
                    await running.process.wait()
            except TimeoutError:
                running.process.kill()
                await running.process.wait()
        running.log.close()

    async def stop(self) -> None:
        """Stop services, SIEM and servers, in the reverse order of starting."""
        for instance in reversed(list(self.services)):
            await self.stop_service(instance)
        if self.siem is not None:
            await self.siem.stop()
        await self.layout.nats.stop()
        await self.layout.postgres.stop()
        if self._lock is not None:
            self._lock.close()

    async def ended(self) -> tuple[str, Path]:
        """Return the name and the log of the first service or server that ends by itself."""
        layout = self.layout
        waiting = {
            asyncio.ensure_future(r.process.wait()): (r.service, layout.logs / f"{r.instance}.log")
            for r in self.services.values()
        }
        waiting[asyncio.ensure_future(_gone(layout.postgres))] = ("PostgreSQL", layout.postgres.log)
        waiting[asyncio.ensure_future(_gone(layout.nats))] = ("NATS", layout.nats.log)
        done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return waiting[done.pop()]

    def _environment(self) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name in _INHERITED or name.startswith(_SETTINGS)
        }
        return {**inherited, **self.environment}


async def _gone(server: EmbeddedNATS | EmbeddedPostgres) -> int:
    """Wait until a server has ended."""
    while server.running:  # noqa: ASYNC110 - a child process of a thread has no event
        await asyncio.sleep(0.5)
    return 0


def last_line(path: Path) -> str:
    """Return the last line of a log."""
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "nothing in its log"


async def admin_get(port: int, path: str) -> str:
    """Return the body of a GET on an admin port; why not, if there is none."""
    try:
        async with asyncio.timeout(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.closing(writer):
                writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                await writer.drain()
                answer = await reader.read()
    except (OSError, TimeoutError):
        return "not reachable"
    return answer.partition(b"\r\n\r\n")[2].decode()


def log_to(path: Path) -> None:
    """Send this process's own log lines to a file; a person reads the story, not the log."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handler = logging.FileHandler(path)
    handler.setFormatter(JSONFormatter("estctl", "local"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
