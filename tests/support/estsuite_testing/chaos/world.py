"""A suite of two of each service on a NATS cluster, behind proxies, with a supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml
from typing_extensions import override

from estcore.errors import ConfigurationError
from estdev.layout import Layout, Ports, nats_users
from estdev.local import LocalSuite, Running, admin_get
from estdev.ports import free_port
from estsuite_testing.chaos.fault_proxy import FaultProxy
from estsuite_testing.chaos.nats_cluster import NATSCluster
from estsuite_testing.chaos.receivers import Receiver, make_receivers
from estsuite_testing.e2e_stack import Stack
from estsuite_testing.quick_postgres import QuickPostgres
from estsuite_testing.suite_template import ForkedSuite

ROLES = {"ca-signer": "ca_signer", "audit": "audit", "renewal": "renewal"}
FRONT_ENDS = ("est-frontend", "est-frontend-2")
INSTANCES = {
    "ca-signer": ("ca-signer", "ca-signer-2"),
    "audit": ("audit", "audit-2"),
    "renewal": ("renewal", "renewal-2"),
    "est-frontend": FRONT_ENDS,
}
_RESTART_S = 1.0
_DISK_MB = 96
_POLICY = {
    "default_label": "services",
    "labels": {
        "services": {
            "issuer": "issuing",
            "profiles": ["service-mtls"],
            "authentication": ["certificate", "secret"],
            "retry_after_s": 1,
        }
    },
    "rules": [
        {
            "name": "load",
            "principal": {"secret": "load"},
            "owner": {"tenant": "test", "service": "load"},
            "labels": ["services"],
            "profiles": ["service-mtls"],
            "names": {"common_names": ["dev-*"]},
        }
    ],
}


class _Suite(ForkedSuite):
    """Forked, except for what needs a library of its own in front."""

    @override
    async def spawn(
        self,
        command: str,
        *arguments: str,
        stdout: IO[bytes] | int,
        stderr: IO[bytes] | int,
        environment: dict[str, str] | None = None,
    ) -> asyncio.subprocess.Process:
        if "LD_PRELOAD" in (environment or {}):
            return await LocalSuite.spawn(
                self, command, *arguments, stdout=stdout, stderr=stderr, environment=environment
            )
        return await super().spawn(
            command, *arguments, stdout=stdout, stderr=stderr, environment=environment
        )


@dataclass
class World:
    """Everything a fault can be done to."""

    suite: LocalSuite
    cluster: NATSCluster
    database: FaultProxy
    folder: Path
    ports: dict[str, int]
    """EST port of each front end."""
    receivers: list[Receiver] = field(default_factory=list)
    """Receivers of audit records, beside the local SIEM."""
    secret: str = ""
    died: list[str] = field(default_factory=list)
    """Processes that ended by themselves."""
    frozen: set[str] = field(default_factory=set)
    expected: set[int] = field(default_factory=set)
    """Process ids that a fault ended."""
    environment: dict[str, dict[str, str]] = field(default_factory=dict)
    """Additions to the environment of an instance, from its next start."""
    over_s: float = 0.0
    """When the newest fault ended of those whose end takes time itself (monotonic)."""
    _stack: Stack | None = None

    @property
    def layout(self) -> Layout:
        return self.suite.layout

    def stack(self) -> Stack:
        """The suite as the helpers of other tests take it; once it has its secret."""
        if self._stack is None:
            ports = list(self.ports.values())
            self._stack = Stack(self.suite, self.folder, self.secret, ports)
        return self._stack

    def instances(self) -> Iterator[tuple[str, str]]:
        """Service and instance of each process."""
        for service, instances in INSTANCES.items():
            for instance in instances:
                yield service, instance

    def is_running(self, instance: str) -> bool:
        """Whether a process is there, and no fault ended or froze it."""
        running = self.suite.services.get(instance)
        return (
            running is not None
            and running.process.returncode is None
            and running.process.pid not in self.expected
            and instance not in self.frozen
        )

    def spool(self) -> Path:
        """The folder of the front ends' spools."""
        return self.layout.folder / "spool"

    def mounted(self) -> list[Path]:
        """Folders whose disks can be filled, where file systems can be mounted."""
        return [self.spool(), *(member.store for member in self.cluster.members)]

    def end(self, instance: str, number: signal.Signals) -> None:
        """End a process by a signal; the supervisor starts it again."""
        running = self.suite.services.get(instance)
        if running is not None and running.process.returncode is None:
            self.expected.add(running.process.pid)
            running.process.send_signal(number)

    def freeze(self, instance: str, *, thaw: bool = False) -> None:
        """Stop a process where it is, or let it go on."""
        running = self.suite.services.get(instance)
        if running is not None and running.process.returncode is None:
            running.process.send_signal(signal.SIGCONT if thaw else signal.SIGSTOP)
        if thaw:
            self.frozen.discard(instance)
        else:
            self.frozen.add(instance)

    async def supervise(self, stop: asyncio.Event) -> None:
        """Start again what has ended, a second later, as a platform would."""
        while not stop.is_set():
            for service, instance in self.instances():
                running = self.suite.services.get(instance)
                if running is None:
                    await self._start(service, instance)
                elif running.process.returncode is not None:
                    self._note_end(running)
                    await asyncio.sleep(_RESTART_S)
                    await self.suite.stop_service(instance)
                    await self._start(service, instance)
            await asyncio.sleep(0.1)

    def _note_end(self, running: Running) -> None:
        process = running.process
        if process.pid not in self.expected:
            self.died.append(f"{running.instance} ended by itself with {process.returncode}")

    async def _start(self, service: str, instance: str) -> None:
        self.layout.ports.est = self.ports.get(instance, self.layout.ports.est)
        await self.suite.start_service(
            service, instance, wait=False, environment=self.environment.get(instance)
        )

    async def ready(self) -> bool:
        """Whether every process says that it is ready."""
        return not await self.unready()

    async def unready(self) -> list[str]:
        """What is not ready, and what it says."""

        async def ask(instance: str) -> str:
            running = self.suite.services.get(instance)
            if running is None:
                return f"{instance}: not started"
            answer = await admin_get(running.admin_port, "/readyz")
            return "" if answer.startswith("ready") else f"{instance}: {answer.strip()}"

        answers = await asyncio.gather(*(ask(instance) for _, instance in self.instances()))
        return [answer for answer in answers if answer]

    async def until_ready(self, within_s: float) -> float:
        """Wait until everything is ready; returns the seconds that took.

        Raises:
            ConfigurationError: not in time.
        """
        started = time.monotonic()
        while missing := await self.unready():
            if time.monotonic() - started > within_s:
                raise ConfigurationError(f"not ready after {within_s:.0f} s: {'; '.join(missing)}")
            await asyncio.sleep(0.2)
        return time.monotonic() - started


