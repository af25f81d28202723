"""The interleaved run: in every round each row is measured on the suite and on each peer in turn.

Contention on a shared machine changes from minute to minute, so figures are compared within a
run only, and the order of the servers moves on by one each round.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from estbench.counters import REPORTED_S
from estbench.load import (
    WARM_UP,
    Load,
    LoadGenerator,
    cpu_by_part,
    idle_counters,
    measure,
    measure_counted,
)
from estbench.machine import verify_per_second
from estbench.processes import pss_mb
from estbench.results import Connections, Counters, Measurement
from estbench.server import Server
from estbench.suite import Suite

_AT_ONCE = 16
"""Connections of re-enrollments, repeats and of what is counted."""
Progress = Callable[[str], object]


def printed(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@dataclass
class Rounds:
    """A suite, its peers and the rows to measure."""

    suite: Suite
    peers: Sequence[Server]
    generator: LoadGenerator
    folder: Path
    requests: dict[int, int]
    rounds: int
    progress: Progress = printed
    measurements: list[Measurement] = field(default_factory=list)
    counted: list[Measurement] = field(default_factory=list)
    verify_per_s: list[float] = field(default_factory=list)

    async def run(self) -> None:
        """Measure all rounds."""
        per_round = self._per_round
        csrs = await self.generator.make_csrs(per_round * self.rounds, self.folder / "csrs.txt")
        start = 0
        for round in range(self.rounds):
            self.verify_per_s.append(await asyncio.to_thread(verify_per_second))
            for load in self._first_enrollments(csrs, start):
                for server in self._in_turn(round):
                    await self._measure(server, load, round)
            async for load in self._operations(csrs, start, round):
                await self._measure(self.suite, load, round)
            start += per_round

    async def count(self, idle_s: float, *, brief: bool) -> None:
        """Measure what is counted: after idle time, one load of each kind at a time.

        ``brief`` counts first enrollments on keep-alive connections only.
        """
        csrs = self.folder / "counted.txt"
        await self.generator.make_csrs(self._per_round, csrs, "-prefix", "dev-counted-")
        loads = [
            load
            for load in self._first_enrollments(csrs, 0)
            if load.c == _AT_ONCE and (load.connections == "keepalive" or not brief)
        ]
        counting = [s for s in (self.suite, *self.peers) if await s.counts()]
        await asyncio.sleep(REPORTED_S)
        rates = await asyncio.gather(*(idle_counters(server, idle_s) for server in counting))
        for server, idle_per_s in zip(counting, rates, strict=True):
            for load in loads:
                await self._count(server, load, idle_per_s)
        if brief:
            return
        async for load in self._operations(csrs, 0, self.rounds):
            await asyncio.sleep(REPORTED_S)
            await self._count(self.suite, load, rates[0])

    async def _count(self, server: Server, load: Load, idle_per_s: Counters) -> None:
        found = await measure_counted(server, self.generator, load, 0, idle_per_s)
        self.counted.append(found)
        counts = ", ".join(f"{name} {value:.2f}" for name, value in found.counts.items())
        self.progress(f"-  {server.name:21} {load.operation:8} {load.connections:9} {counts}")

    @property
    def _per_round(self) -> int:
        return sum(2 * (n + WARM_UP) for n in self.requests.values())

    @property
    def median_verify_per_s(self) -> float:
        """P-256 verifications of openssl, over the rounds."""
        return statistics.median(self.verify_per_s)

    def _first_enrollments(self, csrs: Path, start: int) -> Iterator[Load]:
        for c, n in self.requests.items():
            for connections in get_args(Connections):
                yield Load(connections, c, n, csrs, start)
                start += n + WARM_UP

    def _in_turn(self, round: int) -> list[Server]:
        servers: list[Server] = [self.suite, *self.peers]
        first = round % len(servers)
        return servers[first:] + servers[:first]

    async def _operations(self, csrs: Path, start: int, round: int) -> AsyncIterator[Load]:
        """Yield re-enrollments and repeats, beside the first enrollments of this round."""
        n = self.requests.get(_AT_ONCE, 0)
        if not n:
            return
        fleet = await self._clients(f"fleet-{round}", n + WARM_UP)
        again = await fleet.requests(self.generator, n + WARM_UP)
        yield Load("new", _AT_ONCE, n, again, 0, "reenroll", fleet.options)
        few = await self._clients(f"few-{round}", _AT_ONCE)
        again = await few.requests(self.generator, n + WARM_UP)
        yield Load("keepalive", _AT_ONCE, n, again, 0, "reenroll", few.options)
        for load in self._first_enrollments(csrs, start):
            if (load.c, load.connections) == (_AT_ONCE, "keepalive"):
                yield replace(load, operation="repeat")

    async def _clients(self, name: str, count: int) -> Clients:
        """Enroll clients with keys of their own; nothing of that is measured."""
        found = Clients(self.folder / name)
        options = ("-prefix", f"dev-{name}-", "-keys", str(found.keys))
        await self.generator.make_csrs(count, found.csrs, *options)
        load = Load("keepalive", _AT_ONCE, count, found.csrs)
        options = ("-warmup", "0", "-save", str(found.certificates))
        await self.generator.run(self.suite.load_options(), load, *options)
        await asyncio.sleep(self.suite.settle_s)
        return found

    async def _measure(self, server: Server, load: Load, round: int) -> None:
        found = await measure(server, self.generator, load, round)
        self.measurements.append(found)
        self.progress(line(found))


@dataclass(frozen=True)
class Clients:
    """Clients of the suite with certificates of their own, in files of the load generator."""

    stem: Path

    @property
    def csrs(self) -> Path:
        """What they enrolled with."""
        return self.stem.with_suffix(".csrs")

    @property
    def keys(self) -> Path:
        """Their keys, line by line."""
        return self.stem.with_suffix(".keys")

    @property
    def certificates(self) -> Path:
        """Their certificates, line by line."""
        return self.stem.with_suffix(".certificates")

    @property
    def options(self) -> tuple[str, ...]:
        """Return how the load generator re-enrolls as these clients."""
        files = ("-id-certs", str(self.certificates), "-id-keys", str(self.keys))
        return ("-op", "simplereenroll", *files)

    async def requests(self, generator: LoadGenerator, count: int) -> Path:
        """Write CSRs with new keys and the names of the clients in turn; returns the file."""
        out = self.stem.with_suffix(".again")
        return await generator.make_csrs(count, out, "-like", str(self.certificates))


def line(m: Measurement) -> str:
    """Return a measurement as a line for people."""
    parts = ", ".join(f"{part} {ms:.2f}" for part, ms in m.cpu_ms.items())
    return (
        f"{m.round + 1}  {m.server:21} {m.operation:8} {m.connections:9} c={m.c:<3}"
        f"{m.per_s:7.1f}/s  p50 {m.p50_ms:6.1f}  p99 {m.p99_ms:6.1f} ms  errors {m.errors}  "
        f"CPU {m.total_cpu_ms:5.2f} ms ({parts})"
    )


async def idle(servers: Sequence[Server], seconds: float) -> dict[str, dict[str, float]]:
    """Return CPU-ms a second by server and part while nothing is asked."""
    before = [cpu_by_part(server.processes()) for server in servers]
    await asyncio.sleep(seconds)
    after = [cpu_by_part(server.processes()) for server in servers]
    return {
        server.name: {p: round((b[p] - a[p]) * 1000 / seconds, 2) for p in a}
        for server, a, b in zip(servers, before, after, strict=True)
    }


def memory(servers: Sequence[Server]) -> dict[str, dict[str, float]]:
    """Return the memory of every part in MB, shared pages in proportion."""
    return {
        server.name: {part: round(pss_mb(pid), 1) for part, pid in server.processes().items()}
        for server in servers
    }
