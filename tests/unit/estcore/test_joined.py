"""Messages that travel in one: what is joined is read back, in order and within bounds."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from estcore.messages.envelope import encode_mapping
from estcore.messages.joined import MAX_MESSAGES, groups, join, joined_id, split

TEXTS = st.text()
MESSAGES = st.lists(
    st.dictionaries(TEXTS, TEXTS, max_size=3).map(encode_mapping), min_size=1, max_size=MAX_MESSAGES
)


@given(MESSAGES)
def test_what_is_joined_is_read_back(messages: list[bytes]) -> None:
    """Whatever text is in them: line breaks of every kind are escaped or no octet 0x0A."""
    payload = join(messages)
    assert split(payload) == messages


@given(st.integers(MAX_MESSAGES + 1, 5 * MAX_MESSAGES))
def test_more_than_a_message_may_have_are_not_divided(number: int) -> None:
    payload = join([b"{}"] * number)
    assert split(payload) == [payload]


@given(st.lists(st.integers(1, 3000), max_size=300), st.integers(1, 4000))
def test_groups_have_every_message_once_in_order_and_within_bounds(
    sizes: list[int], max_octets: int
) -> None:
    messages = [b"x" * size for size in sizes]
    found = list(groups(messages, max_octets=max_octets))
    assert [m for part in found for m in messages[part]] == messages
    for part in found:
        together = messages[part]
        assert 1 <= len(together) <= MAX_MESSAGES
        assert len(together) == 1 or len(join(together)) <= max_octets


@given(st.lists(st.integers(1, 3000), min_size=2, max_size=100))
def test_no_group_could_take_the_next_message(sizes: list[int]) -> None:
    messages = [b"x" * size for size in sizes]
    found = list(groups(messages, max_octets=4000))
    for part, following in itertools.pairwise(found):
        one_more = messages[part.start : following.start + 1]
        assert len(join(one_more)) > 4000 or len(one_more) > MAX_MESSAGES


@given(st.lists(st.text("0123456789abcdef-", min_size=1), min_size=1, unique=True))
def test_an_id_is_that_of_all_messages_or_of_the_only_one(ids: list[str]) -> None:
    name = joined_id(ids)
    assert (name == ids[0]) == (len(ids) == 1)
    assert name == joined_id(list(ids))
    assert name != joined_id([*ids, "more"])
    assert len(ids) < 2 or name != joined_id(list(reversed(ids)))
