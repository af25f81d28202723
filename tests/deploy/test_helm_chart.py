"""The chart in the repository is what deploy/render_helm.py makes; tests/interop runs it by helm."""

from __future__ import annotations

import render_helm


def test_the_chart_is_made_from_the_manifests_as_they_are() -> None:
    assert render_helm.differing() == [], "run .venv/bin/python deploy/render_helm.py"
