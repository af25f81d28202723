"""``make drills``: every fault alone in a whole suite under light load, and a report.

The report says for each fault what clients and operators saw, what was lost, and in which time the
suite recovered. Exit code 0: nothing was lost and every fault recovered in its time; 1: not so, and
the folder with logs and history is kept; 2: no such drill.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "support"), str(HERE.parents[1] / "benchmarks")]

from estcore.runtime import command_line  # noqa: E402 - after the path
from estcore.runtime.command_line import CONTEXT  # noqa: E402
from estdev.local import log_to  # noqa: E402
from estsuite_testing.drills.catalogue import select  # noqa: E402
from estsuite_testing.drills.report import Report  # noqa: E402
from estsuite_testing.drills.run import MARKDOWN, run_drills  # noqa: E402


@click.command(context_settings=CONTEXT)
@click.option("--only", metavar="WORD", help="Only drills whose name contains it.")
@click.option("--list", "names", is_flag=True, help="Print the names of the drills.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("drills-report"),
    show_default=True,
    help="Folder of results.json and report.md.",
)
def drills(only: str | None, names: bool, out: Path) -> int:
    """Do every fault alone in a suite of two of everything on a NATS cluster of three."""
    chosen = select(only)
    if not chosen:
        click.echo(f"no drill is named {only!r}; --list names them", err=True)
        return 2
    if names:
        click.echo("\n".join(drill.name for drill in chosen))
        return 0
    log_to(out / "drills.log")
    report = asyncio.run(run_drills(chosen, out, say=click.echo))
    passed = sum(result.passed for result in report.results)
    click.echo(f"{passed} of {len(chosen)} drills passed; {out / MARKDOWN}")
    return exit_code(report)


def exit_code(report: Report) -> int:
    """Return 0 if every drill passed."""
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(command_line.run(drills, "make drills"))
