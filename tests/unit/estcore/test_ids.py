"""Identifiers that begin with a time, and stay the same however often they are derived."""

from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st

from estcore import ids

MILLISECONDS = st.integers(0, 2**48 - 1)
WORDS = st.lists(st.text("abcdefghij", min_size=1), max_size=3)


def beginning(name: str) -> int:
    """The first 48 bits of a UUID."""
    return uuid.UUID(name).int >> 80


@given(MILLISECONDS, WORDS)
def test_the_id_of_a_record_has_the_time_of_what_it_is_about(now_ms: int, words: list[str]) -> None:
    """RFC 9562 5.8: a UUIDv8 keeps version and variant, the rest is the implementation's."""
    about = ids.uuid7(now_ms=now_ms)
    name = ids.record_id(*words, about, "1")
    assert name == str(uuid.UUID(name)) == ids.record_id(*words, about, "1")
    assert uuid.UUID(name).version == 8
    assert uuid.UUID(name).variant == uuid.RFC_4122
    assert beginning(name) == now_ms
    assert name != ids.record_id(*words, about, "2")


@given(MILLISECONDS)
def test_the_id_of_joined_records_has_the_time_of_the_first(now_ms: int) -> None:
    first = ids.record_id("intent", ids.uuid7(now_ms=now_ms))
    assert beginning(ids.record_id("joined", first, ids.record_id("intent", ids.uuid7()))) == now_ms


def test_what_has_no_time_gets_an_id_without_one() -> None:
    random = str(uuid.UUID(int=7, version=4))
    assert uuid.UUID(ids.record_id("window", random)).version == 5


@given(MILLISECONDS, MILLISECONDS)
def test_serial_numbers_sort_by_time(one: int, other: int) -> None:
    serials = [ids.new_serial_number(now_ms=now_ms) for now_ms in (one, other)]
    assert all(0 < serial < 2**159 and serial >> 136 == 1 for serial in serials)
    if one != other:
        assert (serials[0] < serials[1]) == (one < other)


def test_serial_numbers_of_one_moment_fill_every_shard() -> None:
    """Shards of revoked serial numbers, and of revocation lists, go by the last octet."""
    serials = {ids.new_serial_number(now_ms=1) for _ in range(10_000)}
    assert len(serials) == 10_000
    assert len({serial % 256 for serial in serials}) == 256
