"""RFC 5424 and RFC 5425, read by a parser written from the grammar."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from audit.formats import syslog
from audit.formats.entry import Entry
from estcore.tlog import canonical

HEADER = re.compile(
    rb"<(?P<pri>\d{1,3})>1 (?P<time>\S+) (?P<host>[\x21-\x7e]{1,255}) (?P<app>[\x21-\x7e]{1,48})"
    rb" (?P<proc>[\x21-\x7e]{1,128}) (?P<msgid>[\x21-\x7e]{1,32}) "
)
text = st.text(max_size=60)


def leaf(**changes: Any) -> str:
    record: dict[str, Any] = {
        "record_id": "0190",
        "correlation_id": "c",
        "occurred_at": "2026-11-22T12:00:00Z",
        "action": "certificate.issue",
        "phase": "outcome",
        "outcome": "success",
        "severity": "notice",
        "producer": {"service": "ca-signer", "instance": "s-0", "boot_id": "b"},
        "target": {"subject": "CN=ä"},
    }
    whole = {"log_index": 7, "recorded_at": "2026-11-22T12:00:00.000001Z"}
    return canonical.encode(whole | {"record": record | changes}).decode()


def frame_of(text: str, **options: Any) -> bytes:
    return syslog.framed(formatted_of(text, **options).message)


def formatted_of(text: str, **options: Any) -> syslog.Formatted:
    return syslog.render(Entry.of_record(7, text), syslog.Options(**options))


def parse(frame: bytes, *, bom: bool = False) -> tuple[dict[str, bytes], dict[str, str], str]:
    """RFC 5425 4.3: "SYSLOG-FRAME = MSG-LEN SP SYSLOG-MSG"; returns header, SD, MSG."""
    length, _, message = frame.partition(b" ")
    assert int(length) == len(message)
    header = HEADER.match(message)
    assert header is not None
    rest = message[header.end() :]
    assert rest.startswith(b"[estsuite@0")
    at, parameters = len(b"[estsuite@0"), {}
    while rest[at : at + 1] == b" ":
        name, _, _ = rest[at + 1 :].partition(b'="')
        at += 1 + len(name) + 2
        value = bytearray()
        while rest[at : at + 1] != b'"':
            if rest[at : at + 1] == b"\\":
                at += 1
                assert rest[at : at + 1] in {b'"', b"\\", b"]"}
            else:
                assert rest[at : at + 1] != b"]"
            value += rest[at : at + 1]
            at += 1
        at += 1
        parameters[name.decode()] = value.decode()
    assert rest[at : at + 2] == b"] "
    at += 2
    # RFC 5424 6.4: "If a syslog application encodes MSG in UTF-8, the string MUST start with
    # the Unicode byte order mask (BOM)".
    assert (rest[at : at + 3] == b"\xef\xbb\xbf") == bom
    return header.groupdict(), parameters, rest[at + 3 * bom :].decode()


def test_a_record_becomes_one_message() -> None:
    header, parameters, message = parse(frame_of(leaf()))
    assert header["pri"] == b"%d" % (13 * 8 + 5)
    assert (header["app"], header["host"]) == (b"ca-signer", b"s-0")
    assert parameters == {
        "record_id": "0190",
        "log_index": "7",
        "correlation_id": "c",
        "action": "certificate.issue",
        "phase": "outcome",
        "outcome": "success",
        "severity": "notice",
    }
    assert message == leaf()


def test_what_a_SIEM_searches_by_is_in_the_structured_data() -> None:
    target = {"tenant": "clinic", "service": "pump-7", "serial": "01a2"}
    whole = leaf(target=target, reason_code="policy.no_rule", outcome="failure")
    _, parameters, _ = parse(frame_of(whole))
    assert parameters["tenant"] == "clinic"
    assert parameters["service"] == "pump-7"
    assert parameters["serial_number"] == "01a2"
    assert parameters["reason_code"] == "policy.no_rule"
    assert parameters["outcome"] == "failure"


def test_the_byte_order_mark_and_the_enterprise_number_are_settings() -> None:
    frame = frame_of(leaf(), bom=True)
    assert parse(frame, bom=True)[2] == leaf()
    assert b"[estsuite@54321 " in frame_of(leaf(), enterprise_number=54321)


@given(text, text, text, text)
def test_nothing_in_a_record_breaks_out_of_its_place(a: str, b: str, c: str, d: str) -> None:
    """RFC 5424 6.3.3: the characters ", \\ and ] MUST be escaped inside PARAM-VALUE."""
    whole = leaf(
        correlation_id=a,
        action=b,
        record_id=c,
        producer={"service": d, "instance": a, "boot_id": b},
    )
    _, parameters, message = parse(frame_of(whole, facility=0))
    assert (parameters.get("correlation_id", ""), parameters.get("action", "")) == (a, b)
    assert parameters.get("record_id", "") == c
    assert message == whole


def test_a_large_certificate_is_left_out_and_the_message_says_so() -> None:
    whole = leaf(target={"subject": "CN=a", "certificate": "A" * 9000})
    _, parameters, message = parse(frame_of(whole))
    assert (parameters["trimmed"], parameters["omitted"]) == ("true", "target.certificate")
    assert json.loads(message)["record"]["target"] == {"subject": "CN=a"}


@given(st.integers(0, 12_000), st.integers(0, 12_000))
def test_no_message_is_larger_than_receivers_must_take(details: int, certificate: int) -> None:
    """RFC 5425 4.3.1: receivers "SHOULD be able to process messages with lengths up to 8192"."""
    whole = leaf(details={"x": "ä" * details}, target={"certificate": "A" * certificate})
    formatted = formatted_of(whole)
    assert len(formatted.message) <= syslog.MAX_OCTETS
    _, parameters, text_ = parse(syslog.framed(formatted.message))
    assert (text_ == whole) == (not formatted.omitted) == ("trimmed" not in parameters)
    assert json.loads(text_)["record"]["record_id"] == "0190"


@given(st.sampled_from(["json", "cef", "leef", "ocsf", "ecs"]), st.integers(0, 20_000))
def test_every_format_keeps_what_is_short_and_important(form: str, size: int) -> None:
    bulky = {"san": ["dns:" + "a" * size], "subject": "CN=" + "b" * size, "serial": "01a2"}
    whole = leaf(target=bulky, reason="c" * size, details={"x": "d" * size})
    formatted = formatted_of(whole, form=form)
    assert len(formatted.message) <= syslog.MAX_OCTETS
    _, parameters, text_ = parse(syslog.framed(formatted.message))
    assert parameters["serial_number"] == "01a2"
    assert "0190" in text_
    assert ("omitted" in parameters) == bool(formatted.omitted)


def test_a_checkpoint_is_an_event_of_its_own() -> None:
    entry = Entry.of_checkpoint(9, "note\n", "2026-11-22T12:00:00.000000Z", "audit-0")
    message_ = syslog.render(entry, syslog.Options()).message
    header, parameters, message = parse(syslog.framed(message_))
    assert header["msgid"] == b"audit.checkpoint"
    assert parameters["size"] == "9"
    assert json.loads(message) == {"checkpoint": "note\n", "size": 9}
