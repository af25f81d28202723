"""The dashboards of the suite."""

from __future__ import annotations

from estmonitoring.boards import Board, Row, panel, quantiles, rate

_FIRING = 'count by (alertname, severity) (ALERTS{alertstate="firing",alertname=~"EST.*"})'
_NOT_AFTER = "min by (setting) (estsuite_certificate_not_after_seconds{{setting{}}}) - time()"
_OF_ISSUERS = '=~"issuers\\\\..*certificate_file"'
_OF_OTHERS = '!~"issuers\\\\..*"'
_FILLED = "max by (stream) (estsuite_stream_{0}) / max by (stream) (estsuite_stream_limit_{0})"
_QUEUES = '{stream=~"EST_REQUESTS|AUDIT_ISSUE|AUDIT_REFUSAL"}'
_ENROLLING = 'operation=~"simpleenroll|simplereenroll|serverkeygen"'

ENROLLMENT = Board(
    "enrollment",
    "EST enrollment",
    "What clients ask for, what they get, and how long it takes.",
    (
        Row(
            "Objectives",
            (
                panel(
                    "Alerts that fire", "short", (_FIRING, "{{severity}} {{alertname}}"), stat=True
                ),
                panel(
                    "Failed by a fault of the suite, 1 h",
                    "percentunit",
                    ("estsuite:enrollment_errors:ratio_rate1h", "failed"),
                    stat=True,
                    about="The objective is one in a thousand. 202 is good: the client asks again.",
                ),
                panel(
                    "Slower than 2.5 s, 1 h",
                    "percentunit",
                    ("estsuite:enrollment_slow:ratio_rate1h", "slow"),
                    stat=True,
                    about="The objective is one in a hundred.",
                ),
                panel(
                    "Certificates issued, 24 h",
                    "short",
                    ("sum(increase(ca_signer_issued_total[24h]))", "issued"),
                    stat=True,
                ),
                panel(
                    "In hand", "short", ("sum(est_frontend_in_flight)", "enrollments"), stat=True
                ),
            ),
        ),
        Row(
            "Requests",
            (
                panel(
                    "Answers by status",
                    "reqps",
                    (
                        rate("est_frontend_requests_total", "operation", "status"),
                        "{{operation}} {{status}}",
                    ),
                    stacked=True,
                ),
                panel(
                    "Time to the answer",
                    "s",
                    *quantiles("est_frontend_request_seconds", matching=_ENROLLING),
                ),
                panel(
                    "Refused, by code",
                    "reqps",
                    (rate("est_frontend_refused_total", "code"), "{{code}}"),
                    about="docs/operations/errors.md says what each code means.",
                ),
                panel(
                    "Rejected by ca-signer, by code",
                    "ops",
                    (rate("ca_signer_rejected_total", "code"), "{{code}}"),
                ),
            ),
        ),
        Row(
            "On the way to the signature",
            (
                panel(
                    "Waiting in the stream",
                    "s",
                    *quantiles("ca_signer_queue_seconds"),
                    about="From arrival in EST_REQUESTS to the batch that takes it.",
                ),
                panel("A batch", "s", *quantiles("ca_signer_batch_seconds")),
                panel(
                    "Requests in a batch, mean",
                    "short",
                    (
                        " / ".join(
                            rate(f"ca_signer_batch_size_{part}") for part in ("sum", "count")
                        ),
                        "requests",
                    ),
                ),
                panel(
                    "Put back, by code",
                    "ops",
                    (rate("ca_signer_delayed_total", "code"), "{{code}}"),
                    about="Any rate means that something is unavailable.",
                ),
                panel(
                    "Issued, by profile",
                    "ops",
                    (rate("ca_signer_issued_total", "issuer", "profile"), "{{issuer}} {{profile}}"),
                    stacked=True,
                ),
                panel(
                    "Repeated requests",
                    "ops",
                    (rate("ca_signer_repeated_total"), "answered with the stored certificate"),
                ),
            ),
        ),
        Row(
            "The edge",
            (
                panel(
                    "Connections",
                    "short",
                    ("sum by (instance) (est_frontend_connections)", "{{instance}} open"),
                    ("sum by (instance) (est_frontend_handshakes)", "{{instance}} in handshake"),
                ),
                panel(
                    "Connections ended by a limit",
                    "ops",
                    (rate("est_frontend_connections_cut_total", "why"), "{{why}}"),
                ),
                panel(
                    "Passwords checked",
                    "ops",
                    (rate("est_frontend_password_hashes_total"), "hashes"),
                ),
                panel(
                    "Keys of token issuers fetched",
                    "ops",
                    (
                        rate("est_frontend_jwks_fetches_total", "issuer", "result"),
                        "{{issuer}} {{result}}",
                    ),
                ),
            ),
        ),
    ),
)

