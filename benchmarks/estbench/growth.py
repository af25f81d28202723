"""The same enrollments with small and with large tables, in turn, also right after a checkpoint.

After a checkpoint the first change of every page goes into the WAL as a whole page; with random
keys and large indexes nearly every enrollment makes such first changes.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from estbench.load import WARM_UP, Load, LoadGenerator, measure_counted
from estbench.results import Measurement
from estbench.rounds import Progress, line, printed
from estbench.rows import fill
from estbench.suite import Suite

SMALL = 10_000
_C = 16


class Growth:
    """Two suites that differ in the number of rows."""

    def __init__(
        self,
        generator: LoadGenerator,
        folder: Path,
        rows: int,
        n: int,
        progress: Progress = printed,
    ) -> None:
        self._generator, self._folder, self._n, self._progress = generator, folder, n, progress
        self._suites = {
            rows: Suite(folder / f"suite-{rows}", f"suite, {rows:,} rows")
            for rows in sorted({SMALL, rows})
        }

    async def run(self, rounds: int) -> list[Measurement]:
        """Fill, measure, stop; every row right after a checkpoint and once more without."""
        found: list[Measurement] = []
        csrs = await self._generator.make_csrs(
            2 * rounds * (self._n + WARM_UP), self._folder / "growth.txt"
        )
        async with AsyncExitStack() as stack:
            for suite in self._suites.values():
                stack.push_async_callback(suite.stop)
            for rows, suite in self._suites.items():
                await suite.start()
                await fill(await suite.database(), rows, self._progress)
            start = 0
            for round in range(rounds):
                for after_checkpoint in (True, False):
                    load = Load("keepalive", _C, self._n, csrs, start)
                    for rows in self._in_turn(round):
                        found.append(await self._measure(rows, load, round, after_checkpoint))
                    start += self._n + WARM_UP
            return found

    def _in_turn(self, round: int) -> list[int]:
        rows = list(self._suites)
        return rows if round % 2 == 0 else rows[::-1]

    async def _measure(
        self, rows: int, load: Load, round: int, after_checkpoint: bool
    ) -> Measurement:
        suite = self._suites[rows]
        if after_checkpoint:
            await (await suite.database()).execute("checkpoint")
            await asyncio.sleep(1)
        measured = await measure_counted(suite, self._generator, load, round)
        self._progress(line(measured))
        return measured.model_copy(update={"rows": rows, "after_checkpoint": after_checkpoint})
