"""The dashboard of clients: agents of hosts, the probe, and issuers of cert-manager."""

from __future__ import annotations

from estmonitoring.boards import Board, Row, panel, quantiles, rate

AGENTS = Board(
    "agents",
    "EST agents, probe and issuers",
    "Hosts whose certificates the agent keeps, the probe, and issuers of cert-manager.",
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
        Row(
            "Issuers of cert-manager",
            (
                panel(
                    "Not Ready",
                    "short",
                    ("est_issuer_issuer_ready == 0", "{{kind}} {{issuer}}"),
                    stat=True,
                ),
                panel("Leader", "short", ("sum by (instance) (est_issuer_leader)", "{{instance}}")),
                panel("Waiting requests", "short", ("max(est_issuer_waiting)", "waiting")),
                panel(
                    "Requests",
                    "ops",
                    (rate("est_issuer_requests_total", "outcome", "code"), "{{outcome}} {{code}}"),
                ),
                panel(
                    "Time of an enrollment",
                    "s",
                    *quantiles("est_issuer_enrollment_seconds", "operation"),
                ),
            ),
        ),
    ),
)
