"""The dashboard of audit: records from their occurrence to the log, witnesses and every sink."""

from __future__ import annotations

from estmonitoring.boards import Board, Row, panel, quantiles, rate

AUDIT = Board(
    "audit",
    "EST audit and SIEM",
    "Records from their occurrence to the log, its checkpoints, witnesses and every sink.",
    (
        Row(
            "Now",
            (
                panel(
                    "Records in the log", "short", ("max(est_audit_log_size)", "records"), stat=True
                ),
                panel(
                    "Not under a checkpoint",
                    "short",
                    ("max(est_audit_log_size) - max(est_audit_checkpoint_size)", "records"),
                    stat=True,
                ),
                panel(
                    "Replicas that write",
                    "short",
                    ("sum(est_audit_writer)", "writers"),
                    stat=True,
                    about="One, at every moment.",
                ),
                panel(
                    "Oldest record not sent",
                    "s",
                    ("max by (sink) (est_audit_sink_backlog_seconds)", "{{sink}}"),
                    stat=True,
                ),
            ),
        ),
        Row(
            "The log",
            (
                panel(
                    "Records appended",
                    "ops",
                    (rate("est_audit_records_total", "phase"), "{{phase}}"),
                    stacked=True,
                ),
                panel(
                    "From occurrence to the log", "s", *quantiles("est_audit_record_delay_seconds")
                ),
                panel("One appending transaction", "s", *quantiles("est_audit_append_seconds")),
                panel(
                    "Records kept by front ends",
                    "short",
                    ("sum by (instance) (est_frontend_spooled_records)", "{{instance}}"),
                ),
                panel(
                    "Checkpoints signed",
                    "ops",
                    (rate("est_audit_checkpoints_total"), "checkpoints"),
                ),
                panel(
                    "Witnesses behind the newest checkpoint",
                    "short",
                    (
                        "max(est_audit_checkpoint_size)"
                        " - on () group_right () max by (witness) (est_audit_witness_size)",
                        "{{witness}}",
                    ),
                ),
                panel(
                    "Records after the newest time stamp",
                    "short",
                    (
                        "max(est_audit_checkpoint_size)"
                        " - on () group_right () max by (authority) (est_audit_timestamp_size)",
                        "{{authority}}",
                    ),
                ),
                panel(
                    "Time stamps",
                    "ops",
                    (rate("est_audit_timestamps_total", "authority"), "{{authority}}"),
                    (rate("est_audit_timestamp_faults_total", "authority"), "none: {{authority}}"),
                ),
                panel(
                    "Not indexed for searches yet",
                    "short",
                    ("max(est_audit_log_size) - max(est_audit_indexed_size)", "records"),
                ),
                panel(
                    "Commands of auditors",
                    "ops",
                    (rate("est_audit_auditor_commands_total", "verb", "code"), "{{verb}} {{code}}"),
                ),
                panel(
                    "Requests at witnesses",
                    "ops",
                    (rate("est_witness_requests_total", "code"), "{{code}}"),
                    (rate("est_witness_forks_total"), "forks refused"),
                ),
                panel(
                    "Size a witness knows",
                    "short",
                    ("est_witness_log_size", "{{instance}} {{origin}}"),
                ),
                panel(
                    "Windows compared with the ledger",
                    "ops",
                    (rate("est_audit_windows_total", "result"), "{{result}}"),
                ),
                panel(
                    "Dead letters",
                    "ops",
                    (rate("est_audit_dead_letters_total", "reason"), "{{reason}}"),
                ),
            ),
        ),
        Row(
            "Sinks",
            (
                panel(
                    "Connected",
                    "bool_yes_no",
                    ("max by (sink) (est_audit_sink_connected)", "{{sink}}"),
                    stat=True,
                ),
                panel(
                    "Records not sent",
                    "short",
                    ("max by (sink) (est_audit_sink_lag_records)", "{{sink}}"),
                ),
                panel(
                    "Messages sent",
                    "ops",
                    (rate("est_audit_sink_messages_total", "sink"), "{{sink}}"),
                ),
                panel(
                    "Faults",
                    "ops",
                    (rate("est_audit_sink_faults_total", "sink"), "{{sink}} faults"),
                    (rate("est_audit_sink_dead_letters_total", "sink"), "{{sink}} dead letters"),
                    (rate("est_audit_sink_trimmed_total", "sink"), "{{sink}} trimmed"),
                ),
            ),
        ),
    ),
)
