"""What tests fetch or build once on a machine: downloads with a pinned SHA-256, built programs.

Everything lies in ``~/.cache/estsuite-tests`` (or under ``XDG_CACHE_HOME``) under a name that
changes with its recipe, and appears there in one step, so that several test workers can ask.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_BUILD_S = 1700


def cache_folder() -> Path:
    """Return the cache of the tests, which exists."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "estsuite-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file; other processes wait."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fetched(url: str, sha256: str) -> Path:
    """Return the file at the address, fetched unless it is in the cache.

    Raises:
        RuntimeError: its SHA-256 is another one.
        OSError: it cannot be fetched.
    """
    folder = cache_folder() / "fetched"
    folder.mkdir(exist_ok=True)
    target = folder / f"{sha256[:8]}-{url.rpartition('/')[2]}"
    with locked(folder / f"{sha256[:8]}.lock"):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=folder) as work:
                download(url, sha256, Path(work) / "file").rename(target)
    return target


def download(url: str, sha256: str, target: Path) -> Path:
    """Write the file at the address to ``target`` and return it.

    Raises:
        RuntimeError: its SHA-256 is another one.
        OSError: it cannot be fetched.
    """
    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=60) as answer, target.open("wb") as file:  # noqa: S310 - https, pinned
        while part := answer.read(1 << 20):
            digest.update(part)
            file.write(part)
    if digest.hexdigest() != sha256:
        raise RuntimeError(f"{url}: SHA-256 is {digest.hexdigest()}, not the pinned {sha256}")
    return target


def built(name: str, recipe: Sequence[Path], build: Callable[[Path], None]) -> Path:
    """Return the folder that ``build`` fills, filled anew when a file of the recipe changes.

    Raises:
        RuntimeError: the build failed; with the end of what it printed.
    """
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in recipe)).hexdigest()[:12]
    folder = cache_folder() / "interop"
    folder.mkdir(exist_ok=True)
    target = folder / f"{name}-{digest}"
    with locked(folder / f"{name}.lock"):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=folder) as work:
                place = Path(work) / "built"
                place.mkdir()
                build(place)
                place.rename(target)
    return target


def run_build(command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> None:
    """Run one step of a build.

    Raises:
        RuntimeError: it failed; with the end of what it printed.
    """
    done = subprocess.run(
        command, cwd=cwd, env=dict(env), capture_output=True, text=True, check=False,
        timeout=_BUILD_S,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(
            f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )
