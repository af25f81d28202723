"""Make dashboards, console pages and Kubernetes objects from estmonitoring and the alert rules.

    .venv/bin/python deploy/render_monitoring.py
    .venv/bin/python deploy/render_monitoring.py --check

``--check`` changes nothing; the exit code is 1 when a file differs from what would be made.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
from estmonitoring import consoles, grafana, kubernetes
from estmonitoring.dashboards import BOARDS

ROOT = Path(__file__).resolve().parents[1]
MONITORING = ROOT / "deploy" / "monitoring"
COMPONENT = ROOT / "deploy" / "k8s" / "components" / "monitoring"
ISSUER = COMPONENT.with_name("est-issuer-monitoring")


def files() -> dict[Path, str]:
    """Return every file that is made, with its text."""
    found = {COMPONENT / "rules.yaml": kubernetes.rules(MONITORING / "rules")}
    found[COMPONENT / "pods.yaml"] = kubernetes.pod_monitor()
    found[ISSUER / "pods.yaml"] = kubernetes.issuer_pod_monitor()
    for board in BOARDS:
        found[MONITORING / "grafana" / f"{board.name}.json"] = grafana.rendered(board)
        found[MONITORING / "consoles" / f"{board.name}.html"] = consoles.rendered(board, BOARDS)
    return found


def differing() -> list[Path]:
    """Return the files that are not what would be made."""
    return [
        path
        for path, text in files().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]


@click.command("render_monitoring", help="Make dashboards, console pages and Kubernetes objects.")
@click.option("--check", is_flag=True, help="Change nothing; exit with 1 when a file differs.")
def render(*, check: bool) -> None:  # noqa: D103 - its help is in the decorator
    if check:
        for path in (different := differing()):
            click.echo(f"{path.relative_to(ROOT)} is not what deploy/render_monitoring.py makes")
        sys.exit(1 if different else 0)
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    render()
