"""Make deploy/compose/local: what docker-compose.yml mounts. Run it once, before the first up.

.venv/bin/python deploy/compose/prepare.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from estdeploy.compose_files import prepare

from estcore.errors import ConfigurationError

LOCAL = Path(__file__).resolve().parent / "local"


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=LOCAL, help="another folder to fill")
    parsed = parser.parse_args(arguments)
    try:
        prepare(parsed.folder)
    except ConfigurationError as exc:
        sys.stderr.write(f"prepare: {exc.reason}\n")
        return 2
    sys.stdout.write(
        f"{parsed.folder} is ready; next:\n"
        f"  docker compose --env-file {parsed.folder / 'env'} up --build\n"
        f"  curl --cacert {parsed.folder / 'ca' / 'root.pem'}"
        " https://localhost:8443/.well-known/est/cacerts\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
