"""Arithmetic of the benchmarks: medians over rounds, counters per request, CPU time of processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from estbench.counters import metric
from estbench.processes import cpu_s, pss_mb
from estbench.results import Measurement, added, per_request, summary
from estcore.clock import monotonic_s


def measurement(
    round: int = 0, cpu_ms: dict[str, float] | None = None, **changes: object
) -> Measurement:
    fields: dict[str, object] = {
        "server": "suite",
        "operation": "enroll",
        "connections": "new",
        "c": 16,
        "round": round,
        "done": 220,
        "errors": 0,
        "per_s": 100.0,
        "p50_ms": 50.0,
        "p99_ms": 90.0,
        "cpu_ms": cpu_ms or {"signer": 1.0, "NATS": 0.5},
    }
    return Measurement.model_validate(fields | changes)


def test_a_summary_has_the_median_of_the_rounds_and_the_smallest_total() -> None:
    rounds = [
        measurement(0, {"signer": 9.0, "NATS": 1.0}, per_s=50.0),
        measurement(1, {"signer": 2.0, "NATS": 0.5}, per_s=120.0),
        measurement(2, {"signer": 3.0, "NATS": 0.7}, per_s=110.0, errors=2),
    ]
    found = summary(rounds, server="suite", c=16)
    assert found is not None
    assert found.cpu_ms == pytest.approx(3.7)
    assert found.cpu_ms_min == pytest.approx(2.5)
    assert found.parts == {"signer": 3.0, "NATS": 0.7}
    assert found.per_s == 110.0
    assert found.errors == 2


def test_rows_of_other_loads_do_not_count() -> None:
    rounds = [measurement(per_s=50.0), measurement(per_s=900.0, connections="keepalive")]
    found = summary(rounds, connections="new")
    assert found is not None
    assert found.per_s == 50.0
    assert summary(rounds, connections="new", c=64) is None


def test_counters_are_per_request_without_what_an_idle_server_adds() -> None:
    before = {"transactions": 100.0, "audit_records": 7.0}
    after = {"transactions": 350.0, "audit_records": 407.0}
    counted = added(before, after)
    assert per_request(counted, 100, {"transactions": 50.0}) == {
        "transactions": 2.0,
        "audit_records": 4.0,
    }


def test_idle_work_never_makes_a_counter_negative() -> None:
    assert per_request({"wal_fsyncs": 1.0}, 10, {"wal_fsyncs": 3.0}) == {"wal_fsyncs": 0.0}


def test_the_batch_is_requests_by_number_of_batches() -> None:
    counted = {"batch_sum": 90.0, "batch_count": 20.0, "wal_bytes": 300.0}
    assert per_request(counted, 30, {}) == {"wal_bytes": 10.0, "batch": 4.5}


def test_a_metric_is_the_sum_over_its_labels() -> None:
    text = (
        "# HELP issued_total certificates\n"
        'issued_total{issuer="a"} 3.0\n'
        'issued_total{issuer="b"} 4.0\n'
        "issued_total_created 9.0\n"
        "batch_sum 12.5\n"
    )
    assert metric(text, "issued_total") == 7.0
    assert metric(text, "batch_sum") == 12.5
    assert metric(text, "absent") == 0.0


def test_cpu_time_has_that_of_a_process_and_of_children_that_ended() -> None:
    began = cpu_s(os.getpid())
    until = monotonic_s() + 0.03
    while monotonic_s() < until:
        pass
    own = cpu_s(os.getpid())
    assert own > began
    busy = "import time\nwhile time.process_time() < 0.06: pass"
    subprocess.run([sys.executable, "-c", busy], check=True)
    assert cpu_s(os.getpid()) - own >= 0.03


def test_a_process_that_is_gone_costs_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert cpu_s(process.pid) == 0.0
    assert pss_mb(process.pid) == 0.0
    assert pss_mb(os.getpid()) > 1.0
