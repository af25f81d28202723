"""The page of figures, from results: tables, ratios, and nothing that was not measured."""

from __future__ import annotations

from estbench import report
from estbench.results import Measurement, Results

MACHINE = {
    "date": "2026-11-29",
    "revision": "abc",
    "processors": "2 × CPU",
    "kernel": "6",
    "interpreter": "CPython 3.11",
    "openssl": "OpenSSL 3",
    "postgresql": "18",
    "nats_server": "2.15",
}


def row(server: str, cpu_ms: dict[str, float], **changes: object) -> Measurement:
    fields: dict[str, object] = {
        "server": server,
        "operation": "enroll",
        "connections": "keepalive",
        "c": 16,
        "round": 0,
        "done": 220,
        "errors": 0,
        "per_s": 400.0,
        "p50_ms": 38.2,
        "p99_ms": 60.0,
        "cpu_ms": cpu_ms,
    }
    return Measurement.model_validate(fields | changes)


def results(*measurements: Measurement, **changes: object) -> Results:
    fields: dict[str, object] = {
        "machine": MACHINE,
        "versions": {"step-ca": "v0.30.2"},
        "verify_per_s": 12000.0,
        "load_average": 0.1,
        "rounds": 2,
        "requests": {16: 200},
        "quick": False,
        "measurements": list(measurements),
    }
    return Results.model_validate(fields | changes)


SUITE = row("suite", {"signer": 2.0, "PostgreSQL": 1.0})
PEER = row("step-ca + PostgreSQL", {"step-ca": 4.0, "PostgreSQL": 2.0})


def test_a_row_has_every_server_and_the_ratios() -> None:
    second = row("suite", {"signer": 1.6, "PostgreSQL": 0.6}, round=1)
    page = report.page(results(SUITE, PEER, second))
    assert (
        "| connections | c | suite | step-ca + PostgreSQL | suite / step-ca + PostgreSQL |" in page
    )
    assert "| keep-alive | 16 | 2.60 (2.20) | 6.00 (6.00) | 0.4 |" in page
    assert "| keep-alive | 16 | 400, 38.2 / 60.0 | 400, 38.2 / 60.0 |" in page


def test_a_load_that_was_not_measured_has_no_figure() -> None:
    page = report.page(results(SUITE, PEER))
    assert "| new | 16 | – | – | – |" in page


def test_the_cost_is_shown_by_service() -> None:
    page = report.page(results(SUITE, PEER))
    assert "| connections | c | signer | PostgreSQL |" in page
    assert "| keep-alive | 16 | 2.00 | 1.00 |" in page


def test_re_enrollment_is_set_against_first_enrollment() -> None:
    again = row("suite", {"signer": 4.0, "PostgreSQL": 2.0}, operation="reenroll")
    page = report.page(results(SUITE, again))
    assert "| re-enrollment | keep-alive | 6.00 (6.00) | 2.0 |" in page


def test_errors_of_every_row_are_reported() -> None:
    page = report.page(results(SUITE, row("suite", {"signer": 1.0}, errors=3, round=1)))
    assert "| errors | 3 |" in page


def test_counters_that_a_server_does_not_have_are_left_open() -> None:
    counted = [
        row("suite", {"signer": 1.0}, counts={"audit_records": 4.0, "wal_bytes": 16500.0}),
        row("step-ca + PostgreSQL", {"step-ca": 1.0}, counts={"wal_bytes": 1700.0}),
    ]
    page = report.page(results(SUITE, PEER, counted=[m.model_dump() for m in counted]))
    assert "| audit records | 4.00 | – |" in page
    assert "| WAL octets | 16,500 | 1,700 |" in page


def test_large_tables_are_only_on_the_page_where_they_were_measured() -> None:
    assert "## With large tables" not in report.page(results(SUITE))
    counts = {"wal_full_pages": 9.4, "wal_bytes": 66000.0}
    growth = [
        row("suite", {"signer": 1.0, "PostgreSQL": ms}, rows=rows, counts=counts).model_dump()
        for rows, ms in ((10_000, 0.6), (1_000_000, 2.3))
    ]
    page = report.page(results(SUITE, growth=growth))
    assert "| 10,000 | later | 1.60 (1.60) | 0.60 |" in page
    assert "| 1,000,000 | later | 3.30 (3.30) | 2.30 |" in page


def test_what_TLS_negotiated_is_shown_by_server() -> None:
    ours = row("suite", {"signer": 1.0}, tls="TLS 1.3 A")
    others = [row(name, {"server": 1.0}, tls="TLS 1.3 B") for name in ("OpenBao", "Go mock")]
    page = report.page(results(ours, *others))
    assert "| TLS | suite: TLS 1.3 A; OpenBao, Go mock: TLS 1.3 B |" in page


def test_results_survive_the_file() -> None:
    found = results(SUITE, PEER)
    assert Results.model_validate_json(found.model_dump_json()) == found
