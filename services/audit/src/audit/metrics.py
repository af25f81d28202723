"""Prometheus metrics of the audit service."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

RECORDS = Counter("est_audit_records", "Records appended", ["phase"])
DUPLICATES = Counter("est_audit_duplicates", "Records delivered again and left out")
BATCHES = Counter("est_audit_batches", "Transactions that appended records")
BATCH_SECONDS = Histogram(
    "est_audit_append_seconds",
    "Time of one appending transaction",
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
DELAY_SECONDS = Histogram(
    "est_audit_record_delay_seconds",
    "From the oldest record's occurrence to its append, per batch",
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 30, 300, 3600),
)
DEAD_LETTERS = Counter("est_audit_dead_letters", "Messages that were unreadable", ["reason"])
RELOADS = Counter("est_audit_reloads", "Files taken while running", ["what", "result"])
OUTAGES = Counter("est_audit_database_outages", "Times the writer lost the database")
WRITER = Gauge("est_audit_writer", "1 if this process is the writer, 0 if it is on standby")
LOG_SIZE = Gauge("est_audit_log_size", "Records in the log")
INDEXED_SIZE = Gauge("est_audit_indexed_size", "Records whose terms are indexed for searches")
AUDITOR_COMMANDS = Counter(
    "est_audit_auditor_commands", "Commands of auditors answered", ["verb", "code"]
)
CHECKPOINT_SIZE = Gauge("est_audit_checkpoint_size", "Records under the newest checkpoint")
CHECKPOINTS = Counter("est_audit_checkpoints", "Checkpoints signed")
WINDOWS = Counter("est_audit_windows", "Closed windows compared", ["result"])
REANNOUNCE = Counter("est_audit_reannounce_requests", "Windows asked for again")
WITNESS_SIZE = Gauge(
    "est_audit_witness_size", "Size of the newest checkpoint a witness cosigned", ["witness"]
)
COSIGNATURES = Counter("est_audit_cosignatures", "Cosignatures received", ["witness"])
WITNESS_FAULTS = Counter("est_audit_witness_faults", "Attempts without a cosignature", ["witness"])
TIMESTAMPS = Counter("est_audit_timestamps", "Time stamps of checkpoints received", ["authority"])
TIMESTAMP_SIZE = Gauge(
    "est_audit_timestamp_size", "Size of the newest checkpoint with a time stamp", ["authority"]
)
TIMESTAMP_FAULTS = Counter(
    "est_audit_timestamp_faults", "Attempts without a time stamp", ["authority"]
)
SINK_CONNECTED = Gauge("est_audit_sink_connected", "1 while the sink takes messages", ["sink"])
SINK_LAG = Gauge("est_audit_sink_lag_records", "Records not yet sent", ["sink"])
SINK_AGE = Gauge("est_audit_sink_backlog_seconds", "Age of the oldest record not sent", ["sink"])
SINK_SENT = Counter("est_audit_sink_messages", "Messages sent, repeated ones included", ["sink"])
SINK_FAULTS = Counter("est_audit_sink_faults", "Connections refused or broken", ["sink"])
SINK_TRIMMED = Counter("est_audit_sink_trimmed", "Messages sent without bulky members", ["sink"])
SINK_DEAD = Counter("est_audit_sink_dead_letters", "Records a sink cannot carry", ["sink"])
