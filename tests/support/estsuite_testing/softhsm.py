"""A SoftHSM2 with tokens of its own for a test, and workers that behave badly on request."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from ca_signer.ceremony import offline_ca
from ca_signer.settings import IssuerSettings, TokenSettings
from ca_signer.signing.hsm.token import Token, TokenKey, opened
from ca_signer.signing.hsm.worker_process import WORKER
from estcore.clock import SystemClock
from estsuite_testing.command_folder import command_folder
from estsuite_testing.debian import SYSTEM, debian_packages, environment

ALGORITHMS = {"01": "ec-p256", "02": "ec-p384", "03": "rsa-3072", "04": "ed25519"}
LABEL, PIN, SO_PIN = "estsuite", "4711-is-the-pin", "0815-is-the-so-pin"
FAULTY_WORKER = (sys.executable, "-I", str(Path(__file__).with_name("faulty_worker.py")))


@dataclass
class SoftHSM:
    """Token folder, configuration and PIN file below ``folder``."""

    folder: Path
    root: Path = field(default_factory=lambda: debian_packages("softhsm2", "libsofthsm2"))

    def __post_init__(self) -> None:
        self.tokens.mkdir(parents=True)
        self.configuration.write_text(
            f"directories.tokendir = {self.tokens}\nobjectstore.backend = file\n"
            "log.level = ERROR\nslots.removable = false\n"
        )
        self.pin_file.write_text(PIN)
        self.pin_file.chmod(0o600)
        subprocess.run(
            [_tool(self.environment["PATH"]), "--module", self.module,
             "--init-token", "--free", "--label", LABEL, "--pin", PIN, "--so-pin", SO_PIN],
            env=self.environment, check=True, capture_output=True,
        )  # fmt: skip

    @property
    def tokens(self) -> Path:
        return self.folder / "tokens"

    @property
    def configuration(self) -> Path:
        return self.folder / "softhsm2.conf"

    @property
    def pin_file(self) -> Path:
        return self.folder / "pin"

    def csr(self, key_id: str) -> Path:
        """The request for a key's CA certificate."""
        return self.folder / f"{key_id}.csr"

    @property
    def module(self) -> Path:
        found = sorted((self.root / "usr/lib").glob("**/libsofthsm2.so"))
        return found[0]

    @property
    def environment(self) -> dict[str, str]:
        return environment(self.root) | {"SOFTHSM2_CONF": str(self.configuration)}

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let processes that are started from now on find this SoftHSM."""
        monkeypatch.setenv("SOFTHSM2_CONF", str(self.configuration))
        if self.root != SYSTEM:
            monkeypatch.setenv("LD_LIBRARY_PATH", self.environment["LD_LIBRARY_PATH"])

    def settings(self, key_id: str = "01", **changes: Any) -> TokenSettings:
        raw = {"module": self.module, "label": LABEL, "pin_file": self.pin_file, "key_id": key_id}
        return TokenSettings.model_validate(raw | changes)

    def vanish(self) -> None:
        """The token is pulled out."""
        self.tokens.rename(self.folder / "unplugged")

    def come_back(self) -> None:
        (self.folder / "unplugged").rename(self.tokens)


@dataclass
class Faults:
    """What the faulty worker does; read anew before every call into the token."""

    folder: Path

    @property
    def command(self) -> tuple[str, ...]:
        return (*FAULTY_WORKER, str(self.folder))

    def set(self, mode: str) -> None:
        (self.folder / "mode").write_text(mode)

    def logins(self) -> int:
        """How often a PIN reached the token."""
        path = self.folder / "logins"
        return len(path.read_text().splitlines()) if path.exists() else 0


def with_keys(hsm: SoftHSM, *key_ids: str) -> SoftHSM:
    """The same, with a key of every kind and its request, made by our own command line."""
    for key_id in key_ids or ALGORITHMS:
        algorithm = ALGORITHMS[key_id]
        more = ["--key-label", algorithm, "--algorithm", algorithm]
        ca_signer_token(hsm, "generate", "--key-id", key_id, *more)
        subject = ["--subject", f"CN=Token CA {key_id},O=Test"]
        out = ["--out", str(hsm.csr(key_id))]
        ca_signer_token(hsm, "csr", "--key-id", key_id, *subject, *out)
    return hsm


def ca_signer_token(hsm: SoftHSM, verb: str, *more: str) -> subprocess.CompletedProcess[str]:
    """Run ``ca-signer token …``; on this token unless ``more`` names another."""
    named = ["--module", str(hsm.module), "--pin-file", str(hsm.pin_file)]
    name = [] if "--serial" in more or "--label" in more else ["--label", LABEL]
    done = subprocess.run(
        [command_folder() / "ca-signer", "token", verb, *named, *name, *more],
        env=hsm.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise CommandFailed(done.returncode, done.stderr)
    return done


class CommandFailed(Exception):
    """Exit code and what was written to standard error."""


def issuer_settings(hsm: SoftHSM, folder: Path, key_id: str = "01", **token: Any) -> IssuerSettings:
    """A CA whose issuing key is in the token, made as the README says."""
    passphrase, csr, ca = folder / "passphrase", hsm.csr(key_id), folder / "ca"
    if not ca.exists():
        passphrase.write_text("a long enough passphrase")
        passphrase.chmod(0o600)
        offline_ca.init(
            ca, name="Test", passphrase_file=passphrase, clock=SystemClock(), issuing_csr=csr
        )
        assert not (ca / "issuing.key").exists()
    return IssuerSettings(
        issuer_id="issuing",
        certificate_file=ca / "issuing.pem",
        chain_file=ca / "chain.pem",
        token=hsm.settings(key_id, **token),
    )


@contextlib.asynccontextmanager
async def token_key(
    hsm: SoftHSM, folder: Path, *, command: tuple[str, ...] = WORKER, **token: Any
) -> AsyncIterator[TokenKey]:
    """The P-256 key in an open token; keyword arguments change its settings."""
    settings = issuer_settings(hsm, folder, **token)
    assert settings.token is not None
    certificate = x509.load_pem_x509_certificate(settings.certificate_file.read_bytes())
    one = Token(settings.token, command=command)
    key = TokenKey(one, settings.token, certificate.public_key())
    async with opened([one]):
        yield key


async def until_true(condition: Any, *, timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _tool(path: str) -> str:
    tool = shutil.which("softhsm2-util", path=path)
    assert tool is not None
    return tool
