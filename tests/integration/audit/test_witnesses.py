"""The log asks a real witness over TLS: cosignatures in exports, a fork found, outages survived."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from audit import commands
from audit.settings import WitnessSettings as AskedWitness
from est_witness import main as witness_main
from est_witness.settings import ListenSettings, WitnessSettings
from estcore.messages.audit import AuditRecord
from estcore.runtime.log_verification import Choices, verify_log
from estcore.runtime.settings import AdminSettings
from estdev.ports import free_port
from estsuite_testing.audit_stack import ORIGIN, AuditWorld, empty_world
from estsuite_testing.siem import SIEM

pytestmark = pytest.mark.integration
Build = Callable[..., AuditRecord]
NAME = "witness.example/w1"


class Running:
    """A witness that can be stopped and started, and what est-audit needs to ask it."""

    def __init__(self, folder: Path, world: AuditWorld) -> None:
        self._certificates = SIEM(folder)
        key_file = folder / "witness.key"
        made = CliRunner().invoke(
            witness_main.witness, ["keygen", "--out", str(key_file), "--name", NAME]
        )
        self.vkey = made.output.strip()
        self.port = free_port()
        self.settings = WitnessSettings(
            name=NAME,
            key_file=key_file,
            logs=(str(world.vkey),),
            state_folder=folder / "witness",
            listen=ListenSettings(
                port=self.port,
                certificate_file=self._certificates.certificate_file,
                key_file=self._certificates.key_file,
                client_ca_file=self._certificates.ca_file,
            ),
            admin=AdminSettings(port=0),
        )

    @property
    def asked(self) -> AskedWitness:
        certificates = self._certificates
        return AskedWitness(
            url=f"https://127.0.0.1:{self.port}",
            vkey=self.vkey,
            ca_file=certificates.ca_file,
            certificate_file=certificates.certificate_file,
            key_file=certificates.key_file,
            every_s=0.1,
            timeout_s=5,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        stop = asyncio.Event()
        task = asyncio.ensure_future(witness_main.run(self.settings, stop))
        try:
            yield
        finally:
            stop.set()
            await task


@pytest.fixture
def witness(tmp_path: Path, world: AuditWorld) -> Running:
    folder = tmp_path / "other-team"
    folder.mkdir()
    return Running(folder, world)


async def export(world: AuditWorld, witness: Running, out: Path) -> list[bytes]:
    settings = world.settings(witnesses=(witness.asked,))
    await commands.export_log(settings, out, None, sealed=False)
    return out.read_bytes().splitlines()


async def test_checkpoints_are_cosigned_and_exports_prove_it(
    world: AuditWorld, record: Build, witness: Running, tmp_path: Path
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
    world: AuditWorld, record: Build, witness: Running, tmp_path: Path
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
            await again.wait(
                "select count(*) from record where action = 'audit.witness_fault' "
                "and leaf like '%critical%'",
                1,
            )
            assert await again.value("select count(*) from cosignature") == 0


def _other_key() -> object:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from estcore.tlog.cosignature import CosignerKey

    return CosignerKey(ORIGIN, Ed25519PrivateKey.generate().public_key())
