"""Three minutes of random faults with a fixed seed; ``make chaos`` runs any seed for any time."""

from __future__ import annotations

from pathlib import Path

import pytest

from estsuite_testing.chaos.run import run_chaos

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

SEED, SECONDS = 1, 180


async def test_no_violation_in_three_minutes_of_faults(tmp_path: Path) -> None:
    folder = tmp_path / "chaos"
    outcome = await run_chaos(folder, seed=SEED, seconds=SECONDS, clients=2, pause_s=0.8)
    assert outcome.violations == [], "\n".join(outcome.lines())
    # Otherwise the run has shown nothing.
    assert outcome.faults.total() >= 15, outcome.faults
    assert outcome.issued >= 100
