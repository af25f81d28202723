"""``estctl``: the suite's command for people. ``estctl up`` and ``estctl demo`` run it locally."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

from estclient.suite.layout import Layout, Ports
from estclient.suite.local import LocalSuite
from estcore.errors import ESTSuiteError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="estctl")
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="run the whole suite on this machine until Ctrl-C")
    up.add_argument("--folder", type=Path, default=_default_folder(), help="where its data live")
    ports = Ports()
    for name, default in (
        ("est", ports.est),
        ("postgres", ports.postgres),
        ("nats", ports.nats),
        ("siem", ports.siem),
    ):
        up.add_argument(f"--{name}-port", type=int, default=default, metavar="PORT")
    return parser


def _default_folder() -> Path:
    return Path(os.environ.get("ESTSUITE_HOME", ".estsuite"))


async def _up(arguments: argparse.Namespace) -> None:
    ports = Ports(
        est=arguments.est_port,
        postgres=arguments.postgres_port,
        nats=arguments.nats_port,
        siem=arguments.siem_port,
    )
    ports.settle()
    suite = LocalSuite(Layout(arguments.folder, ports), progress=lambda t: print(t, flush=True))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        await suite.start()
        print("up", suite.url)
        await stop.wait()
    finally:
        await suite.stop()


def main() -> None:
    """Entry point of ``estctl``."""
    arguments = _parser().parse_args()
    try:
        asyncio.run(_up(arguments))
    except ESTSuiteError as exc:
        sys.stderr.write(f"estctl: {exc.reason} [{exc.code}]\n")
        sys.exit(2)
