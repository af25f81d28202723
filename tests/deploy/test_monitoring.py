"""Dashboards, console pages and rules name only what exists, and are those of their sources."""

from __future__ import annotations

from pathlib import Path

import pytest
import render_monitoring
from estmonitoring import names
from estmonitoring.dashboards import BOARDS
from page_generators import alerts, metrics

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy" / "monitoring" / "rules"
RUNBOOKS = ROOT / "docs" / "operations" / "runbooks"
_OF_PROMETHEUS = {"estsuite_docs"}


def _expressions() -> list[str]:
    return [q.expression for board in BOARDS for p in board.panels for q in p.queries]


def test_the_files_are_those_that_would_be_made() -> None:
    assert render_monitoring.differing() == []


def test_every_expression_names_metrics_that_a_service_has() -> None:
    in_rules, recorded = names.in_rules(RULES)
    known = metrics.names() | _OF_PROMETHEUS
    assert names.unknown([*_expressions(), *in_rules], known, recorded) == []


@pytest.mark.parametrize(
    "expression",
    ["rate(est_frontend_request_total[5m])", "estsuite:enrolment_errors:ratio_rate5m > 1"],
)
def test_a_name_that_no_service_has_is_noticed(expression: str) -> None:
    _, recorded = names.in_rules(RULES)
    assert names.unknown([expression], metrics.names(), recorded)


def test_every_metric_of_a_service_is_on_a_dashboard_or_in_a_rule() -> None:
    """A metric that is not looked at costs memory in every Prometheus; each exception says why."""
    in_rules, _ = names.in_rules(RULES)
    text = " ".join([*_expressions(), *in_rules])
    unused = {name for name in metrics.names() if name not in text}
    assert unused == {
        # For a closer look once something else is wrong.
        "ca_signer_abandoned_total",
        "ca_signer_campaign_requested_total",
        "ca_signer_campaign_revoked_total",
        "ca_signer_resumed_total",
        "ca_signer_token_failures_total",
        "ca_signer_waiting",
        "est_audit_batches_total",
        "est_audit_duplicates_total",
        "est_audit_reannounce_requests_total",
        "est_frontend_early_polls_total",
        "est_frontend_renewal_info_applied_total",
        "est_frontend_renewal_info_entries",
        "est_frontend_state_updates_total",
        "est_frontend_trust_fetches_total",
        "est_renewal_batch_seconds",
        "est_renewal_info_republished_total",
        "est_renewal_windows_checked_total",
        "est_renewal_windows_different_total",
        "est_renewal_windows_requested_total",
        "estctl_probe_last_complete_timestamp_seconds",
    }


def test_every_alert_has_a_page_that_exists() -> None:
    for alert in alerts.alerts():
        page = RUNBOOKS / f"{alerts.runbook(alert)}.md"
        assert page.is_file(), (alert["alert"], page.name)
