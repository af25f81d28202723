"""Canonical JSON, checked with the library rfc8785."""

from __future__ import annotations

import json

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from estcore.errors import MalformedRequest
from estcore.tlog import canonical

names = st.text(st.characters(max_codepoint=127), max_size=12)
scalars = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=20,
)


@given(values)
def test_it_is_what_rfc8785_says(value: object) -> None:
    expected = rfc8785.dumps(value)  # type: ignore[arg-type] # JSON by construction
    assert canonical.encode(value) == expected
    assert canonical.render(canonical.parse(json.dumps(value))).encode() == expected


@given(st.binary(max_size=60))
def test_any_bytes_are_json_or_malformed(data: bytes) -> None:
    try:
        value = canonical.parse(data)
    except MalformedRequest:
        return
    try:
        canonical.render(value)
    except MalformedRequest:
        return


@pytest.mark.parametrize(
    "text", ["1.0", "1e3", "NaN", "Infinity", str(2**53 + 1), "9" * 400, "-" + "9" * 30]
)
def test_numbers_without_one_spelling_are_refused(text: str) -> None:
    with pytest.raises(MalformedRequest):
        canonical.encode(canonical.parse(text))


@pytest.mark.parametrize(
    "value", [1.5, {"ä": 1}, {1: 2}, {1: 2, "a": 3}, 2**53 + 1, b"x", "\ud800", (1,)]
)
def test_values_without_a_canonical_form_are_refused(value: object) -> None:
    with pytest.raises(MalformedRequest):
        canonical.encode(value)


def test_names_that_are_not_ascii_are_refused_after_parsing() -> None:
    with pytest.raises(MalformedRequest):
        canonical.render(canonical.parse('{"a": [{"ä": 1}]}'))


def test_depth_is_bounded() -> None:
    deep = json.loads("[" * 60 + "]" * 60)
    with pytest.raises(MalformedRequest):
        canonical.encode(deep)
