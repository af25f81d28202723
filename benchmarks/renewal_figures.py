"""Figures of renewal: claims of large fleets, polls of agents, an outage, rotations under load.

Each command measures one part and writes it to docs/benchmarks/renewal.json (or ``--out``);
docs/benchmarks.md is generated from it.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from estbench.rounds import printed
from estcore.runtime import command_line
from estcore.runtime.command_line import CONTEXT, PATH
from estsuite_testing.suite_template import share_template
from renewal.settings import SchedulerSettings
from renewalbench import claims as claims_bench
from renewalbench import outage as outage_bench
from renewalbench import polls as polls_bench
from renewalbench import results
from renewalbench import rotations as rotations_bench

_OUT = click.option("--out", type=PATH, default=results.FILE, help="File with the figures.")


@click.group("renewal-figures", help=__doc__, context_settings=CONTEXT)
def figures() -> None:
    """Measure one part."""


@figures.command("claims", help="Claims from a table of millions: fifteen minutes, 15 GB of disk.")
@click.option("--slots", type=int, default=5_000_000, show_default=True, help="Slots in the table.")
@click.option("--rounds", type=int, default=3, show_default=True, help="Outages claimed.")
@_OUT
def claims(slots: int, rounds: int, out: Path) -> None:
    with _folder() as folder:
        found = asyncio.run(claims_bench.measure(Path(folder), slots, rounds, printed))
    results.write(out, claims=found)


@figures.command("polls", help="Agents that poll one front end for renewal information.")
@click.option("--agents", type=int, default=10_000, show_default=True, help="Agents.")
@click.option("--seconds", type=int, default=50, show_default=True, help="Of each row.")
@_OUT
def polls(agents: int, seconds: int, out: Path) -> None:
    with _folder() as folder:
        found = asyncio.run(polls_bench.measure(Path(folder), agents, seconds, printed))
    results.write(out, polls=found)


@figures.command("outage", help="Many slots due at once, on a simulated clock: half an hour.")
@click.option("--slots", type=int, default=100_000, show_default=True, help="Slots that are due.")
@click.option("--signed-per-s", type=int, default=300, show_default=True, help="Of the signers.")
@click.option("--without-pace", is_flag=True, help="Also as if there were no max_unanswered.")
@_OUT
def outage(slots: int, signed_per_s: int, without_pace: bool, out: Path) -> None:
    found = results.conditions()
    given = outage_bench.Outage(slots, signed_per_s)
    bounds = [SchedulerSettings().max_unanswered, *([1_000_000] if without_pace else [])]
    runs = [outage_bench.run(given, most, printed) for most in bounds]
    results.write(out, outage=results.Outages(**found, runs=runs))


@figures.command("rotations", help="A TLS server through rotations, agent and renewal killed.")
@click.option("--rotations", "count", type=int, default=20, show_default=True, help="How many.")
@click.option("--seed", type=int, default=7, show_default=True, help="Of the kills.")
@_OUT
def rotations(count: int, seed: int, out: Path) -> None:
    with _folder() as folder:
        share_template(Path(folder) / "template")
        found = asyncio.run(rotations_bench.rotate(Path(folder), count, printed, seed=seed))
    results.write(out, rotations=found)


def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="renewal-figures-", dir="/var/tmp")


if __name__ == "__main__":
    sys.exit(command_line.run(figures, "renewal-figures"))
