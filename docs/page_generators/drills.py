"""The tables of drills.md, from the results of the run that is kept beside it."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "support"))

from estsuite_testing.drills import report  # noqa: E402 - in the folder of the tests

RESULTS = ROOT / "docs/drills/results.json"


def page() -> str:
    """Return the generated part of drills.md."""
    results = report.Report.model_validate_json(RESULTS.read_text(encoding="utf-8"))
    return report.page(results, runbooks="operations/runbooks")
