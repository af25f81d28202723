"""Make the Helm chart deploy/helm/estsuite from deploy/k8s (ADR 0076).

    .venv/bin/python deploy/render_helm.py
    .venv/bin/python deploy/render_helm.py --check

``--check`` changes nothing; the exit code is 1 when a file differs from what would be made.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
from esthelm import chart, sources

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "deploy" / "helm" / "estsuite"


def files() -> dict[Path, str]:
    """Return every file of the chart, with its text."""
    return {CHART / path: text for path, text in chart.files(sources.read()).items()}


def differing() -> list[Path]:
    """Return the files that are not what would be made, and those that would not be made."""
    made = files()
    there = {path for path in CHART.rglob("*") if path.is_file()}
    return [
        *(
            path
            for path, text in made.items()
            if path not in there or path.read_text(encoding="utf-8") != text
        ),
        *sorted(there - made.keys()),
    ]


@click.command("render_helm", help="Make the Helm chart from deploy/k8s.")
@click.option("--check", is_flag=True, help="Change nothing; exit with 1 when a file differs.")
def render(*, check: bool) -> None:  # noqa: D103 - its help is in the decorator
    if check:
        for path in (different := differing()):
            click.echo(f"{path.relative_to(ROOT)} is not what deploy/render_helm.py makes")
        sys.exit(1 if different else 0)
    made = files()
    for path in CHART.rglob("*"):
        if path.is_file() and path not in made:
            path.unlink()
    for path, text in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    render()