RENEWAL = Board(
    "renewal",
    "EST renewal and expiry",
    "What is due, what is renewed in time, and what is not.",
    (
        Row(
            "Now",
            (
                panel(
                    "Expired without a successor, 24 h",
                    "short",
                    ('sum(increase(est_renewal_steps_total{step="expired"}[24h]))', "certificates"),
                    stat=True,
                ),
                panel(
                    "Less than a tenth of the lifetime left",
                    "short",
                    ('max(est_renewal_slots_short{share="0.10"})', "certificates"),
                    stat=True,
                ),
                panel(
                    "Oldest renewal not announced",
                    "s",
                    ("max(est_renewal_oldest_due_seconds)", "age"),
                    stat=True,
                ),
                panel(
                    "Agents that need a person",
                    "short",
                    ("sum(est_agent_needs_attention)", "agents"),
                    stat=True,
                ),
            ),
        ),
        Row(
            "Rotations",
            (
                panel(
                    "Slots by state",
                    "short",
                    ("max by (state) (est_renewal_slots)", "{{state}}"),
                    stacked=True,
                ),
                panel(
                    "Announced as due, by priority",
                    "ops",
                    (rate("est_renewal_dispatched_total", "priority"), "{{priority}}"),
                ),
                panel("Steps", "ops", (rate("est_renewal_steps_total", "step"), "{{step}}")),
                panel(
                    "From due to proven in use",
                    "s",
                    *quantiles("est_renewal_due_to_activated_seconds"),
                ),
                panel(
                    "Proofs of use",
                    "ops",
                    (rate("est_renewal_proofs_total", "outcome"), "{{outcome}}"),
                ),
                panel(
                    "Not renewed in time",
                    "ops",
                    (rate("est_renewal_leases_lapsed_total"), "leases lapsed"),
                ),
            ),
        ),
        Row(
            "Expiry",
            (
                panel(
                    "Good certificates that end soon",
                    "short",
                    (
                        "max by (profile, within) (ca_signer_certificates_expiring)",
                        "{{profile}} within {{within}}",
                    ),
                ),
                panel(
                    "Certificates in the ledger",
                    "short",
                    ("max by (issuer, state) (ca_signer_certificates)", "{{issuer}} {{state}}"),
                    stacked=True,
                ),
            ),
        ),
        Row(
            "Renewal information",
            (
                panel(
                    "Entries not read yet",
                    "short",
                    ("max by (instance) (est_frontend_renewal_info_lag)", "{{instance}}"),
                ),
                panel(
                    "Compared with the stream",
                    "s",
                    ("max by (instance) (est_frontend_renewal_info_age_seconds)", "{{instance}}"),
                ),
                panel(
                    "Entries published", "ops", (rate("est_renewal_info_entries_total"), "entries")
                ),
                panel(
                    "Events stored",
                    "ops",
                    (rate("est_renewal_projected_total", "kind"), "{{kind}}"),
                ),
            ),
        ),
        Row(
            "Campaigns",
            (
                panel("Campaigns", "short", ("max by (state) (ca_signer_campaigns)", "{{state}}")),
                panel(
                    "Certificates of campaigns",
                    "short",
                    ("max by (state) (ca_signer_campaign_members)", "{{state}}"),
                ),
            ),
        ),
    ),
)

