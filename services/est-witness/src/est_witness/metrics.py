"""Prometheus metrics of the witness."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

REQUESTS = Counter("est_witness_requests", "Requests for a cosignature, by their answer", ["code"])
SIZE = Gauge("est_witness_log_size", "Size of the newest checkpoint that was cosigned", ["origin"])
FORKS = Counter(
    "est_witness_forks", "Checkpoints that contradict what was seen of their log", ["origin"]
)
