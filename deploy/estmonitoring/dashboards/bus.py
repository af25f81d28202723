"""The dashboard of bus: streams, consumers, the database and the processes."""

from __future__ import annotations

from estmonitoring.boards import FIRING, Board, Row, panel, rate

_FILLED = "max by (stream) (estsuite_stream_{0}) / max by (stream) (estsuite_stream_limit_{0})"
_QUEUES = '{stream=~"EST_REQUESTS|AUDIT_ISSUE|AUDIT_REFUSAL"}'

BUS = Board(
    "bus",
    "EST bus, database and processes",
    "NATS streams and consumers, PostgreSQL as the services see it, and the processes themselves.",
    (
        Row(
            "Now",
            (
                panel(
                    "Alerts that fire", "short", (FIRING, "{{severity}} {{alertname}}"), stat=True
                ),
                panel(
                    "Not ready",
                    "short",
                    ("count by (instance, check) (estsuite_ready == 0)", "{{instance}} {{check}}"),
                    stat=True,
                ),
                panel(
                    "Streams writable",
                    "bool_yes_no",
                    ("min by (instance) (estsuite_streams_writable)", "{{instance}}"),
                    stat=True,
                ),
                panel(
                    "Clocks",
                    "s",
                    ("max by (instance) (estsuite_clock_offset_seconds)", "{{instance}}"),
                    stat=True,
                ),
                panel(
                    "Versions",
                    "short",
                    (
                        "count by (service, version, python) (estsuite_build_info)",
                        "{{service}} {{version}} Python {{python}}",
                    ),
                    stat=True,
                ),
            ),
        ),
        Row(
            "Streams",
            (
                panel(
                    "Messages",
                    "short",
                    ("max by (stream) (estsuite_stream_messages)", "{{stream}}"),
                ),
                panel(
                    "Filled",
                    "percentunit",
                    (
                        _FILLED.format("bytes"),
                        "{{stream}} octets",
                    ),
                    (
                        _FILLED.format("messages"),
                        "{{stream}} messages",
                    ),
                ),
                panel(
                    "Oldest message of a work queue",
                    "s",
                    (
                        f"max by (stream) (estsuite_stream_oldest_seconds{_QUEUES})",
                        "{{stream}}",
                    ),
                ),
                panel(
                    "Storage of all streams",
                    "bytes",
                    ("sum(max by (stream) (estsuite_stream_bytes))", "one replica"),
                ),
                panel(
                    "Not sent to a consumer",
                    "short",
                    (
                        "max by (stream, consumer) (estsuite_consumer_pending)",
                        "{{stream}} {{consumer}}",
                    ),
                ),
                panel(
                    "Sent and not acknowledged",
                    "short",
                    (
                        "max by (stream, consumer) (estsuite_consumer_unacknowledged)",
                        "{{stream}} {{consumer}}",
                    ),
                    (
                        "max by (stream, consumer) (estsuite_consumer_redelivered)",
                        "{{stream}} {{consumer}} again",
                    ),
                ),
                panel(
                    "Messages refused",
                    "ops",
                    (
                        rate("estsuite_messages_refused_total", "instance", "code"),
                        "{{instance}} {{code}}",
                    ),
                    about="Not signed, or not by a sender with the right to their topic.",
                ),
                panel(
                    "Given up",
                    "ops",
                    (rate("ca_signer_dead_letters_total", "code"), "ca-signer {{code}}"),
                    (rate("est_renewal_dead_letters_total", "reason"), "renewal {{reason}}"),
                    (rate("est_audit_dead_letters_total", "reason"), "audit {{reason}}"),
                ),
            ),
        ),
        Row(
            "Processes",
            (
                panel(
                    "CPU",
                    "percentunit",
                    (
                        'rate(process_cpu_seconds_total{job=~".*estsuite.*"}[$__rate_interval])',
                        "{{instance}}",
                    ),
                    about="1 is one core.",
                ),
                panel(
                    "Memory",
                    "bytes",
                    ('process_resident_memory_bytes{job=~".*estsuite.*"}', "{{instance}}"),
                ),
                panel(
                    "Open files", "short", ('process_open_fds{job=~".*estsuite.*"}', "{{instance}}")
                ),
                panel(
                    "Database lost by est-audit",
                    "ops",
                    (rate("est_audit_database_outages_total"), "outages"),
                ),
            ),
        ),
    ),
)
