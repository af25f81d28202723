"""The interpreter that ``make`` makes the virtual environment with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "deploy" / "choose_python.py"
USABLE = "import ssl, sqlite3, sys, venv; assert sys.version_info >= (3, 11)"


def chosen(default: str, path: str = os.environ["PATH"]) -> str:
    done = subprocess.run(
        [sys.executable, SCRIPT, default],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_it_is_one_that_can_be_used() -> None:
    subprocess.run([chosen(sys.executable), "-c", USABLE], check=True)


def test_what_does_not_run_is_passed_over(tmp_path: Path) -> None:
    broken = tmp_path / "python3.14"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    found = chosen(sys.executable, f"{tmp_path}:{os.environ['PATH']}")
    assert found != str(broken)
    subprocess.run([found, "-c", USABLE], check=True)


def test_an_interpreter_that_is_too_old_is_passed_over(tmp_path: Path) -> None:
    """It answers as fast as can be, with the version of long ago."""
    old = tmp_path / "python3.13"
    old.write_text("#!/bin/sh\necho 3 8 0.000001\n")
    old.chmod(0o755)
    assert chosen(sys.executable, f"{tmp_path}:{os.environ['PATH']}") != str(old)


def test_a_much_faster_one_is_taken(tmp_path: Path) -> None:
    fast = tmp_path / "python3.13"
    fast.write_text("#!/bin/sh\necho 3 13 0.000001\n")
    fast.chmod(0o755)
    assert chosen(sys.executable, f"{tmp_path}:{os.environ['PATH']}") == str(fast)
