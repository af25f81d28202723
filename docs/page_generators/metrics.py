"""The tables of metrics, from the metrics modules."""

from __future__ import annotations

import importlib

from prometheus_client import Counter, Gauge, Histogram

METRICS = {
    "est-frontend": "est_frontend.metrics",
    "ca-signer": "ca_signer.metrics",
    "ca-signer-upstream": "ca_signer.upstream.metrics",
    "est-renewal": "renewal.metrics",
    "est-audit": "audit.metrics",
    "estctl agent": "estclient.agent.metrics",
    "estctl probe": "estclient.probe.metrics",
}


def metrics_of(module: str) -> list[tuple[str, str, str, str]]:
    """Return (name, kind, labels, meaning) of every metric in a module, as exposed."""
    rows = []
    for value in vars(importlib.import_module(module)).values():
        if not isinstance(value, Counter | Gauge | Histogram):
            continue
        (described,) = value.describe()
        name = described.name + ("_total" if described.type == "counter" else "")
        labels = ", ".join(value._labelnames) or "–"  # noqa: SLF001 - there is no public way
        rows.append((name, described.type, labels, described.documentation))
    return rows


def page() -> str:
    """Return the generated part of metrics.md."""
    parts = []
    for service, module in METRICS.items():
        parts += [f"## {service}", "", "| metric | kind | labels | meaning |", "|---|---|---|---|"]
        parts += [
            f"| `{n}` | {k} | {labels} | {text} |" for n, k, labels, text in metrics_of(module)
        ]
        parts.append("")
    return "\n".join(parts)
