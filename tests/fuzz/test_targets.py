"""Each target of ``make fuzz`` takes its seeds and the inputs that were kept, without atheris."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import targets  # noqa: E402 - after the path


@pytest.mark.parametrize("target", targets.TARGETS)
def test_a_target_answers_what_it_starts_from(target: str) -> None:
    kept = HERE / "corpus" / f"{target}.txt"
    lines = kept.read_text(encoding="ascii").split() if kept.exists() else []
    inputs = [*targets.TARGETS[target][1], *map(base64.b64decode, lines)]
    assert inputs
    for octets in inputs:
        targets.run(target, octets)
