"""The tables of scaling.md, from the results, the measured footprint and the simulations."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

from estbench.results import Results  # noqa: E402 - beside this folder, installed nowhere
from loadmodel import report  # noqa: E402
from loadmodel.footprint import Footprint  # noqa: E402
from loadmodel.simulation import Everything  # noqa: E402

RESULTS = ROOT / "docs/benchmarks/results.json"
SCALING = ROOT / "docs/scaling"


def page() -> str:
    """Return the generated part of scaling.md."""
    return report.page(
        Results.model_validate_json(RESULTS.read_text(encoding="utf-8")),
        Footprint.model_validate_json((SCALING / "footprint.json").read_text(encoding="utf-8")),
        Everything.model_validate_json((SCALING / "simulation.json").read_text(encoding="utf-8")),
    )
