"""Make deploy/compose/local: what docker-compose.yml mounts. Run it once, before the first up.

.venv/bin/python deploy/compose/prepare.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from estdeploy.compose_files import prepare

from estcore.runtime import command_line
from estcore.runtime.command_line import CONTEXT, PATH

LOCAL = Path(__file__).resolve().parent / "local"


@click.command("prepare", help="Make what docker-compose.yml mounts.", context_settings=CONTEXT)
@click.option("--folder", type=PATH, default=LOCAL, help="Another folder to fill.")
def _prepare(folder: Path) -> None:
    prepare(folder)
    sys.stdout.write(
        f"{folder} is ready; next:\n"
        f"  docker compose --env-file {folder / 'env'} up --build\n"
        f"  curl --cacert {folder / 'ca' / 'root.pem'}"
        " https://localhost:8443/.well-known/est/cacerts\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command line; returns the exit code."""
    return command_line.run(_prepare, "prepare", arguments)


if __name__ == "__main__":
    sys.exit(main())
