"""The tables of the pages of drills, from the results of runs that are kept beside them."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "support"))

from estsuite_testing.cluster import drill_report  # noqa: E402 - in the folder of the tests
from estsuite_testing.drills import report  # noqa: E402 - in the folder of the tests

RESULTS = ROOT / "docs/drills/results.json"
CLUSTER_RESULTS = ROOT / "docs/drills/cluster.json"


def page() -> str:
    """Return the generated part of drills.md."""
    results = report.Report.model_validate_json(RESULTS.read_text(encoding="utf-8"))
    return report.page(results, runbooks="operations/runbooks")


def cluster_page() -> str:
    """Return the generated part of drills-on-kubernetes.md."""
    text = CLUSTER_RESULTS.read_text(encoding="utf-8")
    return drill_report.page(drill_report.Report.model_validate_json(text))
