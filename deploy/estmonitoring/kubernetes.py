"""Objects for the Prometheus operator: what to scrape, and the rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

_GROUP = "monitoring.coreos.com/v1"
_SERVICES = ("est-frontend", "ca-signer", "renewal", "audit", "ca-signer-upstream", "est-witness")

ISSUER = "est-issuer"
_ENDPOINT = {"port": "admin", "path": "/metrics", "interval": "30s"}


class _Text(yaml.SafeDumper):
    """Writes long expressions as blocks, for people."""


def _as_block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Text.add_representer(str, _as_block)


def rules(folder: Path) -> str:
    """Return the PrometheusRule of all rule files in a folder."""
    groups: list[Any] = []
    for path in sorted(folder.glob("*.yaml"), reverse=True):
        groups += yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    return _document("PrometheusRule", {"groups": groups})


def pod_monitor() -> str:
    """Return the PodMonitor of every pod of the suite that has an admin port."""
    among = [{"key": "app.kubernetes.io/name", "operator": "In", "values": list(_SERVICES)}]
    return _document(
        "PodMonitor",
        {"selector": {"matchExpressions": among}, "podMetricsEndpoints": [_ENDPOINT]},
    )


def issuer_pod_monitor() -> str:
    """Return the PodMonitor of est-issuer, which has a namespace of its own."""
    labels = {"app.kubernetes.io/name": ISSUER}
    spec = {"selector": {"matchLabels": labels}, "podMetricsEndpoints": [_ENDPOINT]}
    return _document("PodMonitor", spec, {"name": ISSUER, "namespace": ISSUER})


def _document(kind: str, spec: dict[str, Any], metadata: dict[str, str] | None = None) -> str:
    found = {
        "apiVersion": _GROUP,
        "kind": kind,
        "metadata": {
            **(metadata or {"name": "estsuite"}),
            "labels": {"app.kubernetes.io/part-of": "estsuite"},
        },
        "spec": spec,
    }
    text = yaml.dump(found, Dumper=_Text, sort_keys=False, width=1000)
    return f"# Made by deploy/render_monitoring.py from deploy/monitoring; do not edit.\n{text}"
