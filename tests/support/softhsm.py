"""A SoftHSM2 with tokens of its own for a test, and workers that behave badly on request."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from debian import SYSTEM, debian_packages, environment

from ca_signer.settings import TokenSettings

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
            [shutil.which("softhsm2-util", path=self.environment["PATH"]), "--module", self.module,
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
        self.tokens.rename(self.folder / "away")

    def come_back(self) -> None:
        (self.folder / "away").rename(self.tokens)


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
