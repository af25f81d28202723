"""Commands that install Python distributions: from uv's cache, and over the network only if needed."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


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
