"""The command line, settings and migrations."""

from __future__ import annotations

import json
import os
import stat
from asyncio.subprocess import PIPE
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from alembic import command
from alembic.config import Config
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from sqlalchemy import Connection, pool
from sqlalchemy.ext.asyncio import create_async_engine

from audit import main
from audit.settings import Settings
from audit.sink_settings import SyslogSink
from estcore.errors import ConfigurationError
from estcore.messages.audit import AuditRecord
from estcore.runtime.migrations import migrations_url
from estcore.runtime.settings import load_settings
from estcore.tlog.checkpoint import VerifierKey
from estsuite_testing.audit_stack import AuditWorld
from estsuite_testing.forked_commands import ForkedProcess

Build = Callable[..., AuditRecord]
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """The command replaces the log handlers; put them back."""
    import logging

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


def test_the_example_configuration_loads() -> None:
    settings = load_settings(Settings, "EST_AUDIT", ROOT / "services/audit/config.example.yaml", {})
    (sink,) = settings.sinks
    assert isinstance(sink, SyslogSink)
    assert sink.facility == 13


def test_every_setting_is_described_in_the_readme() -> None:
    text = (ROOT / "services/audit/README.md").read_text()
    names = set(Settings.model_fields) - {"bus", "database", "admin", "telemetry"}
    for part in ("append", "checkpoint", "windows"):
        model = Settings.model_fields[part].annotation
        names |= {f"{part}.{name}" for name in model.model_fields}  # type: ignore[union-attr]
    assert [name for name in sorted(names) if f"`{name}" not in text] == []


def test_two_sinks_of_one_name_and_half_a_client_certificate_are_refused() -> None:
    raw = yaml.safe_load((ROOT / "services/audit/config.example.yaml").read_text())
    raw["sinks"].append(raw["sinks"][0])
    with pytest.raises(ValueError, match="same name"):
        Settings(**raw)
    raw["sinks"] = [raw["sinks"][0] | {"key_file": None}]
    with pytest.raises(ValueError, match="go together"):
        Settings(**raw)


def test_keygen_makes_a_private_file_and_prints_the_verifier_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "key.pem"
    assert main.main(["keygen", "--out", str(file), "--origin", "example/log"]) == 0
    assert VerifierKey.parse(capsys.readouterr().out).name == "example/log"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert main.main(["keygen", "--out", str(file)]) == 2
    assert main.main(["keygen", "--out", str(tmp_path / "x"), "--origin", "a b"]) == 2


def test_a_key_that_is_not_ed25519_or_not_private_stops_the_start(world: AuditWorld) -> None:
    world.key_file.chmod(0o644)
    with pytest.raises(ConfigurationError, match="others may read"):
        main.check(world.settings())
    other = generate_private_key(SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    world.key_file.chmod(0o600)
    for content in (other, b"no key"):
        world.key_file.write_bytes(content)
        with pytest.raises(ConfigurationError):
            main.check(world.settings())


def config_file(world: AuditWorld) -> Path:
    path: Path = world.folder / "audit.yaml"
    path.write_text(yaml.safe_dump(world.settings().model_dump(mode="json", exclude_none=True)))
    return path


@pytest.fixture
def est_audit(world: AuditWorld, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs the command in a process of its own; returns exit code and output."""
    config = config_file(world)

    async def run(*arguments: object, offline: bool = False) -> tuple[int, str]:
        more = [] if offline else ["--config", str(config)]
        words = [*map(str, arguments), *more]
        process = ForkedProcess("est-audit", words, os.environ, stdout=PIPE, stderr=2)
        output, _ = await process.communicate()
        return await process.wait(), output.decode()

    return run


@pytest.mark.integration
async def test_export_verify_and_show(
    world: AuditWorld, record: Build, est_audit: Callable[..., Any], tmp_path: Path
) -> None:
    out, part, piped = (tmp_path / f"{name}.jsonl" for name in ("log", "part", "piped"))
    assert (await est_audit("check-config"))[0] == 0
    async with world.service(), world.publisher() as publisher:
        await publisher.send(*(record(n) for n in range(6)))
        await world.wait("select max(size) >= 7 from checkpoint", True)
        code, output = await est_audit("show", "--correlation-id", "call-1")
        assert code == 0
        assert len(output.splitlines()) == 3
        assert "auth.denied.denied failure" in output
        assert (await est_audit("export", "--out", out))[0] == 0
        assert (await est_audit("export", "--out", out))[0] == 2
        code, output = await est_audit("export", "--out", "-")
        assert code == 0
        piped.write_text(output)
        code, _ = await est_audit("export", "--out", part, "--correlation-id", "call-0")
        assert code == 0
        assert (await est_audit("verify"))[0] == 0
        await world.wait("select count(*) from record where action = 'audit.export'", 4)
    for file in (out, part, piped):
        code, output = await est_audit(
            "verify", "--export", file, "--vkey", world.vkey, "--json", offline=True
        )
        assert (code, json.loads(output)["ok"]) == (0, True)
        assert (await est_audit("verify", "--export", file))[0] == 0
    out.write_bytes(out.read_bytes().replace(b"auth.denied", b"auth.passed", 1))
    code, output = await est_audit("verify", "--export", out, "--json", offline=True)
    assert code == 1
    assert json.loads(output)["findings"][0]["code"] == "record.leaf_hash"


@pytest.mark.integration
async def test_cross_verification_names_a_certificate_without_audit(
    world: AuditWorld, est_audit: Callable[..., Any], tmp_path: Path
) -> None:
    row = {
        "issuance_id": "i-1",
        "request_id": "r-1",
        "enrollment_id": "e-1",
        "state": "issued",
        "serial": "01",
        "certificate_sha256": "ab",
        "issued_at": "2026-11-22T12:00:00Z",
        "audited": True,
    }
    ledger, renewal = tmp_path / "ledger.jsonl", tmp_path / "renewal.jsonl"
    ledger.write_text(json.dumps(row) + "\n")
    renewal.write_text("")
    code, output = await est_audit("verify", "--cross", ledger, "--renewal", renewal, "--json")
    assert code == 1
    assert {f["code"] for f in json.loads(output)["findings"]} == {
        "cross.outcome_missing",
        "cross.intent_missing",
        "renewal.missing",
    }
    assert (await est_audit("verify", "--renewal", renewal))[0] == 2


@pytest.mark.integration
async def test_migrations_go_down_and_up_again(world: AuditWorld) -> None:
    settings = world.settings().database

    def move(connection: Connection, direction: Callable[[Config, str], None], to: str) -> None:
        config = Config()
        config.set_main_option("script_location", str(main.MIGRATIONS))
        config.attributes.update(schema="audit", role="audit", connection=connection)
        direction(config, to)

    engine = create_async_engine(migrations_url(settings), poolclass=pool.NullPool)
    tables = (
        "select count(*) from information_schema.tables"
        " where table_schema = 'audit' and table_name <> 'alembic_version'"
    )
    before = await world.value(tables)
    async with engine.begin() as connection:
        await connection.run_sync(move, command.downgrade, "base")
    assert await world.value(tables) == 0
    async with engine.begin() as connection:
        await connection.run_sync(move, command.upgrade, "head")
    await engine.dispose()
    assert await world.value(tables) == before
    await world.migrate()
