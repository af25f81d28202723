"""Prometheus metrics of `estctl agent`, by definition."""

from __future__ import annotations

import datetime as dt

from prometheus_client import Counter, Gauge

from estclient.agent.progress import STATES, Progress

NOT_AFTER = Gauge(
    "est_agent_certificate_not_after_seconds",
    "End of the certificate, seconds since 1970",
    ["definition"],
)
NOT_BEFORE = Gauge(
    "est_agent_certificate_not_before_seconds",
    "Beginning of the certificate, seconds since 1970",
    ["definition"],
)
STATE = Gauge("est_agent_state", "1 for the state of the definition", ["definition", "state"])
NEEDS_ATTENTION = Gauge(
    "est_agent_needs_attention", "1 while only an operator can help", ["definition"]
)
LAST_SUCCESS = Gauge(
    "est_agent_last_success_seconds",
    "When a certificate was last received, seconds since 1970",
    ["definition"],
)
ATTEMPTS = Counter(
    "est_agent_attempts_total",
    "Certificates received and attempts that failed; outcome: received, failed",
    ["definition", "outcome"],
)
CLOCK_OFFSET = Gauge(
    "est_agent_clock_offset_seconds", "The server's time minus the machine's", ["definition"]
)
DEFINITIONS = Gauge("est_agent_definitions", "Definitions by whether they can be used", ["result"])

_BY_DEFINITION = (NOT_AFTER, NOT_BEFORE, NEEDS_ATTENTION, LAST_SUCCESS, CLOCK_OFFSET)
_OUTCOMES = ("received", "failed")


def observe(name: str, progress: Progress, counted: tuple[int, int]) -> tuple[int, int]:
    """Show the state of a definition; returns what has been counted of it by now."""
    for state in STATES:
        STATE.labels(name, state).set(state == progress.state)
    NEEDS_ATTENTION.labels(name).set(progress.state == "needs attention")
    if progress.bundle is not None:
        certificate = progress.bundle.certificate
        NOT_AFTER.labels(name).set(_seconds(certificate.not_valid_after_utc))
        NOT_BEFORE.labels(name).set(_seconds(certificate.not_valid_before_utc))
    if progress.last_success is not None:
        LAST_SUCCESS.labels(name).set(_seconds(progress.last_success))
    if progress.clock_offset_s is not None:
        CLOCK_OFFSET.labels(name).set(progress.clock_offset_s)
    now = progress.enrollments, progress.failures
    for outcome, before, after in zip(_OUTCOMES, counted, now, strict=True):
        ATTEMPTS.labels(name, outcome).inc(max(after - before, 0))
    return now


def forget(name: str) -> None:
    """Remove a definition that is gone."""
    for gauge in _BY_DEFINITION:
        _remove(gauge, name)
    for state in STATES:
        _remove(STATE, name, state)
    for outcome in _OUTCOMES:
        _remove(ATTEMPTS, name, outcome)


def _remove(metric: Gauge | Counter, *labels: str) -> None:
    try:
        metric.remove(*labels)
    except KeyError:
        return


def _seconds(moment: dt.datetime) -> float:
    return moment.timestamp()
