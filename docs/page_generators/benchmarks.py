"""The tables of benchmarks.md, from the results of the runs that are kept beside it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

from estbench import audit_report, report  # noqa: E402 - beside this folder, installed nowhere
from estbench.results import Results  # noqa: E402
from renewalbench import report as renewal_report  # noqa: E402
from renewalbench import results as renewal_results  # noqa: E402

RESULTS = ROOT / "docs/benchmarks/results.json"
AUDIT = ROOT / "docs/benchmarks/audit.json"


def page() -> str:
    """Return the generated part of benchmarks.md."""
    enrollments = report.page(Results.model_validate_json(RESULTS.read_text(encoding="utf-8")))
    renewal = renewal_report.page(renewal_results.read())
    audit = audit_report.page(json.loads(AUDIT.read_text(encoding="utf-8")))
    return f"{enrollments}\n{renewal}\n{audit}"
