"""Commands in processes of their own: the deployment check, and services that read prepared settings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from estdeploy import compose_rules
from estdeploy.services import SERVICES


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_accepts_its_prepared_settings(prepared: Path, name: str) -> None:
    command = Path(sys.executable).parent / SERVICES[name].command
    config = prepared / "config" / f"{name}.yaml"
    done = subprocess.run(
        [command, "check-config", "--config", config],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"]},
    )
    assert done.returncode == 0, done.stderr
    assert "configuration is good" in done.stdout


def test_the_check_of_make_check_passes_and_names_each_step(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, root / "deploy" / "check.py"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/nowhere"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "k8s overlays/prod: " in done.stdout
    assert compose_rules.SKIPPED in done.stdout
