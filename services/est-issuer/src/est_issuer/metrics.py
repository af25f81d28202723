"""Prometheus metrics of the issuer."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter(
    "est_issuer_requests",
    "Answers to certificate requests: issued, later, refused, denied, invalid; with the code",
    ["outcome", "code"],
)
WAITING = Gauge("est_issuer_waiting", "Approved requests that have no outcome yet")
ISSUERS_READY = Gauge(
    "est_issuer_issuer_ready", "1 while an issuer is Ready, 0 while it is not", ["kind", "issuer"]
)
ENROLLMENT_S = Histogram(
    "est_issuer_enrollment_seconds",
    "Duration of one enrollment at an EST server, in seconds",
    ["operation"],
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
)
LEADER = Gauge("est_issuer_leader", "1 while this replica is the leader")
