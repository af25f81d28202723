"""``estsuite``: run the whole suite on this machine, to use it (``up``) or to watch (``demo``)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from estcore.runtime import command_line
from estcore.runtime.command_line import PATH, Group, options
from estcore.runtime.console import console_script
from estdev.demo import run_demo
from estdev.layout import Ports
from estdev.up import run_up

NAME = "estsuite"
_HOME = Path(os.environ.get("ESTSUITE_HOME", ".estsuite"))
estsuite = Group(NAME, distribution="estsuite-dev", help="The whole EST suite on one machine.")


def _port(name: str) -> Callable[[Any], Any]:
    default = getattr(Ports(), name)
    return click.option(
        f"--{name}-port", name, default=default, metavar="PORT", help="0 takes any free port."
    )


@estsuite.command("up", help="Run the whole suite on this machine until Ctrl-C.")
@click.option("--folder", type=PATH, default=_HOME, help="Folder of its data.")
@options(*map(_port, ("est", "postgres", "nats", "siem")))
def _up(folder: Path, **ports: int) -> None:
    asyncio.run(run_up(folder, Ports(**ports)))


@estsuite.command("demo", help="Show enrollment, renewal, rotation and audit from end to end.")
@click.option("--keep", type=PATH, help="Use this folder and leave it there.")
def _demo(keep: Path | None) -> None:
    asyncio.run(run_demo(keep))


@console_script
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``estsuite``."""
    return command_line.run(estsuite, NAME, arguments)
