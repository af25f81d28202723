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


def _answer(data: bytes, *, by_encoding: bool) -> bool | str:
    value = canonical.parse(data)
    try:
        if by_encoding:
            return canonical.encode(value) == data
        return canonical.is_canonical(value, data)
    except MalformedRequest as exc:
        return exc.code


anything = st.recursive(
    scalars | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(anything, st.booleans(), st.sampled_from([(",", ":"), (", ", ":")]))
def test_what_is_canonical_is_what_would_be_encoded(
    value: object, ascii_only: bool, separators: tuple[str, str]
) -> None:
    data = json.dumps(value, ensure_ascii=ascii_only, separators=separators).encode(
        "utf-8", "surrogatepass"
    )
    try:
        canonical.parse(data)
    except MalformedRequest:
        return
    assert _answer(data, by_encoding=False) == _answer(data, by_encoding=True)


@pytest.mark.parametrize("depth", [31, 32, 33])
def test_both_refuse_the_same_depth(depth: int) -> None:
    for data in (b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth):
        assert _answer(data, by_encoding=False) == _answer(data, by_encoding=True)


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
