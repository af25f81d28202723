"""One target under atheris: ``python one.py TARGET [libFuzzer options] FOLDER…``."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]  # optional group

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

with atheris.instrument_imports(include=["estcore", "est_frontend", "audit", "ca_signer"]):
    from tests.fuzz import targets


def main() -> None:
    """Fuzz until the time is over, or something that is no documented answer is raised."""
    target = sys.argv.pop(1)

    def test_one_input(octets: bytes) -> None:
        targets.run(target, octets)

    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
