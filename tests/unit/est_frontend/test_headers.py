"""Text of a request: printable, bounded, encodable, and read at one place."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

import est_frontend
from estcore.errors import InvariantBroken
from estcore.messages.enrollment import MAX_AGENT, Source
from estcore.messages.envelope import decode, encode, encode_mapping
from estcore.messages.text import plain_text
from estcore.runtime.logs import JSONFormatter, fields

SOURCES = Path(est_frontend.__file__).parent
ANY_TEXT = st.text(st.characters(min_codepoint=0, max_codepoint=0x10FFFF, categories=None))


def test_every_octet_becomes_printable_text() -> None:
    for octet in range(256):
        decoded = bytes([0x61, octet, 0x62]).decode("utf-8", "surrogateescape")
        found = plain_text(decoded, 10)
        assert found.isprintable()
        assert len(found) == 3
        if 0x20 <= octet < 0x7F:
            assert found == decoded
    assert plain_text("a\tb", 10) == "a b"


@given(ANY_TEXT, st.integers(0, 50))
def test_any_text_is_printable_bounded_and_unchanged_where_it_was_plain(
    value: str, limit: int
) -> None:
    found = plain_text(value, limit)
    assert found.isprintable()
    assert len(found) <= limit
    assert plain_text(found, limit) == found
    assert found.encode().decode() == found


@given(ANY_TEXT)
@example("\ud800")
def test_any_text_is_encoded_in_every_message(value: str) -> None:
    assert decode(Source, encode(Source.model_construct(peer=value))).peer is not None
    assert json.loads(encode_mapping({"a": [value, {"b": Source.model_construct(peer=value)}]}))
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s", (value,), None)
    record.__dict__.update(fields(a=value, b={value: [value]}, c=Path(value.replace("\0", ""))))
    assert json.loads(JSONFormatter("s", "i").format(record))["level"] == "info"


@given(ANY_TEXT)
def test_the_signer_gets_the_user_agent_as_plain_text(value: str) -> None:
    source = Source(user_agent=value)
    assert source.user_agent == plain_text(value, MAX_AGENT)
    assert decode(Source, encode(source)) == source


def test_what_has_no_json_form_is_an_error_of_the_suite() -> None:
    for value in (object(), [object()], {"a": {1, object()}}):
        try:
            encode_mapping({"a": value})
        except InvariantBroken as exc:
            assert exc.code == "message.unencodable"
        else:
            raise AssertionError(value)


def test_nothing_reads_a_header_or_the_target_past_the_boundary() -> None:
    reading = re.compile(r"request\.(headers|raw_headers|raw_path|path|path_qs|url|rel_url|host)\b")
    found = {p.name for p in SOURCES.rglob("*.py") if reading.search(p.read_text(encoding="utf-8"))}
    assert found == {"headers.py"}
