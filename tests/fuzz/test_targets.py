"""Each target of ``make fuzz`` takes its seeds and the inputs that were kept, without atheris."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from tests.fuzz import targets

HERE = Path(__file__).parent


@pytest.mark.parametrize("target", targets.TARGETS)
def test_a_target_answers_what_it_starts_from(target: str) -> None:
    kept = HERE / "corpus" / f"{target}.txt"
    lines = kept.read_text(encoding="ascii").split() if kept.exists() else []
    inputs = [*targets.TARGETS[target][1], *map(base64.b64decode, lines)]
    assert inputs
    for octets in inputs:
        targets.run(target, octets)
