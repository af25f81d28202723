"""Commands that install Python distributions: from uv's cache, and over the network only if needed.

Tests that install one distribution after another use one environment: each ``uv sync`` makes it
exactly what the next one names, and compiled modules of unchanged dependencies stay.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Installation:
    """A virtual environment that ``uv sync`` fills, and where its compiled modules are kept."""

    folder: Path

    @property
    def home(self) -> Path:
        """The environment."""
        return self.folder / "venv"

    def environment(self) -> dict[str, str]:
        """Return the variables with which ``uv sync`` makes this environment."""
        inherited = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("UV_", "VIRTUAL_ENV")) or key == "UV_CACHE_DIR"
        }
        return inherited | {
            "UV_PROJECT_ENVIRONMENT": str(self.home),
            "UV_PYTHON": getattr(sys, "_base_executable", sys.executable),
            "UV_PYTHON_DOWNLOADS": "never",
        }

    def run(self, command: Sequence[str | Path], cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a command of this environment, with nothing else on its path."""
        variables = {
            "PATH": str(self.home / "bin"),
            "PYTHONPYCACHEPREFIX": str(self.folder / "compiled"),
        }
        return _run([str(word) for word in command], variables, cwd)


def run_installing(
    command: Sequence[str | Path], *, environment: Mapping[str, str], cwd: Path
) -> subprocess.CompletedProcess[str]:
    """Run a command that uses uv; first offline, then, where the cache lacks something, online."""
    words = [str(word) for word in command]
    done = _run(words, {**environment, "UV_OFFLINE": "1"}, cwd)
    return done if done.returncode == 0 else _run(words, environment, cwd)


def _run(
    words: list[str], environment: Mapping[str, str], cwd: Path
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
