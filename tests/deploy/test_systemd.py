"""The systemd unit of the agent: systemd itself reads it, and what it promises is in it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from estsuite_testing.command_folder import command_folder
from estsuite_testing.debian import SYSTEM, debian_packages, environment

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
UNIT = FOLDER / "estctl-agent.service"


@pytest.fixture(scope="module")
def analyze() -> tuple[str, dict[str, str]]:
    """systemd-analyze of the machine, or Debian's, and its environment."""
    found = shutil.which("systemd-analyze")
    if found is not None:
        return found, dict(os.environ)
    root = debian_packages("systemd")
    assert root != SYSTEM
    return str(root / "usr/bin/systemd-analyze"), environment(root)


def installed(folder: Path, *, drop_in: bool) -> Path:
    """The unit as installed: its command is one that exists here."""
    unit = folder / UNIT.name
    command = str(command_folder() / "estctl")
    unit.write_text(UNIT.read_text().replace("/opt/est/bin/estctl", command))
    if drop_in:
        (folder / f"{UNIT.name}.d").mkdir()
        shutil.copy(FOLDER / "root.conf", folder / f"{UNIT.name}.d")
    return unit


@pytest.mark.parametrize("drop_in", [False, True])
def test_systemd_takes_the_unit_without_a_warning(
    tmp_path: Path, analyze: tuple[str, dict[str, str]], drop_in: bool
) -> None:
    program, variables = analyze
    unit = installed(tmp_path, drop_in=drop_in)
    done = subprocess.run(
        [program, "verify", unit],
        env=variables | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    mine = [line for line in done.stderr.splitlines() if str(tmp_path) in line or UNIT.name in line]
    assert (done.returncode, mine) == (0, [])


def test_a_mistake_in_the_unit_would_be_found(
    tmp_path: Path, analyze: tuple[str, dict[str, str]]
) -> None:
    program, variables = analyze
    unit = installed(tmp_path, drop_in=False)
    unit.write_text(unit.read_text().replace("ProtectClock=yes", "ProtectClocks=yes"))
    done = subprocess.run(
        [program, "verify", unit],
        env=variables | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "ProtectClocks" in done.stderr


def test_systemd_counts_the_exposure_as_small(
    tmp_path: Path, analyze: tuple[str, dict[str, str]]
) -> None:
    program, variables = analyze
    unit = installed(tmp_path, drop_in=False)
    done = subprocess.run(
        [program, "security", "--offline=true", unit],
        env=variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    level = re.search(r"exposure level for [^:]+: ([0-9.]+)", done.stdout)
    assert level is not None, done.stderr
    assert float(level[1]) < 3
