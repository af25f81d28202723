"""A suite set up once in a test run; each later suite starts from a copy of its data.

The first start of a suite makes the development CA, roles, schemas, streams and an enrollment
secret: eight commands, each a process. A copy is started as ``estsuite up`` starts on the data of
an earlier run. Only ports, settings files, policy and users of NATS are its own.
"""

from __future__ import annotations

import asyncio
import fcntl
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from typing_extensions import override

from estdev.layout import Layout, Ports
from estdev.local import LocalSuite
from estsuite_testing.forked_commands import ForkedProcess
from estsuite_testing.quick_postgres import QuickPostgres

_COPIED = ("ca", "secrets", "nats", "config")
FAULT = "ESTSUITE_FAULT"
_ENROLLMENT_SECRET = "enrollment-load.secret"
_location: list[Path] = []


def share_template(folder: Path) -> None:
    """Set the folder in which all workers of a test run share one template."""
    _location[:] = [folder]


class ForkedSuite(LocalSuite):
    """A suite whose commands are forked from a process that has imported their modules.

    What is to crash at a fault point, or needs a library loaded before it, is executed.
    """

    @override
    async def spawn(
        self,
        command: str,
        *arguments: str,
        stdout: IO[bytes] | int,
        stderr: IO[bytes] | int,
        environment: dict[str, str] | None = None,
    ) -> asyncio.subprocess.Process:
        if {FAULT, "LD_PRELOAD"} & set(environment or {}):
            return await super().spawn(
                command, *arguments, stdout=stdout, stderr=stderr, environment=environment
            )
        whole = {**self._environment(), **(environment or {})}
        process = await asyncio.to_thread(
            ForkedProcess, command, arguments, whole, stdout=stdout, stderr=stderr
        )
        return cast("asyncio.subprocess.Process", process)


class CopiedSuite(ForkedSuite):
    """A suite whose schemas and streams come with the copied data."""

    @override
    async def _migrate(self, service: str) -> None:
        # Streams have a consumer for each issuer; the template has those of ``issuing``.
        if "issuers" in self.layout.overrides.get(service, {}):
            await super()._migrate(service)


async def copy_template(layout: Layout) -> str:
    """Fill a layout's folder from the template; return the enrollment secret ``load``.

    ``layout.postgres`` becomes a server on the copied data. The template is made first, where
    this is the first suite of the test run.
    """
    folder = _location[0]
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        template = folder / "suite"
        if not (folder / "complete").exists():
            shutil.rmtree(template, ignore_errors=True)
            await _make(template)
            (folder / "complete").touch()
    for name in _COPIED:
        await asyncio.to_thread(_copy, template / name, layout.folder / name)
    layout.postgres = QuickPostgres(
        layout.folder, layout.ports.postgres, cluster=_cluster(template)
    )
    return (template / _ENROLLMENT_SECRET).read_text()


async def _make(folder: Path) -> None:
    ports = Ports.free()
    ports.choose()
    layout = Layout(folder, ports)
    layout.postgres = QuickPostgres(folder, ports.postgres)
    suite = ForkedSuite(layout)
    await suite.start()
    try:
        config = str(layout.config_file("ca-signer"))
        create = ("secret", "create", "--id", "load", "--config", config)
        secret = await suite.command("ca-signer", *create)
        (folder / _ENROLLMENT_SECRET).write_text(secret.strip())
    finally:
        await suite.stop()


def _cluster(template: Path) -> Path:
    return Layout(template, Ports()).postgres.data


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    subprocess.run(["cp", "-a", "--reflink=auto", source, target], check=True, capture_output=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
