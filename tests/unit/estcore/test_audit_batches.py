"""Audit records in messages: every record once, in order, in messages that a stream takes."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from estcore.messages.audit_batches import (
    MAX_OCTETS,
    MAX_RECORDS,
    batch_id,
    encode_records,
    fitting,
    parts,
)
from estcore.messages.topics import AUDIT_REFUSAL, STREAMS

REFUSALS = next(s for s in STREAMS if s.name == AUDIT_REFUSAL)
RECORDS = st.lists(
    st.integers(min_value=1, max_value=70_000).map(lambda size: json.dumps("x" * size).encode()),
    max_size=40,
)


@given(RECORDS)
def test_each_record_is_in_one_message_in_order(records: list[bytes]) -> None:
    messages = [json.loads(encode_records(records[part])) for part in parts(records)]
    assert [r for m in messages for r in m["records"]] == [json.loads(r) for r in records]


@given(RECORDS)
def test_every_stream_takes_every_message(records: list[bytes]) -> None:
    smallest = REFUSALS.max_message_bytes
    for part in parts(records):
        message = encode_records(records[part], ["t" * 55] * 20)
        assert len(records[part]) == 1 or sum(map(len, records[part])) <= MAX_OCTETS
        assert len(message) + 1024 <= smallest


def test_messages_are_as_full_as_they_may_be() -> None:
    small = [b'"x"'] * (3 * MAX_RECORDS + 1)
    assert [part.stop - part.start for part in parts(small)] == [MAX_RECORDS] * 3 + [1]
    half = [b"x" * (MAX_OCTETS // 2)] * 5
    assert [part.stop - part.start for part in parts(half)] == [2, 2, 1]
    assert fitting([b"x" * (MAX_OCTETS + 1), b"x"]) == 1


@given(st.lists(st.uuids().map(str), min_size=2, max_size=9))
def test_a_message_with_more_records_has_a_different_id(ids: list[str]) -> None:
    """JetStream drops a message whose id it has: with it would go the records added since."""
    assert batch_id(ids) == batch_id(list(ids))
    assert batch_id(ids[:-1]) != batch_id(ids)


def test_four_groups_of_front_ends_do_not_fill_the_stream_of_refusals() -> None:
    assert 4 * REFUSALS.max_per_topic * REFUSALS.max_message_bytes <= REFUSALS.max_bytes
