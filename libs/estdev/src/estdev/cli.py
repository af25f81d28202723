"""``estsuite``: run the whole suite on this machine, to use it (``up``) or to watch (``demo``)."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from estcore.errors import ESTSuiteError
from estcore.runtime.console import console_script
from estdev.demo import run_demo
from estdev.layout import Ports
from estdev.up import run_up


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="estsuite")
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="run the whole suite on this machine until Ctrl-C")
    folder = Path(os.environ.get("ESTSUITE_HOME", ".estsuite"))
    up.add_argument("--folder", type=Path, default=folder, help="folder of its data")
    ports = Ports()
    for name in ("est", "postgres", "nats", "siem"):
        default = getattr(ports, name)
        text = f"default {default}; 0 takes any free one"
        up.add_argument(f"--{name}-port", type=int, default=default, metavar="PORT", help=text)
    demo = verbs.add_parser("demo", help="show the main job end to end")
    demo.add_argument("--keep", type=Path, help="use this folder and leave it there")
    return parser


async def _run(arguments: argparse.Namespace) -> None:
    if arguments.verb == "demo":
        await run_demo(arguments.keep)
        return
    ports = Ports(
        est=arguments.est_port,
        postgres=arguments.postgres_port,
        nats=arguments.nats_port,
        siem=arguments.siem_port,
    )
    await run_up(arguments.folder, ports)


@console_script
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``estsuite``."""
    try:
        asyncio.run(_run(_parser().parse_args(arguments)))
    except ESTSuiteError as exc:
        sys.stderr.write(f"estsuite: {exc.reason} [{exc.code}]\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
