"""The log asks a real witness over TLS: cosignatures in exports, a fork found, outages survived."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from audit import commands
from estcore.messages.audit import AuditRecord
from estcore.runtime.log_verification import Choices, verify_log
from estsuite_testing.audit_stack import ORIGIN, AuditWorld, empty_world
from estsuite_testing.witness_stack import NAME, RunningWitness

pytestmark = pytest.mark.integration
Build = Callable[..., AuditRecord]


@pytest.fixture
def witness(tmp_path: Path, world: AuditWorld) -> RunningWitness:
    folder = tmp_path / "other-team"
    folder.mkdir()
    return RunningWitness(folder, world)


async def export(world: AuditWorld, witness: RunningWitness, out: Path) -> list[bytes]:
    settings = world.settings(witnesses=(witness.asked,))
    await commands.export_log(settings, out, None, sealed=False)
    return out.read_bytes().splitlines()


async def test_checkpoints_are_cosigned_and_exports_prove_it(
    world: AuditWorld, record: Build, witness: RunningWitness, tmp_path: Path
) -> None:
    choices = Choices(vkey=str(world.vkey), witness=(witness.vkey,))
    async with world.service(witnesses=(witness.asked,)), world.publisher() as publisher:
        await publisher.send(*(record(n) for n in range(7)))
        # The log works while its witness is not there yet.
        await world.wait("select count(*) from record where action = 'audit.witness_fault'", 1)
        async with witness.running():
            await world.wait("select count(*) > 0 from cosignature", True)
            await publisher.send(*(record(n) for n in range(7, 30)))
            await world.wait("select max(size) >= 30 from cosignature", True)
        async with witness.running():  # it remembers, and goes on
            await publisher.send(*(record(n) for n in range(30, 50)))
            await world.wait("select max(size) >= 50 from cosignature", True)
            lines = await export(world, witness, tmp_path / "log.jsonl")
    report = verify_log(lines, choices)
    assert report.ok, report.findings
    (cosigned,) = report.witnesses
    assert cosigned.witness == NAME
    assert cosigned.size >= 50

    unwitnessed = Choices(vkey=str(world.vkey), witness=(str(_other_key()),))
    assert [f.code for f in verify_log(lines, unwitnessed).findings] == ["witness.missing"]
    forged = [line.replace(NAME.encode() + b" ", NAME.encode() + b" A", 1) for line in lines]
    assert not verify_log(forged, choices).ok


@pytest.mark.logs_errors("witness does not cosign", "the log contradicts what was seen of it")
async def test_a_log_whose_history_was_changed_gets_no_cosignature(
    world: AuditWorld, record: Build, witness: RunningWitness, tmp_path: Path
) -> None:
    async with witness.running():
        async with world.service(witnesses=(witness.asked,)), world.publisher() as publisher:
            await publisher.send(*(record(n) for n in range(10)))
            await world.wait("select max(size) >= 10 from cosignature", True)
        # The same log, by its own key, with another history.
        (tmp_path / "again").mkdir()
        again = await empty_world(world.platform, tmp_path / "again")
        again.key_file, again.vkey = world.key_file, world.vkey
        async with again.service(witnesses=(witness.asked,)), again.publisher() as publisher:
            await publisher.send(*(record(n) for n in range(100, 120)))
            await again.wait("select count(*) from record where action = 'audit.witness_fault'", 1)
            (fault,) = await again.leaves("action = 'audit.witness_fault'")
            assert fault["record"]["severity"] == "critical"
            assert await again.value("select count(*) from cosignature") == 0


def _other_key() -> object:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from estcore.tlog.cosignature import CosignerKey

    return CosignerKey(ORIGIN, Ed25519PrivateKey.generate().public_key())
