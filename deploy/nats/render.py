"""Print the ``authorization`` block for nats-server: topic permissions by public NKey.

    .venv/bin/python deploy/nats/render.py --seeds secrets > permissions.conf
    .venv/bin/python deploy/nats/render.py --user ca-signer=UABC… --user renewal=UDEF… …

``--seeds`` reads ``nats-<user>.seed`` in a folder and makes those that are missing; ``--user``
takes public keys, where seeds are made elsewhere. The block contains public keys only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from estdeploy import nats

from estcore.errors import ConfigurationError


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    keys = parser.add_mutually_exclusive_group(required=True)
    keys.add_argument("--seeds", type=Path, help="folder with nats-<user>.seed")
    keys.add_argument("--user", action="append", type=_pair, metavar="NAME=NKEY")
    parser.add_argument("--group", default="default", help="group of the front ends")
    parser.add_argument(
        "--agent", action="append", default=[], type=_owner, metavar="TENANT/SERVICE"
    )
    parser.add_argument(
        "--upstream", action="append", default=[], metavar="ISSUER", help="of ca-signer-upstream"
    )
    parsed = parser.parse_args(arguments)
    try:
        names = nats.users(parsed.group, tuple(parsed.agent), tuple(parsed.upstream))
        if parsed.seeds is not None:
            parsed.seeds.mkdir(parents=True, exist_ok=True, mode=0o700)
            given = nats.public_keys(parsed.seeds, names)
        else:
            given = dict(parsed.user)
        sys.stdout.write(nats.render(nats.authorization(names, given)))
    except ConfigurationError as exc:
        sys.stderr.write(f"render: {exc.reason}\n")
        return 2
    return 0


def _pair(text: str) -> tuple[str, str]:
    name, found, key = text.partition("=")
    if not found or not key.startswith("U"):
        raise argparse.ArgumentTypeError("NAME=NKEY, and a user's public NKey starts with U")
    return name, key


def _owner(text: str) -> tuple[str, str]:
    tenant, found, service = text.partition("/")
    if not found:
        raise argparse.ArgumentTypeError("TENANT/SERVICE")
    return tenant, service


if __name__ == "__main__":
    sys.exit(main())
