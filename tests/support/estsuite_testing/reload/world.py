"""One suite, one agent with a definition for each server, and the servers of docs/onboarding.

Every page is read with paths and ports of this run. What runs are the page's own blocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from estdev.operator import make_operator
from estdev.ports import free_port
from estsuite_testing.debian import SYSTEM, debian_packages, environment
from estsuite_testing.e2e_stack import POLICY, Stack, start_stack, stop_stack
from estsuite_testing.reload.pages import HOME, PAGES, Page

PROFILES = Path(__file__).parents[4] / "libs/estsetup/src/estsetup/examples/profiles.yaml"
LIFETIME_S, REACTION_S = 60, 40
"""The shortest one; renewal information asks for a new certificate 40 s before its end."""
OPERATOR = "CN=boss"
PREPARE = "Prepare"
"""The section of docs/onboarding/README.md: folders, secret, agent, and a look at a server."""
_PORT = re.compile(r"\b94[4-5]\d\b")
_START_S = 60.0


@dataclass(frozen=True)
class Running:
    """A server, or the agent."""

    name: str
    process: asyncio.subprocess.Process
    log: Path

    def end_of_log(self) -> str:
        """Return the last lines that it wrote."""
        return self.log.read_text(errors="replace")[-4000:]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition.

        Raises:
            RuntimeError: it ended, or the condition does not come true in time; with the log.
        """
        end = asyncio.get_running_loop().time() + _START_S
        while not condition():
            if self.process.returncode is not None:
                raise RuntimeError(f"{self.name} ended: {self.end_of_log()}")
            if asyncio.get_running_loop().time() > end:
                raise RuntimeError(f"{self.name} is not ready: {self.end_of_log()}")
            await asyncio.sleep(0.1)


@dataclass
class World:
    """A suite, a folder in place of the pages', ports in place of theirs, and commands."""

    stack: Stack
    home: Path
    commands: Path
    operator: Path
    ports: dict[str, int]
    values: dict[str, str]
    path: list[Path] = field(default_factory=list)

    def page(self, name: str) -> Page:
        """Return a page as of this run."""
        return Page.read(name, self.values)

    def environment(self) -> dict[str, str]:
        """Return the environment of servers and agent: what they run is found first."""
        places = [self.commands, *self.path, Path(sys.executable).parent]
        return os.environ | {
            "PATH": os.pathsep.join([*map(str, places), os.environ["PATH"]]),
            "ESTCTL_CONFIG": str(self.operator),
        }

    def add_debian(self, package: str) -> None:
        """Make the command of a Debian package findable that is named like it.

        Raises:
            RuntimeError: it cannot be had.
        """
        root = debian_packages(package)
        if root != SYSTEM:
            found = shutil.which(package, path=environment(root)["PATH"])
            self._add_command(Path(str(found)), root)

    def add_postgresql(self) -> None:
        """Make Debian's PostgreSQL findable; the wheel's has no TLS.

        Raises:
            RuntimeError: it cannot be had.
        """
        root = _first_package("postgresql-15", "postgresql-17")
        if root != SYSTEM:
            # Where its user can execute it: the cache is below the home of this one.
            root = Path(shutil.copytree(root, self.home / "postgresql-root", symlinks=True))
        binaries = next(root.glob("usr/lib/postgresql/*/bin"))
        for command in ("initdb", "pg_ctl", "postgres"):
            self._add_command(binaries / command, root)

    def _add_command(self, program: Path, root: Path) -> None:
        """Write a command that starts a program with the libraries of its packages."""
        libraries = "" if root == SYSTEM else environment(root).get("LD_LIBRARY_PATH", "")
        setting = f"export LD_LIBRARY_PATH={shlex.quote(libraries)}\n" if libraries else ""
        file = self.commands / program.name
        file.write_text(f'#!/bin/sh\n{setting}exec {shlex.quote(str(program))} "$@"\n')
        file.chmod(0o755)

    async def run(self, script: str, **options: Any) -> str:
        """Run a block to its end; returns its output.

        Raises:
            RuntimeError: a command of it failed; with its output.
        """
        process = await asyncio.create_subprocess_exec(
            *("bash", "-euo", "pipefail", "-c", script),
            cwd=self.home, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT, **{"env": self.environment()} | options,
        )  # fmt: skip
        output, _ = await process.communicate()
        text = output.decode(errors="replace")
        if process.returncode != 0:
            raise RuntimeError(f"{script}\n{text}")
        return text

    @asynccontextmanager
    async def process(self, name: str, script: str, **options: Any) -> AsyncIterator[Running]:
        """Run a block whose last command goes on, until the context ends."""
        log = self.home / "logs" / f"{name}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *("bash", "-euc", script),
                cwd=self.home, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True, **{"env": self.environment()} | options,
            )  # fmt: skip
        try:
            yield Running(name, process, log)
        finally:
            await _end_group(process)

    @asynccontextmanager
    async def server(
        self, name: str, script: str, port: int, **options: Any
    ) -> AsyncIterator[None]:
        """Run a server, from when it listens until the context ends.

        Raises:
            RuntimeError: it ended, or does not listen in time; with its log.
        """
        async with self.process(name, script, **options) as running:
            await running.until(lambda: _listens(port))
            yield

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[Running]:
        """Run the one agent, from when every definition has a certificate.

        Raises:
            RuntimeError: it ended, or a certificate does not come in time; with its log.
        """
        run = self.page("README.md").commands(PREPARE)[2]
        async with self.process("agent", run) as running:
            await running.until(self._all_valid)
            yield running

    def _all_valid(self) -> bool:
        file = self.home / "state" / "status.json"
        report = json.loads(file.read_text()) if file.exists() else {"definitions": {}}
        states = {name: facts["state"] for name, facts in report["definitions"].items()}
        names = {file.stem for file in (self.home / "agent.d").glob("*.yaml")}
        return states == dict.fromkeys(names, "valid")


