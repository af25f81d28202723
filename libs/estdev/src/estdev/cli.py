"""``estsuite``: run the whole suite on this machine, to use it (``up``) or to watch (``demo``)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import click

from estcore.runtime import command_line
from estcore.runtime.command_line import PATH, Group
from estcore.runtime.console import console_script

NAME = "estsuite"
estsuite = Group(NAME, distribution="estsuite-dev", help="The whole EST suite on one machine.")


def _port(name: str, default: int) -> click.Option:
    return click.Option(
        [f"--{name}-port"], type=int, default=default, metavar="PORT", help="0 takes any free port."
    )


@estsuite.lazy("up", "Run the whole suite on this machine until Ctrl-C.")
def _up() -> click.Command:
    from estdev.layout import Ports
    from estdev.up import run_up

    def callback(folder: Path, **ports: int) -> None:
        chosen = Ports(**{name.removesuffix("_port"): port for name, port in ports.items()})
        asyncio.run(run_up(folder, chosen))

    default = Path(os.environ.get("ESTSUITE_HOME", ".estsuite"))
    folder = click.Option(["--folder"], type=PATH, default=default, help="Folder of its data.")
    ports = [_port(name, getattr(Ports(), name)) for name in ("est", "postgres", "nats", "siem")]
    return click.Command("up", callback=callback, params=[folder, *ports])


@estsuite.lazy("demo", "Show enrollment, renewal, rotation and audit from end to end.")
def _demo() -> click.Command:
    from estdev.demo import run_demo

    @click.command("demo")
    @click.option("--keep", type=PATH, help="Use this folder and leave it there.")
    def demo(keep: Path | None) -> None:
        asyncio.run(run_demo(keep))

    return demo


@console_script
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``estsuite``."""
    return command_line.run(estsuite, NAME, arguments, exit_configuration=command_line.EXIT_FAILED)
