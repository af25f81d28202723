"""Print the interpreter that the virtual environment is made with: the fastest on this machine.

Builds of the same CPython differ by half: those of Debian, python.org and the official images are
optimized with a profile, those that pyenv compiles are not by default. No setting of a build
says it for certain, so a moment of bytecode is timed. An interpreter that is a little faster, or
newer and as fast, is not worth the surprise: the default stays.

Runs with any Python 3 and needs nothing installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

OLDEST = (3, 11)
MINORS = (14, 13, 12, 11)
FOLDERS = ("/usr/local/bin", "/usr/bin", "/opt/homebrew/bin")
WORTH_IT = 0.85
"""Part of the default's time from which on a different interpreter is taken."""
ROUNDS = 3
CONTENDERS = 3
"""How many of the fastest are timed again: other work slows single runs by a third."""
# Calls, attributes, strings, exceptions: what the services do. Modules that a Python may lack.
PROBE = """
import sys, time
import bz2, ctypes, sqlite3, ssl, venv
class A:
    def __init__(self, x): self.x = x
def work(n):
    d = {}
    for i in range(n):
        d[str(i & 1023)] = A(i).x
        parts = "a.b.c".split("."); ".".join(parts)
        try: int(parts[2], 8)
        except ValueError: pass
best = 9.0
for _ in range(4):
    began = time.process_time(); work(15000); best = min(best, time.process_time() - began)
print(*sys.version_info[:2], best)
"""


def timed(interpreter: str) -> float | None:
    """Return the seconds an interpreter takes for the probe; None where it cannot be used."""
    try:
        done = subprocess.run(
            [interpreter, "-I", "-c", PROBE],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        major, minor, seconds = done.stdout.split()
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return float(seconds) if (int(major), int(minor)) >= OLDEST else None


def candidates() -> list[str]:
    """Return the interpreters of this machine, newest first, each once."""
    names = [f"python3.{minor}" for minor in MINORS]
    found = [shutil.which(name) for name in names]
    found += [f"{folder}/{name}" for name in names for folder in FOLDERS]
    return list(dict.fromkeys(p for p in found if p is not None and os.access(p, os.X_OK)))


def choose(default: str) -> str:
    """Return the default, or an interpreter that is faster by more than chance."""
    times = _best_times([default, *candidates()], {})
    fastest = sorted(times, key=lambda path: times[path])[:CONTENDERS]
    for _ in range(ROUNDS - 1):
        times = _best_times([default, *fastest], times)
    if not times:
        return default
    best = min(times, key=lambda path: times[path])
    usual = times.get(default)
    return default if usual is not None and times[best] > usual * WORTH_IT else best


def _best_times(interpreters: list[str], before: dict[str, float]) -> dict[str, float]:
    """Time each interpreter in turn; returns the least seconds of now and before."""
    times = dict(before)
    for path in dict.fromkeys(interpreters):
        seconds = timed(path)
        if seconds is not None:
            times[path] = min(seconds, times.get(path, seconds))
    return times


if __name__ == "__main__":
    sys.stdout.write(choose(sys.argv[1] if len(sys.argv) > 1 else sys.executable) + "\n")
