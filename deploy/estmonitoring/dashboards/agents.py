"""The dashboard of agents: hosts whose certificates the agent keeps, and the probe."""

from __future__ import annotations

from estmonitoring.boards import Board, Row, panel, quantiles, rate

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
