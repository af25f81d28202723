"""The tables of metrics, from the metrics modules."""

from __future__ import annotations

import importlib

from prometheus_client import Counter, Gauge, Histogram

SHARED = (
    "estcore.runtime.admin",
    "estcore.runtime.stream_probe",
    "estcore.runtime.stream_lengths",
    "estcore.runtime.certificate_expiry",
    "estcore.runtime.clock_check",
    "estcore.runtime.bus",
)
"""Metrics of every service, or of all that have a bus or a database."""
METRICS = {
    "est-frontend": "est_frontend.metrics",
    "ca-signer": "ca_signer.metrics",
    "ca-signer-upstream": "ca_signer.upstream.metrics",
    "est-renewal": "renewal.metrics",
    "est-audit": "audit.metrics",
    "est-witness": "est_witness.metrics",
    "est-issuer": "est_issuer.metrics",
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


def names() -> set[str]:
    """Return the names of all metrics, as exposed."""
    modules = [*SHARED, *METRICS.values()]
    return {row[0] for module in modules for row in metrics_of(module)}


def page() -> str:
    """Return the generated part of metrics.md."""
    shared = [row for module in SHARED for row in metrics_of(module)]
    parts = _section("Every service", shared)
    for service, module in METRICS.items():
        parts += _section(service, metrics_of(module))
    return "\n".join(parts)


def _section(title: str, rows: list[tuple[str, str, str, str]]) -> list[str]:
    head = [f"## {title}", "", "| metric | kind | labels | meaning |", "|---|---|---|---|"]
    return [*head, *(f"| `{n}` | {k} | {labels} | {text} |" for n, k, labels, text in rows), ""]
