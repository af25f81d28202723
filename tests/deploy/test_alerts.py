"""Every alert fires for the fault it is for, and is silent for what is normal.

Checked by ``promtool test rules`` of Prometheus itself. Each case is the smallest set of series:
``values`` as promtool writes them (``0x5`` is a zero and five more, ``0+1x5`` counts up).
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from estsuite_testing.debian import debian_packages

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy" / "monitoring" / "rules"
ALERTS = {
    rule["alert"]: rule
    for group in yaml.safe_load((RULES / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
}
Series = dict[str, str]
DAY = 86_400
FAR, SOON = 400 * DAY, DAY


class Case(NamedTuple):
    """When an alert fires, and what looks alike and must not make it fire."""

    alert: str
    firing: Series
    quiet: Series
    at: str = "30m"
    every: str = "1m"


def _requests(errors: str, good: str) -> Series:
    name = "est_frontend_requests_total"
    return {
        f'{name}{{operation="simpleenroll",status="503",instance="a"}}': errors,
        f'{name}{{operation="simpleenroll",status="200",instance="a"}}': good,
    }


def _slow(fast: str, everything: str) -> Series:
    name = "est_frontend_request_seconds"
    return {
        f'{name}_bucket{{operation="simpleenroll",le="2.5"}}': fast,
        f'{name}_count{{operation="simpleenroll"}}': everything,
    }


def _first(name: str) -> tuple[Series, Series]:
    """Return a counter whose first value is 1, and one that has been 1 for long."""
    return {name: "_x80 1x20"}, {name: "1x200"}


def _ends(setting: str, at: int) -> Series:
    return {f'estsuite_certificate_not_after_seconds{{setting="{setting}"}}': f"{at}x200"}


ISSUER = 'est_issuer_issuer_ready{kind="ESTIssuer",issuer="shop/est"}'
REFUSED_REQUESTS = 'est_issuer_requests_total{outcome="refused",code="client.refused"}'
LEADERS = [f'est_issuer_leader{{job="est-issuer",instance="{i}"}}' for i in "ab"]
UP = 'up{job="estsuite",instance="a"}'
READY = 'estsuite_ready{check="bus",instance="a"}'
OFFSET = 'estsuite_clock_offset_seconds{instance="a"}'
START = 'process_start_time_seconds{job="estsuite",instance="a"}'
RELOADS = 'est_frontend_reloads_total{what="policy",result="refused"}'
OLDEST = 'estsuite_stream_oldest_seconds{{stream="{}"}}'.format
SECRET = 'est_frontend_refused_total{code="auth.secret"}'
JWKS = 'est_frontend_jwks_fetches_total{{issuer="k",result="{}"}}'.format
CUT = 'est_frontend_connections_cut_total{why="waiting",instance="a"}'
THIS, NEXT = (f'ca_signer_crl_{kind}_update_seconds{{issuer="i"}}' for kind in ("this", "next"))
DELAY = "est_audit_record_delay_seconds_bucket"
SIZE, SEALED = "est_audit_log_size", "est_audit_checkpoint_size"
SIGNED = "est_audit_checkpoints_total"
BACKLOG = 'est_audit_sink_backlog_seconds{sink="s"}'
FAULTS, COSIGNED = (
    f'est_audit_{name}_total{{witness="w"}}' for name in ("witness_faults", "cosignatures")
)
AGENT = 'est_agent_certificate_not_{}_seconds{{definition="d"}}'.format
STEPS = 'est_renewal_steps_total{{step="{}"}}'.format
BYTES, LIMIT = (
    f'estsuite_stream_{kind}{{stream="AUDIT_ISSUE"}}' for kind in ("bytes", "limit_bytes")
)

CASES = [
    Case("ESTProcessDown", {UP: "0x40"}, {UP: "0x3 1x40"}),
    Case("ESTNotReady", {READY: "0x40"}, {READY: "1x28 0 1x20"}),
    Case("ESTClockWrong", {OFFSET: "-7x40"}, {OFFSET: "-4x40"}),
    Case("ESTRestarts", {START: "1x5 2x5 3x5 4x20"}, {START: "1x20 2x20"}),
    Case("ESTReloadRefused", *_first(RELOADS), at="90m"),
    Case("ESTEnrollmentErrorsFast", _requests("0+2x90", "0+98x90"), _requests("0x90", "0+98x90"), "80m"),
    Case(
        "ESTEnrollmentErrorsMedium",
        _requests("0+8x500", "0+992x500"),
        # A bad hour long ago.
        _requests("0+8x60 480x460", "0+992x520"),
        "420m",
    ),
    Case(
        "ESTEnrollmentErrorsSlow",
        _requests("0+2x200", "0+998x200"),
        _requests("0x200", "0+998x200"),
        "4500m",
        "30m",
    ),
    Case("ESTEnrollmentSlow", _slow("0+90x90", "0+100x90"), _slow("0+995x90", "0+1000x90"), "80m"),
    Case("ESTRequestsWait", {OLDEST("EST_REQUESTS"): "90x40"}, {OLDEST("PKI_EVENTS"): "9000x40"}),
    Case(
        "ESTRequestsPutBack",
        {'ca_signer_delayed_total{code="keystore.circuit_open"}': "0+1x60"},
        {'ca_signer_delayed_total{code="keystore.circuit_open"}': "0x10 1x50"},
    ),
    *(
        Case("ESTDeadLetters", *_first(f'{service}_dead_letters_total{{{label}="x"}}'), at="90m")
        for service, label in (
            ("ca_signer", "code"), ("est_renewal", "reason"), ("est_audit", "reason"),
        )
    ),
    # A jump; not as many as every day.
    Case(
        "ESTSecretGuessing",
        {SECRET: "0+1x300 300+600x8"},
        {SECRET: "0+300x308"},
        "1530m",
        "5m",
    ),
    Case("ESTConnectionsCut", {CUT: "0+30x60"}, {CUT: "0+1x60"}),
    Case(
        "ESTOCSPLimited",
        {'est_frontend_ocsp_limited_total{instance="a"}': "0+1x60"},
        {'est_frontend_ocsp_limited_total{instance="a"}': "0x60"},
    ),
    Case(
        "ESTTokenKeysMissing",
        {JWKS("failed"): "0+1x90"},
        {JWKS("failed"): "0+1x90", JWKS("good"): "0+1x90"},
        "60m",
    ),
    Case(
        "ESTKeyStoreUnavailable",
        {'ca_signer_token_breaker{token="t"}': "3x40"},
        {'ca_signer_token_breaker{token="t"}': "1x40"},
    ),
    Case(
        "ESTUpstreamUnavailable",
        {'ca_signer_upstream_breaker{issuer="u"}': "2x40"},
        {'ca_signer_upstream_breaker{issuer="u"}': "2x2 0x40"},
    ),
    Case(
        "ESTUpstreamOutcomeUnknown",
        {'ca_signer_upstream_submissions{issuer="u",state="unknown"}': "1x40"},
        {'ca_signer_upstream_submissions{issuer="u",state="pending"}': "9x40"},
    ),
    Case("ESTUpstreamCertificateWrong", *_first('ca_signer_upstream_quarantined_total{issuer="u"}'), at="90m"),
    Case(
        "ESTUpstreamChainDiffers",
        {'ca_signer_upstream_chain_differs{issuer="u"}': "1x40"},
        {'ca_signer_upstream_chain_differs{issuer="u"}': "0x40"},
    ),
    Case(
        "ESTUpstreamRevocationRefused",
        {'ca_signer_upstream_revocations{issuer="u",state="refused"}': "1x40"},
        {'ca_signer_upstream_revocations{issuer="u",state="due"}': "1x40"},
    ),
    Case("ESTRevocationListLate", {THIS: "-6000x40", NEXT: "2400x40"}, {THIS: "0x40", NEXT: "6000x40"}),
    Case(
        "ESTRevocationListMissing",
        {'est_frontend_crl_missing{instance="a"}': "2x40"},
        {'est_frontend_crl_missing{instance="a"}': "2x5 0x40"},
    ),
    Case("ESTForgedMessages", *_first('estsuite_messages_refused_total{code="message.topic"}'), at="90m"),
    Case("ESTForgedMessages", {"ca_signer_false_events_total": "0x20 1x30"}, {"ca_signer_false_events_total": "4x60"}),
    Case("ESTCACertificateEnds", _ends("issuers.i.certificate_file", 80 * DAY), _ends("issuers.i.certificate_file", FAR), "90m"),
    Case("ESTCertificateEnds", _ends("listen.certificate_file", 10 * DAY), _ends("listen.certificate_file", 20 * DAY), "90m"),
    Case("ESTCertificateEndsSoon", _ends("bus.ca_file", SOON), _ends("bus.ca_file", 5 * DAY)),
    Case("ESTCertificateUnreadable", _ends("bus.ca_file", 0), _ends("bus.ca_file", FAR)),
    Case("ESTCertificateExpired", *_first(STEPS("expired")), at="90m"),
    Case("ESTCertificateExpired", {STEPS("expired"): "3x80 4x90"}, {STEPS("retired"): "3x80 4x90"}, at="90m"),
    Case(
        "ESTCertificatesShort",
        {'est_renewal_slots_short{share="0.10"}': "1x40"},
        {'est_renewal_slots_short{share="0.25"}': "9x40"},
    ),
    Case("ESTRotationStalled", *_first(STEPS("stalled")), at="90m"),
    Case("ESTRenewalRefused", *_first(STEPS("failed")), at="90m"),
    Case(
        "ESTRenewalNotClaimed",
        {"est_renewal_oldest_due_seconds": "0+60x60"},
        {"est_renewal_oldest_due_seconds": "200x60"},
    ),
    Case(
        "ESTRenewalInfoOld",
        {"est_frontend_renewal_info_age_seconds": "-1x40"},
        {"est_frontend_renewal_info_age_seconds": "-1x5 2x40"},
    ),
    Case("ESTWindowDiffers", {"est_renewal_windows_given_up_total": "0x80 1x30"}, {"est_renewal_windows_given_up_total": "1x90"}, at="90m"),
    Case("ESTWindowDiffers", *_first('est_audit_windows_total{result="given_up"}'), at="90m"),
    Case("ESTEventsRepeated", *_first('ca_signer_reannounced_total{to="audit"}'), at="90m"),
    Case(
        "ESTAuditNoWriter",
        {'est_audit_writer{instance="a"}': "0x40", 'est_audit_writer{instance="b"}': "0x40"},
        {'est_audit_writer{instance="a"}': "0x40", 'est_audit_writer{instance="b"}': "1x40"},
    ),
    Case(
        "ESTAuditSlow",
        {f'{DELAY}{{le="5"}}': "0+1x60", f'{DELAY}{{le="30"}}': "0+9x60", f'{DELAY}{{le="+Inf"}}': "0+9x60"},
        {f'{DELAY}{{le="5"}}': "0+9x60", f'{DELAY}{{le="30"}}': "0+9x60", f'{DELAY}{{le="+Inf"}}': "0+9x60"},
    ),
    Case("ESTAuditStreamGrows", {OLDEST("AUDIT_ISSUE"): "0+60x60"}, {OLDEST("AUDIT_ISSUE"): "60x60"}),
    Case(
        "ESTAuditUnsealed",
        {SIZE: "9x60", SEALED: "5x60", SIGNED: "3x60"},
        {SIZE: "10+1x60", SEALED: "9+1x60", SIGNED: "0+1x60"},
    ),
    Case(
        "ESTAuditSpool",
        {'est_frontend_spooled_records{instance="a"}': "4x40"},
        {'est_frontend_spooled_records{instance="a"}': "4x5 0x40"},
    ),
    Case("ESTSIEMBehind", {BACKLOG: "400x40"}, {BACKLOG: "200x40"}),
    Case("ESTSIEMFarBehind", {BACKLOG: "4000x40"}, {BACKLOG: "3000x40"}),
    Case("ESTSIEMRefuses", *_first('est_audit_sink_dead_letters_total{sink="s"}'), at="90m"),
    Case("ESTWitnessMissing", {FAULTS: "0+1x200", COSIGNED: "5x200"}, {FAULTS: "0+1x200", COSIGNED: "0+1x200"}, "150m"),
    Case("ESTAuditIndexBehind", {SIZE: "9000x60", "est_audit_indexed_size": "5x60"}, {SIZE: "0+900x60", "est_audit_indexed_size": "0+899x60"}, at="50m"),
    Case("ESTLogForked", {"est_witness_forks_total": "0x80 1x30"}, {"est_witness_forks_total": "1x120"}, at="90m"),
    Case(
        "ESTStreamsNotWritable",
        {'estsuite_streams_writable{instance="a"}': "0x40"},
        {'estsuite_streams_writable{instance="a"}': "1x40"},
    ),
    Case("ESTStreamNearlyFull", {BYTES: "90x40", LIMIT: "100x40"}, {BYTES: "70x40", LIMIT: "100x40"}),
    Case("ESTDatabaseLost", {"est_audit_database_outages_total": "0x20 1x30"}, {"est_audit_database_outages_total": "1x90"}),
    Case(
        "ESTAgentNeedsAttention",
        {'est_agent_needs_attention{definition="d"}': "1x40"},
        {'est_agent_needs_attention{definition="d"}': "0x40"},
    ),
    Case(
        "ESTAgentCertificateEnds",
        {AGENT("before"): f"{-9 * DAY}x40", AGENT("after"): f"{DAY // 2}x40"},
        {AGENT("before"): "0x40", AGENT("after"): f"{DAY // 2}x40"},
    ),
    Case(
        "ESTProbeFails",
        {"estctl_probe_last_complete_age_seconds": "0+60x60"},
        {"estctl_probe_last_complete_age_seconds": "70x60"},
    ),
    Case("ESTIssuerNotReady", {ISSUER: "0x40"}, {ISSUER: "1x40"}),
    Case("ESTIssuerRequestsWait", {"est_issuer_waiting": "2x200"}, {"est_issuer_waiting": "2x80 0 2x119"}, at="120m"),
    Case("ESTIssuerRequestsRefused", *_first(REFUSED_REQUESTS), at="90m"),
    Case(
        "ESTIssuerHasNoLeader",
        dict.fromkeys(LEADERS, "0x40"),
        {LEADERS[0]: "1x40", LEADERS[1]: "0x40"},
    ),
]  # fmt: skip


def _test(case: Case, series: Series, *, fires: bool) -> dict[str, Any]:
    name = f"{case.alert} {'fires' if fires else 'is silent'}"
    found = {
        "name": name,
        "interval": case.every,
        "input_series": [{"series": s, "values": values} for s, values in series.items()],
    }
    if fires:
        expression = f'count(ALERTS{{alertname="{case.alert}",alertstate="firing"}}) > bool 0'
        samples = [{"labels": "{}", "value": 1}]
    else:
        expression = f'count(ALERTS{{alertname="{case.alert}",alertstate="firing"}})'
        samples = []
    check = {"expr": expression, "eval_time": case.at, "exp_samples": samples}
    return found | {"promql_expr_test": [check]}


@pytest.fixture(scope="module")
def promtool() -> Path:
    return debian_packages("prometheus") / "usr/bin/promtool"


def _promtool(promtool: Path, *arguments: str | Path) -> str:
    done = subprocess.run(
        [promtool, *arguments], capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def test_prometheus_accepts_the_rules(promtool: Path) -> None:
    found = _promtool(promtool, "check", "rules", *sorted(RULES.glob("*.yaml")))
    assert "SUCCESS" in found


def _rules_of(alert: str) -> dict[str, Any]:
    """Return the alert's rule, with the recording rules if it uses them: all others cost time."""
    rules = [ALERTS[alert]]
    if "estsuite:" in ALERTS[alert]["expr"]:
        recorded = yaml.safe_load((RULES / "recording.yaml").read_text(encoding="utf-8"))
        used = [r for r in recorded["groups"][0]["rules"] if r["record"] in ALERTS[alert]["expr"]]
        rules = [*used, *rules]
    return {"groups": [{"name": "tested", "rules": rules}]}


def test_each_alert_fires_for_its_fault_and_is_silent_otherwise(
    promtool: Path, tmp_path: Path
) -> None:
    files = []
    for number, case in enumerate(CASES):
        rules, file = tmp_path / f"{number}_rules.yaml", tmp_path / f"{number}_test.yaml"
        rules.write_text(yaml.safe_dump(_rules_of(case.alert)), encoding="utf-8")
        tests = [
            _test(case, case.firing, fires=True),
            _test(case, case.quiet, fires=False),
        ]
        suite = {"rule_files": [str(rules)], "evaluation_interval": case.every, "tests": tests}
        file.write_text(yaml.safe_dump(suite), encoding="utf-8")
        files.append(file)
    _promtool(promtool, "test", "rules", *files)


def test_every_alert_has_a_case() -> None:
    assert {case.alert for case in CASES} == set(ALERTS)
