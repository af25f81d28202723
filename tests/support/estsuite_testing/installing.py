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
    for offline in ({"UV_OFFLINE": "1"}, {}):
        done = subprocess.run(
            words,
            cwd=cwd,
            env={**environment, **offline},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            break
    return done
