"""Prometheus metrics of ca-signer-upstream; names are stable."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

CALLS = Counter(
    "ca_signer_upstream_calls_total",
    "requests to other CAs, by what came of them",
    ["issuer", "outcome"],
)
SECONDS = Histogram(
    "ca_signer_upstream_seconds",
    "Seconds an upstream CA took to answer",
    ["issuer"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60),
)
BREAKER = Gauge("ca_signer_upstream_breaker", "0 closed, 1 half open, 2 open", ["issuer"])
OPEN = Gauge(
    "ca_signer_upstream_submissions",
    "certificates on their way, by state; `unknown` waits for a person",
    ["issuer", "state"],
)
QUARANTINED = Counter(
    "ca_signer_upstream_quarantined_total",
    "certificates set aside because they are not what was decided",
    ["issuer", "check"],
)
REVOCATIONS = Gauge(
    "ca_signer_upstream_revocations",
    "Revocations an upstream CA must still make (`due`), or will not (`refused`, `impossible`)",
    ["issuer", "state"],
)
CHAIN_DIFFERS = Gauge(
    "ca_signer_upstream_chain_differs",
    "1 where the upstream CA does not present the configured issuer",
    ["issuer"],
)
