"""``estsuite up`` and ``estsuite demo``: whatever ends them, nothing they started goes on."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
ESTSUITE = Path(sys.executable).parent / "estsuite"


def _parents() -> dict[int, int]:
    """Return the parent of each process of this machine."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                status = (folder / "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue  # it has just ended
            found[int(folder.name)] = int(status.rpartition(")")[2].split()[1])
    return found


def _descendants(pid: int) -> set[int]:
    parents, found = _parents(), {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def _command(kind: str, folder: Path) -> list[str]:
    if kind == "demo":
        return ["demo", "--keep", str(folder)]
    ports = [f"--{name}-port=0" for name in ("est", "postgres", "nats", "siem")]
    return ["up", "--folder", str(folder), *ports]


@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", ["demo", "up"])
async def test_a_signal_ends_everything_that_was_started(
    tmp_path: Path, kind: str, ended_by: signal.Signals
) -> None:
    process = await asyncio.create_subprocess_exec(
        ESTSUITE,
        *_command(kind, tmp_path / "suite"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            # PostgreSQL with its processes, and NATS
            while len(started := _descendants(process.pid)) < 5:
                await asyncio.sleep(0.05)
            process.send_signal(ended_by)
            said = (await process.stdout.read()).decode()
            await process.wait()
            while left := started & set(_parents()):
                await asyncio.sleep(0.05)
    finally:
        if process.returncode is None:
            process.kill()
    assert not left
    assert "Traceback" not in said
