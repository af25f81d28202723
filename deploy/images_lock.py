"""``make images-lock``: the digests of all images, from their registries, into our files.

Exit code 0: every digest is known; 3: some registries gave none, named one a line.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
from estsupply import images

from estcore.runtime import command_line
from estcore.runtime.command_line import CONTEXT

ROOT = Path(__file__).resolve().parents[1]
_MISSING = 3


@click.command(context_settings=CONTEXT)
def main() -> int:
    """Ask each image's registry for its digest."""
    servers = ROOT / "deploy" / "k8s" / "overlays" / "all-in-one"
    files = (
        *(ROOT / "Dockerfile", ROOT / "docker-compose.yml", servers / "postgres.yaml"),
        *sorted((ROOT / "deploy" / "compose").glob("*.yml")),
        ROOT / "deploy" / "siem" / "rsyslog.Dockerfile",
    )
    missing = images.fill(ROOT / "deploy" / "images.lock", files)
    for line in missing:
        click.echo(line)
    return _MISSING if missing else 0


if __name__ == "__main__":
    sys.exit(command_line.run(main, "make images-lock"))