@asynccontextmanager
async def reload_world(
    folder: Path, *, lifetime_s: int = LIFETIME_S, reaction_s: int = REACTION_S
) -> AsyncIterator[World]:
    """Start the suite, and prepare what docs/onboarding/README.md says.

    A certificate is renewed ``reaction_s`` before its end.
    """
    # Servers that change their user must be able to enter it: not below pytest's own folder.
    home = Path(tempfile.mkdtemp(prefix="estsuite-reload-", dir="/var/tmp"))
    async with AsyncExitStack() as after:
        after.callback(shutil.rmtree, home, ignore_errors=True)
        home.chmod(0o711)
        for name in ("bin", "logs"):
            (home / name).mkdir()
        common = Page.read("README.md", {HOME: str(home)})
        policy = _policy(folder, common)
        profiles = _profiles(folder, lifetime_s, reaction_s)
        stack = await start_stack(folder, policy=policy, profiles=profiles)
        after.push_async_callback(stop_stack, stack)
        numbers = sorted({n for p in PAGES.glob("*.md") for n in _PORT.findall(p.read_text())})
        ports = {number: free_port() for number in numbers}
        values = {
            HOME: str(home),
            "localhost:8443": f"localhost:{stack.layout.ports.est}",
            ".estsuite/ca/root.pem": str(stack.layout.root_file),
            ".venv/bin/": f"{Path(sys.executable).parent}/",
            **{number: str(port) for number, port in ports.items()},
            **_account_values(),
        }
        operator = await make_operator(stack.suite, OPERATOR)
        world = World(stack, home, home / "bin", operator, ports, values)
        folders, secret, *_ = world.page("README.md").commands(PREPARE)
        await world.run(folders)
        await world.run(secret)
        (home / "agent.yaml").write_text(world.page("README.md").yaml()[1])
        yield world


def _first_package(*names: str) -> Path:
    failures = []
    for name in names:
        try:
            return debian_packages(name)
        except RuntimeError as exc:
            failures.append(str(exc))
    raise RuntimeError("; ".join(failures))


def database_user() -> dict[str, Any]:
    """Options of a process that runs as PostgreSQL's user, where this one is root."""
    if os.geteuid() != 0:
        return {}
    account = _account()
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _account() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def _account_values() -> dict[str, str]:
    """What stands for the user ``postgres`` of a page; only root can change a file's owner."""
    if os.geteuid() != 0:
        return {"    owner: postgres\n": "", "runuser -u postgres -- ": "", "-o postgres ": ""}
    name = _account().pw_name
    return {f"{before} postgres": f"{before} {name}" for before in ("owner:", "-u", "-o")}


def _policy(folder: Path, common: Page) -> Path:
    """The tests' policy with the rule of the page."""
    policy = yaml.safe_load(POLICY.read_text())
    policy["rules"] += yaml.safe_load(common.yaml()[0])
    policy["operators"] = [
        {
            "name": "boss", "certificate_issuer": "issuing", "certificate_subject": OPERATOR,
            "roles": ["secrets"],
        }
    ]  # fmt: skip
    file = folder / "policy.yaml"
    file.write_text(yaml.safe_dump(policy))
    return file


def _profiles(folder: Path, lifetime_s: int, reaction_s: int) -> Path:
    profiles = yaml.safe_load(PROFILES.read_text())
    (demo,) = (p for p in profiles["profiles"] if p["name"] == "demo")
    demo |= {
        "lifetime": f"{lifetime_s}s",
        "renewal": {"reaction_time": f"{reaction_s}s", "overlap": "5s"},
    }
    file = folder / "profiles.yaml"
    file.write_text(yaml.safe_dump(profiles))
    return file


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def _end_group(process: asyncio.subprocess.Process) -> None:
    """End a server and every process that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await process.wait()
        os.killpg(process.pid, signal.SIGKILL)  # what is left of the group
    await process.wait()
