"""A server under measurement: what it consists of and how the load generator asks it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class Server(Protocol):
    """The suite or a peer."""

    @property
    def name(self) -> str:
        """Its name in tables."""

    @property
    def settle_s(self) -> float:
        """How long work goes on after the last answer; that time is counted."""

    def processes(self) -> Mapping[str, int]:
        """Return process ids by part; descendants count with them."""

    def load_options(self) -> list[str]:
        """Return address, trust anchor and credentials for the load generator."""

    async def counts(self) -> dict[str, float]:
        """Return counters that only grow, such as transactions and records."""

    async def start(self) -> None:
        """Start its processes."""

    async def stop(self) -> None:
        """End its processes."""


async def started(
    *command: str | Path, log: Path, port: int, environment: Mapping[str, str] | None = None
) -> asyncio.subprocess.Process:
    """Start a program and wait until it listens on the port.

    Raises:
        RuntimeError: it ended, or does not listen within a minute; with the end of its log.
    """
    with log.open("ab") as file:
        process = await asyncio.create_subprocess_exec(
            *map(str, command), stdout=file, stderr=file, stdin=asyncio.subprocess.DEVNULL,
            env=environment, start_new_session=True,
        )  # fmt: skip
    for _ in range(600):
        if process.returncode is not None:
            break
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.1)
            continue
        writer.close()
        return process
    await ended(process)
    raise RuntimeError(f"{command[0]} does not start: {log.read_text()[-1000:]}")


async def ended(process: asyncio.subprocess.Process) -> None:
    """End a process in order, or kill it after ten seconds."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(10):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
