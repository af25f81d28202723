"""CEF, LEEF, ECS, OCSF, CloudEvents and OTLP: read back by parsers written from their documents."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.formats import cef, cloudevents, ecs, leef, ocsf, otlp
from audit.formats.entry import Entry
from estcore.tlog import canonical

text = st.text(max_size=80)
ascii_names = st.text(st.characters(max_codepoint=127), max_size=20)
WHOLE: dict[str, Any] = {
    "record_id": "01a22800-0000-7000-8000-000000000001",
    "correlation_id": "c-42",
    "trace_id": "0af7651916cd43dd8448eb211c80319c",
    "occurred_at": "2026-11-29T12:00:00.123456Z",
    "action": "certificate.issue",
    "phase": "outcome",
    "outcome": "failure",
    "severity": "warning",
    "reason_code": "policy.no_rule",
    "reason": "no policy rule for this principal",
    "producer": {"service": "ca-signer", "instance": "s-0", "boot_id": "b"},
    "actor": {"type": "service", "subject": "secret:web", "auth_method": "secret", "rule": "web"},
    "origin": {"peer": "[2001:db8::7]:4711", "tls_version": "TLSv1.3", "user_agent": "curl/8"},
    "target": {
        "tenant": "clinic",
        "service": "pump",
        "serial": "01a2",
        "subject": "CN=pump-7",
        "san": ["dns:pump-7.example"],
        "issuer_id": "issuing",
        "profile": "device",
        "certificate_sha256": "ab" * 32,
        "not_after": "2026-12-29T12:00:00Z",
    },
}


def entry(**changes: Any) -> Entry:
    whole = {"log_index": 7, "recorded_at": "2026-11-29T12:00:01Z", "record": WHOLE | changes}
    return Entry.of_record(7, canonical.encode(whole).decode())


CHECKPOINT = Entry.of_checkpoint(9, "note\n", "2026-11-29T12:00:00Z", "audit-0")
RENDERERS = [cef.render, leef.render, ecs.render, ocsf.render, cloudevents.render, otlp.render]


def parse_cef(line: str) -> tuple[list[str], dict[str, str]]:
    """Read CEF as its standard says: unescaped pipes end header fields, unescaped = a key."""
    assert line.startswith("CEF:0|")
    fields: list[str] = []
    rest = line[6:]
    while len(fields) < 6:
        match = re.match(r"((?:[^\\|]|\\[\\|])*)\|", rest, re.S)
        assert match, rest
        fields.append(re.sub(r"\\([\\|])", r"\1", match[1]))
        rest = rest[match.end() :]
    pairs = re.findall(
        r"(?:^| )([A-Za-z0-9_]+)=((?:[^\\=]|\\[\\=nr])*?)(?= [A-Za-z0-9_]+=|$)", rest, re.S
    )
    values = {
        k: re.sub(r"\\([\\=nr])", lambda m: {"n": "\n", "r": "\r"}.get(m[1], m[1]), v)
        for k, v in pairs
    }
    return fields, values


def parse_leef(line: str) -> tuple[list[str], dict[str, str]]:
    parts = line.split("|", 6)
    assert parts[0] == "LEEF:2.0"
    assert parts[5] == "x09"
    pairs = [pair.split("=", 1) for pair in parts[6].split("\t")]
    return parts[1:5], {pair[0]: pair[1] for pair in pairs}


def test_every_format_has_what_a_SIEM_searches_by() -> None:
    one = entry()
    _, fields = parse_cef(cef.render(one))
    assert fields["externalId"] == WHOLE["record_id"]
    assert (fields["c6a2Label"], fields["c6a2"]) == ("Source IPv6 Address", "2001:db8::7")
    assert (fields.get("src"), fields["spt"]) == (None, "4711")
    assert (fields["cs1Label"], fields["cs1"]) == ("correlationId", "c-42")
    assert (fields["cs2Label"], fields["cs2"]) == ("serialNumber", "01a2")
    header, attributes = parse_leef(leef.render(one))
    assert header[3] == "certificate.issue"
    assert attributes["serialNumber"] == "01a2"
    assert attributes["reasonCode"] == "policy.no_rule"

    document = ecs.render(one)
    assert document["event"]["outcome"] == "failure"
    assert document["x509"]["serial_number"] == "01A2"
    assert document["trace"]["id"] == WHOLE["trace_id"]
    assert document["source"] == {"address": "2001:db8::7", "ip": "2001:db8::7", "port": 4711}
    assert json.loads(document["event"]["original"])["record"] == WHOLE

    event = ocsf.render(one)
    assert event["class_uid"] == 3004
    assert event["type_uid"] == event["class_uid"] * 100 + event["activity_id"]
    assert event["status_id"] == 2
    assert event["metadata"]["uid"] == WHOLE["record_id"]

    cloud = cloudevents.render(one)
    assert {"specversion", "id", "source", "type"} <= cloud.keys()
    assert cloud["data"]["record"] == WHOLE

    log_record = otlp.render(one)
    assert log_record.severity_number == 13
    assert log_record.trace_id.hex() == WHOLE["trace_id"]
    attributes_ = {a.key: a.value.string_value for a in log_record.attributes}
    assert attributes_["estsuite.certificate.serial_number"] == "01a2"
    assert log_record.time_unix_nano == 1795953600123456000


def test_a_refusal_for_credentials_is_an_authentication_event() -> None:
    one = entry(action="est.simpleenroll", phase="denied", reason_code="auth.secret")
    assert ocsf.render(one)["class_uid"] == 3002
    assert ecs.render(one)["event"]["category"] == ["authentication"]
    call = ocsf.render(entry(action="operator.certificate-revoke"))
    assert call["class_uid"] == 6003
    assert call["api"]["operation"] == "operator.certificate-revoke"


@pytest.mark.parametrize("render", RENDERERS)
def test_a_checkpoint_is_an_event_in_every_format(render: Any) -> None:
    shown = str(render(CHECKPOINT))
    assert "audit.checkpoint" in shown
    assert "checkpoint-9" in shown


@given(text, text, text, text, st.sampled_from(RENDERERS))
def test_no_text_breaks_out_of_its_place(a: str, b: str, c: str, d: str, render: Any) -> None:
    target = {"subject": a, "serial": b, "tenant": c, "san": [d]}
    one = entry(target=target, reason=d, actor={"type": "human", "subject": c})
    shown = render(one)
    if render is cef.render:
        assert len(shown.splitlines()) == 1 or not re.search(r"[\r\n]", shown)
        header, fields = parse_cef(shown)
        assert header[3] == "certificate.issue"
        assert fields["externalId"] == WHOLE["record_id"]
        if a and a == " ".join(a.split(" ")).strip() and not re.search(r" \w+=", a):
            assert fields["duser"] == a.replace("\r\n", "\n")
    elif render is leef.render:
        assert not re.search(r"[\r\n]", shown)
        header, attributes = parse_leef(shown)
        assert header[3] == "certificate.issue"
        assert attributes["recordId"] == WHOLE["record_id"]
        assert set(attributes) <= {*parse_leef(leef.render(entry()))[1]}
    elif render is otlp.render:
        assert otlp.request([shown]).SerializeToString()
    else:
        assert json.loads(json.dumps(shown)) == shown


@given(st.recursive(st.none() | st.booleans() | text, lambda x: st.dictionaries(ascii_names, x)))
def test_a_member_of_an_unexpected_kind_is_shown_or_refused_by_an_exception(value: Any) -> None:
    for member in ("target", "actor", "origin", "reason", "severity", "items"):
        try:
            one = entry(**{member: value})
            for render in RENDERERS:
                render(one)
        except (AttributeError, TypeError, ValueError, KeyError):
            pass  # the bulkhead of the forwarder makes it a dead letter


def paths(value: Any, below: str = "") -> Iterator[str]:
    if not isinstance(value, dict):
        yield below
        return
    for name, inner in value.items():
        yield from paths(inner, f"{below}.{name}" if below else name)


def mapped(properties: dict[str, Any], below: str = "") -> Iterator[str]:
    for name, field in properties.items():
        yield from (
            mapped(field["properties"], f"{below}{name}.")
            if "properties" in field
            else [below + name]
        )


def test_the_index_template_maps_every_field_of_a_document() -> None:
    file = Path(__file__).parents[3] / "deploy/siem/elasticsearch/index-template.json"
    template = json.loads(file.read_text(encoding="utf-8"))
    target = WHOLE["target"] | {"label": "dev", "not_before": "2026-11-29T12:00:00Z"}
    actor = WHOLE["actor"] | {"certificate_serial": "0b"}
    whole = entry(target=target, actor=actor, items=[{"correlation_id": "a"}] * 2)
    fields = {*paths(ecs.render(whole)), *paths(ecs.render(CHECKPOINT))}
    known = set(mapped(template["template"]["mappings"]["properties"]))
    assert known - {"event.ingested"} == fields


@pytest.mark.parametrize(
    ("peer", "ip"),
    [
        ("192.0.2.7:443", "192.0.2.7"),
        ("[2001:DB8::7]:443", "2001:db8::7"),
        ("[fe80::1%eth0]:443", "fe80::1"),
        ("unix:", None),
        ("pump-7.example:443", None),
    ],
)
def test_source_ip_is_an_address_and_source_address_what_the_record_says(
    peer: str, ip: str | None
) -> None:
    """ECS: "If it is an IP address, also in ``.ip``"; a field of type ip refuses others."""
    one = entry(origin={"peer": peer})
    source = ecs.render(one)["source"]
    assert source.get("ip") == ip
    assert source["address"]
    assert ocsf.render(one).get("src_endpoint", {}).get("ip") == ip
    assert parse_leef(leef.render(one))[1].get("src") == ip
    fields = parse_cef(cef.render(one))[1]
    assert (fields.get("src") or fields.get("c6a2")) == ip
    assert ":" not in fields.get("src", "")
