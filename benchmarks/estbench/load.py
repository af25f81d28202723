"""One row: the load generator asks one server, and everything that server did is counted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estbench.counters import REPORTED_S
from estbench.processes import cpu_s
from estbench.results import (
    Connections,
    Counters,
    Measurement,
    Operation,
    added,
    per_request,
)
from estbench.server import Server
from estcore.clock import monotonic_s

WARM_UP = 20


@dataclass(frozen=True)
class Load:
    """What is sent: ``n`` requests from ``c`` connections, with CSRs from ``start`` on."""

    connections: Connections
    c: int
    n: int
    csrs: Path
    start: int = 0
    operation: Operation = "enroll"
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadGenerator:
    """The compiled load generator."""

    binary: Path

    async def make_csrs(self, count: int, out: Path, *options: str) -> Path:
        """Write that many CSRs with keys of their own; returns the file."""
        await self._output("gencsr", "-n", str(count), "-out", str(out), *options)
        return out

    async def run(self, server: list[str], load: Load, *options: str) -> dict[str, Any]:
        """Send the load; returns what the load generator measured.

        Raises:
            RuntimeError: it could not even begin.
        """
        out = await self._output(
            "run", *server, "-csrs", str(load.csrs), "-start", str(load.start),
            "-mode", load.connections, "-c", str(load.c), "-n", str(load.n),
            "-warmup", str(WARM_UP), "-json", *load.options, *options,
        )  # fmt: skip
        found: dict[str, Any] = json.loads(out)
        return found

    async def _output(self, *arguments: str) -> bytes:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            str(self.binary), *arguments, stdout=pipe, stderr=pipe
        )
        out, err = await process.communicate()
        if process.returncode not in {0, 1} or not out:
            raise RuntimeError(err.decode(errors="replace").strip())
        return out


async def measure(server: Server, generator: LoadGenerator, load: Load, round: int) -> Measurement:
    """Send the load and count the CPU time of it, with what goes on after the last answer."""
    processes = server.processes()
    before = cpu_by_part(processes)
    found = await generator.run(server.load_options(), load)
    await asyncio.sleep(server.settle_s)
    after = cpu_by_part(processes)
    done = found["ok"] + WARM_UP
    return Measurement(
        server=server.name,
        operation=load.operation,
        connections=load.connections,
        c=load.c,
        round=round,
        done=done,
        errors=found["errors"],
        tls=found["tls"],
        per_s=found["per_s"],
        p50_ms=found["ms_p50"],
        p99_ms=found["ms_p99"],
        cpu_ms={p: four_digits((after[p] - before[p]) * 1000 / done) for p in after},
    )


async def measure_counted(
    server: Server,
    generator: LoadGenerator,
    load: Load,
    round: int,
    idle_per_s: Counters | None = None,
) -> Measurement:
    """Measure, and read the counters before and after; before, nothing was asked for a while."""
    counters, began_s = await server.counts(), monotonic_s()
    measured = await measure(server, generator, load, round)
    await asyncio.sleep(REPORTED_S - server.settle_s)
    counted = added(counters, await server.counts())
    took_s = monotonic_s() - began_s
    idle = {name: value * took_s for name, value in (idle_per_s or {}).items()}
    return measured.model_copy(update={"counts": per_request(counted, measured.done, idle)})


async def idle_counters(server: Server, seconds: float) -> Counters:
    """Return what an idle server adds to its counters a second."""
    before = await server.counts()
    await asyncio.sleep(seconds)
    return {name: n / seconds for name, n in added(before, await server.counts()).items()}


def cpu_by_part(processes: Mapping[str, int]) -> dict[str, float]:
    """Return CPU seconds so far by part."""
    return {part: cpu_s(pid) for part, pid in processes.items()}


def four_digits(value: float) -> float:
    """Return the value with four digits after the point: tenths of a microsecond are noise."""
    return float(f"{value:.4f}")
