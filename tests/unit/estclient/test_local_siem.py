"""How the demo prints the messages that the local SIEM received."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.formats import syslog
from audit.formats.entry import Entry
from estdev.siem import without_body


def message(correlation_id: str = "c-42", instance: str = "front-0") -> str:
    leaf = {
        "log_index": 7,
        "recorded_at": "2026-11-22T12:00:00.001000+00:00",
        "record": {
            "record_id": "f0e1d2c3-b4a5-9687-7869-5a4b3c2d1e0f",
            "correlation_id": correlation_id,
            "action": "certificate.issue",
            "phase": "outcome",
            "producer": {"service": "ca-signer", "instance": instance},
        },
    }
    return syslog.render(Entry.of_record(7, json.dumps(leaf)), syslog.Options()).message.decode()


def joined(lines: list[str]) -> str:
    return " ".join(line.strip() for line in lines)


def test_header_and_structured_data_are_printed_whole() -> None:
    assert without_body(message()) == [
        "<110>1 2026-11-22T12:00:00.001000+00:00 front-0 ca-signer - certificate.issue",
        '    [estsuite@0 record_id="f0e1d2c3-b4a5-9687-7869-5a4b3c2d1e0f" log_index="7"',
        '    action="certificate.issue" phase="outcome" severity="info" correlation_id="c-42"]',
    ]


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r"), max_size=80),
    st.integers(20, 300),
)
def test_no_field_is_cut_at_any_width(correlation_id: str, width: int) -> None:
    text = message(correlation_id)
    head = text[: text.rindex(' {"log_index"')]
    lines = without_body(text, width)
    assert joined(lines) == joined([head])
    for name in ("record_id", "log_index", "correlation_id", "action", "phase"):
        expected = name != "correlation_id" or bool(correlation_id)
        assert sum(f' {name}="' in f" {line}" for line in lines) == expected
    assert lines[-1].endswith('"]')


@pytest.mark.parametrize("text", ["", "x", "<110>1 a b c - d", "<110>1 a b c - d - body"])
def test_other_messages_are_printed_as_they_are(text: str) -> None:
    assert without_body(text) == [text]
