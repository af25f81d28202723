"""What an enrollment costs: the whole suite, re-enrollment and repeats, beside its peers.

Starts the suite (PostgreSQL, NATS, four services, ledger and audit on), step-ca with PostgreSQL,
OpenBao and a Go program that stores nothing, and lets ``benchmarks/loadgen`` enroll distinct keys
over mutual TLS: new connections and keep-alive, several concurrencies, every row on each of
them in turn, for several rounds. CPU is that of all processes, in the run and a settling time
after it. Results go into a JSON file and, where that is the folder of the documents, onto
their page (benchmarks/README.md).
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import click

from estbench import machine, plots, programs
from estbench.counters import REPORTED_S
from estbench.growth import Growth
from estbench.load import LoadGenerator
from estbench.peers.openbao import OpenBao
from estbench.peers.reference import Reference
from estbench.peers.step_ca import StepCA
from estbench.results import Measurement, Results
from estbench.rounds import Rounds, idle, memory
from estbench.server import Server
from estbench.suite import Suite
from estcore.runtime import command_line
from estcore.runtime.command_line import CONTEXT, PATH

_REQUESTS = {1: 150, 16: 400, 64: 600}
_QUICK = {1: 80, 16: 200, 64: 300}
_IDLE_S = 20.0
_QUICK_IDLE_S = 10.0
RESULTS = "results.json"


@click.command("enroll", help="Measure enrollments beside peers.", context_settings=CONTEXT)
@click.option("--quick", is_flag=True, help="Two rounds and fewer requests: about four minutes.")
@click.option("--rounds", type=int, help="How often each row is measured.")
@click.option("-n", "count", type=int, help="Requests in each row, in place of the usual numbers.")
@click.option("-c", "concurrencies", type=int, multiple=True, help="At once; repeatable.")
@click.option("--without-peers", is_flag=True, help="The suite and the Go mock only.")
@click.option("--frontends", type=int, default=1, help="Processes of est-frontend.")
@click.option("--signers", type=int, default=1, help="Processes of ca-signer.")
@click.option("--rows", type=int, default=0, help="Also compare tables of 10,000 and these rows.")
@click.option("--out", type=PATH, required=True, help="Folder for results and plots.")
def enroll(
    quick: bool,
    rounds: int | None,
    count: int | None,
    concurrencies: tuple[int, ...],
    without_peers: bool,
    frontends: int,
    signers: int,
    rows: int,
    out: Path,
) -> None:
    usual = _QUICK if quick else _REQUESTS
    requests = {c: count or usual.get(c, max(usual.values())) for c in concurrencies or usual}
    run = Run(
        rounds=rounds or (2 if quick else 4),
        requests=requests,
        quick=quick,
        peers=not without_peers,
        processes=(frontends, signers),
        rows=rows,
    )
    results = asyncio.run(run.results())
    out.mkdir(parents=True, exist_ok=True)
    (out / RESULTS).write_text(results.model_dump_json(indent=1) + "\n", encoding="utf-8")
    plots.write(results, out)
    click.echo(f"{out / RESULTS}, and plots beside it")


class Run:
    """A whole run of the benchmark."""

    def __init__(
        self,
        *,
        rounds: int,
        requests: dict[int, int],
        quick: bool,
        peers: bool,
        processes: tuple[int, int],
        rows: int,
    ) -> None:
        self._rounds, self._requests, self._quick = rounds, requests, quick
        self._with_peers, self._processes, self._rows = peers, processes, rows
        self._generator = LoadGenerator(programs.loadgen())
        self._load_average = machine.load_average()

    async def results(self) -> Results:
        """Start, measure and stop everything."""
        with tempfile.TemporaryDirectory(prefix="estbench-") as name:
            folder = Path(name)
            found = await self._compare(folder)
            if not self._rows:
                return found
            growth = await self._growth(folder)
            return found.model_copy(update={"growth": growth})

    async def _compare(self, folder: Path) -> Results:
        frontends, signers = self._processes
        suite = Suite(folder / "suite", frontends=frontends, signers=signers)
        peers: list[Server] = []
        if self._with_peers:
            peers += [StepCA(suite, folder / "step-ca"), OpenBao(suite, folder / "openbao")]
        peers.append(Reference(suite, folder))
        async with AsyncExitStack() as stack:
            for server in (suite, *peers):
                stack.push_async_callback(server.stop)
            for server in (suite, *peers):
                await server.start()
            rounds = Rounds(suite, peers, self._generator, folder, self._requests, self._rounds)
            await rounds.run()
            pss_mb = memory([suite, *peers])
            idle_s = _QUICK_IDLE_S if self._quick else _IDLE_S
            await rounds.count(idle_s, brief=self._quick)
            await asyncio.sleep(REPORTED_S)
            return Results(
                machine=machine.describe(),
                versions=programs.versions(),
                verify_per_s=rounds.median_verify_per_s,
                load_average=self._load_average,
                rounds=self._rounds,
                requests=self._requests,
                quick=self._quick,
                measurements=rounds.measurements,
                counted=rounds.counted,
                pss_mb=pss_mb,
                idle_ms_per_s=await idle([suite, *peers], idle_s),
            )

    async def _growth(self, folder: Path) -> list[Measurement]:
        growth = Growth(self._generator, folder, self._rows, self._requests.get(16, 400))
        return await growth.run(self._rounds)


if __name__ == "__main__":
    sys.exit(command_line.run(enroll, "enroll"))
