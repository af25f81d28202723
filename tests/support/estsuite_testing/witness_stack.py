"""A witness of audit logs in this process, with TLS and keys of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from click.testing import CliRunner

from audit.settings import WitnessSettings as AskedWitness
from est_witness import main as witness_main
from est_witness.settings import ListenSettings, WitnessSettings
from estcore.runtime.settings import AdminSettings
from estdev.ports import free_port
from estsuite_testing.audit_stack import AuditWorld
from estsuite_testing.siem import SIEM

NAME = "witness.example/w1"


class RunningWitness:
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