async def start_world(folder: Path, seed: int) -> World:
    """Start everything from nothing: three nats-servers, streams of three replicas, two of each."""
    ports = Ports.free()
    ports.choose()
    layout = Layout(folder / "suite", ports)
    layout.postgres = QuickPostgres(layout.folder, ports.postgres)
    cluster = NATSCluster(layout.folder, nats_users())
    layout.nats = cluster
    database = FaultProxy(free_port(), ports.postgres)
    receivers, token = make_receivers(folder, seed)
    layout.overrides = _overrides(database.port)
    layout.more_sinks = [receiver.sink(token) for receiver in receivers]
    layout.config.mkdir(parents=True, mode=0o700)
    (layout.config / "policy.yaml").write_text(yaml.safe_dump(_POLICY))
    suite = _Suite(layout)
    est_ports = {FRONT_ENDS[0]: ports.est, FRONT_ENDS[1]: free_port()}
    world = World(suite, cluster, database, folder, est_ports, receivers)
    await database.start()
    for receiver in receivers:
        await receiver.start()
    if is_root():
        for path in world.mounted():
            mount(path, _DISK_MB)
    try:
        await suite.start()
        for service, instances in INSTANCES.items():
            ports.est = est_ports.get(instances[1], ports.est)
            await suite.start_service(service, instances[1], wait=True)
        config = str(layout.config_file("ca-signer"))
        create = ("secret", "create", "--id", "load", "--config", config)
        world.secret = (await suite.command("ca-signer", *create)).strip()
        for receiver in receivers:
            receiver.secret = world.secret
        await world.until_ready(60)
    except BaseException:  # Cleanup, then raised again: what has started must not outlive the run.
        await stop_world(world)
        raise
    return world


async def stop_world(world: World) -> None:
    """Stop everything; the folder stays."""
    for _, instance in world.instances():
        world.freeze(instance, thaw=True)
    world.cluster.thaw()
    with contextlib.suppress(ConfigurationError):
        await world.suite.stop()
    await world.database.stop()
    for receiver in world.receivers:
        await receiver.stop()
    if is_root():
        for path in world.mounted():
            unmount(path)


def remove(world: World) -> None:
    """Remove what was written: nothing was found that is worth a look."""
    shutil.rmtree(world.layout.postgres.home, ignore_errors=True)
    shutil.rmtree(world.folder, ignore_errors=True)


def _overrides(port: int) -> dict[str, dict[str, Any]]:
    overrides: dict[str, dict[str, Any]] = {
        service: {
            "database": {"url": f"postgresql://{role}@127.0.0.1:{port}/estsuite"},
            "bus": {"replicas": 3},
        }
        for service, role in ROLES.items()
    }
    overrides["ca-signer"] |= {
        "lease_s": 5,
        "sweep_every_s": 1,
        "window_s": 5,
        "window_settle_s": 5,
    }
    overrides["audit"]["checkpoint"] = {"interval_s": 5}
    return overrides


def libfaketime(root: Path, offset: str) -> dict[str, str]:
    """Return the environment of a process whose clock is off, its monotonic clock is not."""
    library = next(root.glob("**/libfaketimeMT.so.1"))
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME": offset,
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }


def is_root() -> bool:
    """Whether file systems can be mounted."""
    return os.geteuid() == 0


def mount(folder: Path, megabytes: int) -> None:
    """Make a folder that is a file system of its own, in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs"]
    subprocess.run(["mount", *options, folder], check=True)


def unmount(folder: Path) -> None:
    """Take a file system away that ``mount`` has put there."""
    subprocess.run(["umount", "--lazy", folder], check=False)


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of JSON objects."""
    return [json.loads(line) for line in path.read_text().splitlines()]