CA = Board(
    "ca",
    "EST CA and key stores",
    "Issuers, their keys, revocation lists, OCSP and upstream CAs.",
    (
        Row(
            "Now",
            (
                panel(
                    "CA certificates end in",
                    "d",
                    (
                        f"({_NOT_AFTER.format(_OF_ISSUERS)}) / 86400",
                        "{{setting}}",
                    ),
                    stat=True,
                ),
                panel(
                    "Other certificates of the suite end in",
                    "d",
                    (
                        f"({_NOT_AFTER.format(_OF_OTHERS)}) / 86400",
                        "{{setting}}",
                    ),
                    stat=True,
                ),
                panel(
                    "Revocation lists end in",
                    "s",
                    ("min by (issuer) (ca_signer_crl_next_update_seconds) - time()", "{{issuer}}"),
                    stat=True,
                ),
                panel(
                    "Issuers that sign",
                    "short",
                    (
                        "max by (family, issuer) (ca_signer_generation_signing)",
                        "{{family}} {{issuer}}",
                    ),
                    stat=True,
                ),
            ),
        ),
        Row(
            "Key stores",
            (
                panel(
                    "One signature of a token",
                    "s",
                    *quantiles("ca_signer_token_signature_seconds", "token"),
                ),
                panel(
                    "Signatures waited for",
                    "short",
                    ("max by (token) (ca_signer_token_queue)", "{{token}}"),
                ),
                panel(
                    "Circuit of a token",
                    "short",
                    ("max by (token) (ca_signer_token_breaker)", "{{token}}"),
                    about="0 closed, 1 half open, 2 open, 3 PIN refused.",
                ),
                panel(
                    "Worker processes restarted",
                    "ops",
                    (rate("ca_signer_token_restarts_total", "token"), "{{token}}"),
                ),
            ),
        ),
        Row(
            "Revocation",
            (
                panel(
                    "Age of the oldest current list",
                    "s",
                    ("time() - min by (issuer) (ca_signer_crl_this_update_seconds)", "{{issuer}}"),
                ),
                panel(
                    "Lists made", "ops", (rate("ca_signer_crl_made_total", "issuer"), "{{issuer}}")
                ),
                panel(
                    "OCSP answers of ca-signer",
                    "ops",
                    (rate("ca_signer_ocsp_total", "issuer", "status"), "{{issuer}} {{status}}"),
                ),
                panel(
                    "OCSP requests at front ends",
                    "ops",
                    (rate("est_frontend_ocsp_total", "source"), "{{source}}"),
                    (rate("est_frontend_ocsp_limited_total"), "limited"),
                ),
                panel(
                    "Revoked by bulk revocations",
                    "ops",
                    (rate("ca_signer_bulk_revoked_total"), "certificates"),
                ),
                panel(
                    "Commands of operators",
                    "ops",
                    (rate("ca_signer_commands_total", "verb", "code"), "{{verb}} {{code}}"),
                ),
            ),
        ),
        Row(
            "Upstream CAs",
            (
                panel("Time of an answer", "s", *quantiles("ca_signer_upstream_seconds", "issuer")),
                panel(
                    "Requests, by outcome",
                    "ops",
                    (
                        rate("ca_signer_upstream_calls_total", "issuer", "outcome"),
                        "{{issuer}} {{outcome}}",
                    ),
                ),
                panel(
                    "On their way",
                    "short",
                    (
                        "max by (issuer, state) (ca_signer_upstream_submissions)",
                        "{{issuer}} {{state}}",
                    ),
                ),
                panel(
                    "Circuit",
                    "short",
                    ("max by (issuer) (ca_signer_upstream_breaker)", "{{issuer}}"),
                    about="0 closed, 1 half open, 2 open.",
                ),
            ),
        ),
    ),
)

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

BUS = Board(
    "bus",
    "EST bus, database and processes",
    "NATS streams and consumers, PostgreSQL as the services see it, and the processes themselves.",
    (
        Row(
            "Now",
            (
                panel(
                    "Alerts that fire", "short", (_FIRING, "{{severity}} {{alertname}}"), stat=True
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

AGENTS = Board(
    "agents",
    "EST agents and probe",
    "Hosts whose certificates the agent keeps, and the probe that enrolls as a client does.",
    (
        Row(
            "Agents",
            (
                panel(
                    "Need a person",
                    "short",
                    ("est_agent_needs_attention == 1", "{{instance}} {{definition}}"),
                    stat=True,
                ),
                panel(
                    "Definitions",
                    "short",
                    ("sum by (result) (est_agent_definitions)", "{{result}}"),
                    stat=True,
                ),
                panel(
                    "States",
                    "short",
                    ("sum by (state) (est_agent_state)", "{{state}}"),
                    stacked=True,
                ),
                panel(
                    "Certificate ends in",
                    "d",
                    (
                        "bottomk(20, (est_agent_certificate_not_after_seconds - time()) / 86400)",
                        "{{instance}} {{definition}}",
                    ),
                    about="The twenty that end first.",
                ),
                panel(
                    "Attempts", "ops", (rate("est_agent_attempts_total", "outcome"), "{{outcome}}")
                ),
                panel(
                    "Since the last certificate",
                    "d",
                    (
                        "topk(20, (time() - est_agent_last_success_seconds) / 86400)",
                        "{{instance}} {{definition}}",
                    ),
                ),
                panel(
                    "Clock",
                    "s",
                    (
                        "topk(20, abs(est_agent_clock_offset_seconds))",
                        "{{instance}} {{definition}}",
                    ),
                ),
            ),
        ),
        Row(
            "Probe",
            (
                panel(
                    "Last complete round",
                    "s",
                    ("max(estctl_probe_last_complete_age_seconds)", "ago"),
                    stat=True,
                ),
                panel(
                    "Steps of the last round",
                    "bool_yes_no",
                    ("min by (step) (estctl_probe_step_ok)", "{{step}}"),
                    stat=True,
                ),
                panel("Rounds", "ops", (rate("estctl_probe_rounds_total", "result"), "{{result}}")),
                panel(
                    "Failed steps",
                    "ops",
                    (rate("estctl_probe_step_failures_total", "step", "code"), "{{step}} {{code}}"),
                ),
                panel("Time of a step", "s", *quantiles("estctl_probe_step_seconds", "step")),
            ),
        ),
    ),
)

BOARDS = (ENROLLMENT, RENEWAL, CA, AUDIT, BUS, AGENTS)
