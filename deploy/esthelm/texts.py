"""Texts of the charts that are no documents: named templates, checks, notes; in ``static``."""

from __future__ import annotations

from pathlib import Path

MADE = "{{/* Made by deploy/render_helm.py from deploy/k8s; do not edit. */}}\n"


def static(name: str) -> str:
    """Return the text of a file in ``static``."""
    return Path(__file__).with_name("static").joinpath(name).read_text(encoding="utf-8")
