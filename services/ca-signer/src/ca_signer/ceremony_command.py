"""The command line of ``ca-signer ca …``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ca_signer import ceremony
from estcore.clock import SystemClock
from estcore.errors import ConfigurationError

CLOCK = SystemClock()


def main(arguments: Sequence[str]) -> int:
    """Carry out a ceremony; returns the exit code."""
    parser = argparse.ArgumentParser(prog="ca-signer ca")
    verbs = parser.add_subparsers(dest="verb", required=True)
    first = verbs.add_parser("init", help="make root, issuing and infrastructure CA")
    first.add_argument("--name", required=True, help="organization")
    server = verbs.add_parser("server-certificate", help="TLS certificate for est-frontend")
    server.add_argument("--out", type=Path, required=True)
    server.add_argument("--host", action="append", required=True, help="DNS name or IP address")
    server.add_argument("--days", type=int, default=397)
    for one in (first, server):
        one.add_argument("--folder", type=Path, required=True)
        one.add_argument("--passphrase-file", type=Path, required=True)
    parsed = parser.parse_args(arguments)
    try:
        if parsed.verb == "init":
            ceremony.init(
                parsed.folder,
                name=parsed.name,
                passphrase_file=parsed.passphrase_file,
                clock=CLOCK,
            )
        else:
            ceremony.server_certificate(
                parsed.folder,
                out=parsed.out,
                names=parsed.host,
                passphrase_file=parsed.passphrase_file,
                days=parsed.days,
                clock=CLOCK,
            )
    except ConfigurationError as exc:
        sys.stderr.write(f"ca-signer: {exc.reason} [{exc.code}]\n")
        return 2
    return 0
