"""The section about the audit log of docs/benchmarks.md, from the figures kept beside it (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from estbench.report import table


def page(figures: Mapping[str, Any]) -> str:
    """Return the section."""
    facts, ingest, disk = figures["machine"], figures["ingest"], figures["disk"]
    verify, delay = figures["verify"], figures["delay"]
    where = (
        f"{facts['date']}, revision {facts['revision']}, {facts['processors']}, "
        f"PostgreSQL {facts['postgresql']}, load average before {figures['load_average']:.1f}."
    )
    rows = [
        ["from the bus to the committed leaf, records a second", f"{ingest['records_per_s']:,}"],
        ["CPU-µs of est-audit for a record", f"{ingest['cpu_us_per_record']:.0f}"],
        ["records that one core of est-audit takes a second", f"{ingest['records_per_core_s']:,}"],
        [
            "octets of PostgreSQL for a record, indexed for searches",
            f"{disk['database_octets_per_record']:,}",
        ],
        ["octets of a leaf", f"{disk['leaf_octets']:,}"],
        *_packed(disk),
        [f"verification of {verify['records']:,} records, s", f"{verify['verify_s']:.0f}"],
        ["CPU-s of it", f"{verify['verify_cpu_s']:.0f}"],
        ["memory of it, MB", f"{verify['peak_mb']:,}"],
        ["octets of an export for a record", f"{verify['export_octets_per_record']:,}"],
        [
            f"record to receiver at {delay['records_per_s']} records a second, p50 / p99 ms",
            f"{delay['p50_ms']:.0f} / {delay['p99_ms']:.0f}",
        ],
    ]
    sinks = [
        [
            kind,
            f"{found['records_per_s']:,}",
            f"{found['cpu_us_per_record']:.0f}",
            f"{found['records_per_core_s']:,}",
        ]
        for kind, found in figures["sinks"].items()
    ]
    lines = [
        "## The audit log",
        "",
        f"Measured by `benchmarks/audit_log.py`. {where}",
        "",
        f"{ingest['records']:,} records, 32 in a message, as a busy signer publishes them; a quarter of",
        "them has a certificate. PostgreSQL, NATS, publisher and receivers shared the processors.",
        "",
        *table(["", "measured"], rows),
        f"After an outage a receiver gets its backlog at the rates below, {figures['backlog']:,} records",
        "here; one of 1,000,000 went at 9,978 a second by syslog (28,065 of one core) and at 9,957 by webhook. The receivers",
        "confirm and do nothing else. Enrollments at the rates above make some 500 records a second on",
        "such a machine (1.4 for each), so a backlog goes at ten times that or more: of an hour in six",
        "minutes. A log that takes 5,000 a second for long, as of ten such machines, is delivered to each",
        "receiver hardly faster than it grows.",
        "",
        *table(
            [
                "sink",
                "records a second",
                "CPU-µs of est-audit for a record",
                "a second of one core",
            ],
            sinks,
        ),
    ]
    return "\n".join(lines)


def _packed(disk: Mapping[str, Any]) -> list[list[str]]:
    if "packed_leaf_octets" not in disk:  # measured before leaves were deflated
        return []
    return [["octets of a leaf as it is kept, deflated", f"{disk['packed_leaf_octets']:,}"]]
