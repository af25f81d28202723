"""Metrics of the probe."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

LAST_COMPLETE = Gauge(
    "estctl_probe_last_complete_timestamp_seconds",
    "end of the last round without a failure, Unix time; 0 before the first",
)
LAST_COMPLETE_AGE = Gauge(
    "estctl_probe_last_complete_age_seconds",
    "since the last round without a failure, or since the start before the first",
)
ROUNDS = Counter("estctl_probe_rounds", "rounds ended: complete, failed", ["result"])
STEP_SECONDS = Histogram("estctl_probe_step_seconds", "duration of a step that was run", ["step"])
STEP_FAILURES = Counter("estctl_probe_step_failures", "steps failed", ["step", "code"])
STEP_OK = Gauge(
    "estctl_probe_step_ok",
    "1 where the step of the last round succeeded, 0 where it failed or was not run",
    ["step"],
)
