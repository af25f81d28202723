"""Scale on paper: measure what a certificate leaves behind, and simulate the load of fleets.

``measure`` starts a suite and a small fleet of real agents and writes ``footprint.json``;
``simulate`` needs no server and writes ``simulation.json`` and the plots. The page
docs/scaling.md is generated from both and from the results of ``enroll.py``.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import click

from estbench.results import Results
from estbench.rounds import printed
from estcore.runtime import command_line
from estcore.runtime.command_line import CONTEXT, PATH
from loadmodel import measured_fleet, plots, simulation
from loadmodel.costs import Costs
from loadmodel.footprint import Footprint

FOOTPRINT = "footprint.json"
SIMULATION = "simulation.json"
RESULTS = Path(__file__).parents[1] / "docs/benchmarks/results.json"
_AGENTS = 600


@click.group("scaling", help="What fleets of some sizes need.", context_settings=CONTEXT)
def scaling() -> None:
    """Measure or simulate."""


@scaling.command("measure", help="What a certificate leaves behind, with a suite: ten minutes.")
@click.option("--agents", type=int, default=_AGENTS, help="Agents in the fleet.")
@click.option("--out", type=PATH, required=True, help="Folder for the file.")
def measure(agents: int, out: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="loadmodel-") as name:
        found = asyncio.run(measured_fleet.measure(Path(name), agents, printed))
    out.mkdir(parents=True, exist_ok=True)
    (out / FOOTPRINT).write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    click.echo(out / FOOTPRINT)


@scaling.command("simulate", help="The load of fleets, without a suite: two minutes.")
@click.option("--results", type=PATH, default=RESULTS, help="Results of enroll.py.")
@click.option("--out", type=PATH, required=True, help="Folder with footprint.json.")
def simulate(results: Path, out: Path) -> None:
    footprint = Footprint.model_validate_json((out / FOOTPRINT).read_text(encoding="utf-8"))
    measured = Results.model_validate_json(results.read_text(encoding="utf-8"))
    found = simulation.simulate(Costs.of(measured, footprint), printed)
    (out / SIMULATION).write_text(found.model_dump_json() + "\n", encoding="utf-8")
    plots.write(found, out)
    click.echo(f"{out / SIMULATION}, and plots beside it")


if __name__ == "__main__":
    sys.exit(command_line.run(scaling, "scaling"))
