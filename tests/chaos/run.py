"""``make chaos``: random faults in a whole suite, and a check of clients, ledger, log and SIEM.

Exit code 0: no violation; 1: violations, and the folder with logs, history and exports is kept.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from pathlib import Path

import click

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "support"))

from estcore.runtime import command_line  # noqa: E402 - after the path
from estcore.runtime.command_line import CONTEXT  # noqa: E402
from estsuite_testing.chaos.run import run_chaos  # noqa: E402


@click.command(context_settings=CONTEXT)
@click.option("--seed", type=int, help="Which faults, and when; a new one by default.")
@click.option("--minutes", type=float, default=3.0, show_default=True)
def chaos(seed: int | None, minutes: float) -> int:
    """Run a suite of two of everything on a NATS cluster of three through random faults."""
    chosen = random.SystemRandom().randrange(10**6) if seed is None else seed
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    click.echo(f"seed {chosen}, {minutes:g} minutes, in {folder}")
    outcome = asyncio.run(run_chaos(folder, seed=chosen, seconds=minutes * 60))
    click.echo("\n".join(outcome.lines()))
    if outcome.violations:
        click.echo(f"kept: {folder}")
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    sys.exit(command_line.run(chaos, "make chaos"))
