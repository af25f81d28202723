"""Leaves as the database keeps them: read as they were written, whatever they are."""

from __future__ import annotations

import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit import packed_leaf
from audit.chain import leaf_text
from audit.packed_leaf import pack, unpack
from estcore.messages.envelope import encode
from estsuite_testing.audit_stack import make_record

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=3000)


def leaf(number: int) -> str:
    record = encode(make_record(number)).decode()
    return leaf_text(number, "2026-11-30T12:00:00.000000Z", record, "audit.issue.ca-signer")


@given(texts)
def test_a_leaf_is_read_as_it_was_written(text: str) -> None:
    written = json.dumps({"record": text}, ensure_ascii=False)
    assert unpack(pack(written)) == written


@given(texts)
def test_a_leaf_of_before_is_read_as_it_is(text: str) -> None:
    written = json.dumps({"record": text}, ensure_ascii=False)
    assert unpack(written.encode()) == written


def test_a_large_leaf_is_read_as_it_was_written() -> None:
    written = json.dumps({"record": [leaf(n) for n in range(1000)]})
    assert unpack(pack(written)) == written


def test_a_record_takes_less_than_half() -> None:
    assert len(pack(leaf(7))) < len(leaf(7)) / 2


@pytest.mark.parametrize("place", range(len(pack(leaf(7)))))
def test_octets_that_were_changed_are_read_or_none(place: int) -> None:
    """What is read decides: a leaf is the same where its hash is, however it was packed."""
    octets = pack(leaf(7))
    read = {
        unpack(octets[:place] + bytes([changed]) + octets[place + 1 :]) for changed in range(256)
    }
    assert leaf(7) in read
    assert len(read) > 1


@given(st.binary(max_size=200))
def test_any_octets_are_read_or_none(octets: bytes) -> None:
    assert isinstance(unpack(octets), str)


@pytest.mark.parametrize("cut", [1, 2, 50])
def test_a_leaf_that_was_cut_is_none(cut: int) -> None:
    assert unpack(pack(leaf(7))[:-cut]) == ""
    assert unpack(pack(leaf(7)) + b"x") == ""


def test_a_bomb_is_none() -> None:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -13, zdict=packed_leaf._FIRST)
    bomb = b"\1" + deflate.compress(b" " * (packed_leaf._MAX_OCTETS + 1)) + deflate.flush()
    assert unpack(bomb) == ""


def test_the_first_dictionary_is_what_it_was_when_leaves_were_packed_with_it() -> None:
    assert zlib.crc32(packed_leaf._FIRST) == 0xB12406B
