"""The table of alerts, from the rules of Prometheus."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

RULES = Path(__file__).parents[2] / "deploy" / "monitoring" / "rules" / "alerts.yaml"
_RUNBOOK = re.compile(r"/operations/runbooks/([a-z0-9-]+)\.md$")
_LABEL = re.compile(r"\{\{ *\$labels\.(\w+) *\}\}")
_VALUE = re.compile(r"\{\{ *\$value[^}]*\}\}")


def alerts() -> list[dict[str, Any]]:
    """Return the alerting rules, in the order of their file."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def runbook(alert: dict[str, Any]) -> str:
    """Return the name of an alert's page among the runbooks.

    Raises:
        ValueError: its link is of another form.
    """
    found = _RUNBOOK.search(alert["annotations"]["runbook_url"])
    if found is None:
        raise ValueError(f"{alert['alert']} has no runbook")
    return found.group(1)


def page() -> str:
    """Return the generated part of alerts.md."""
    rows = ["| alert | severity | after | what it says | runbook |", "|---|---|---|---|---|"]
    for alert in alerts():
        texts = [_plain(alert["annotations"][part]) for part in ("summary", "description")]
        name = runbook(alert)
        title = name.replace("-", " ")
        rows.append(
            f"| `{alert['alert']}` | {alert['labels']['severity']} | {alert.get('for', 'at once')} "
            f"| {'. '.join(texts)} | [{title}](runbooks/{name}.md) |"
        )
    return "\n".join([*rows, ""])


def _plain(text: str) -> str:
    """Return an annotation with the names of labels, and N for the value."""
    return _VALUE.sub("N", _LABEL.sub(r"*\1*", text))
