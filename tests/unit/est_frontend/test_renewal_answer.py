"""When a client is to renew, and when to ask again."""

from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st

from est_frontend.renewal_info.answer import renewal_info, retry_after_s
from est_frontend.renewal_info.store import StoredEntry

NOW = 1_800_000_000
SIX_HOURS = 21_600


def stored(start: int, end: int, not_after: int) -> StoredEntry:
    return StoredEntry(NOW + start, NOW + end, NOW + not_after, None, None, None)


@st.composite
def entries(draw: st.DrawFn) -> StoredEntry:
    start = draw(st.integers(-(10**8), 10**8))
    end = start + draw(st.integers(1, 10**7))
    return stored(start, end, end + draw(st.integers(0, 10**7)))


@given(entries(), st.floats(0, 1, exclude_max=True), st.integers(1, 86_400))
def test_a_client_asks_again_in_a_second_at_least_and_in_the_longest_time_at_most(
    entry: StoredEntry, draw: float, longest: int
) -> None:
    assert 1 <= retry_after_s(entry, now=NOW, longest_s=longest, draw=draw) <= longest


@given(entries(), st.floats(0, 1, exclude_max=True))
def test_a_client_that_asks_before_the_window_asks_again_before_it_begins(
    entry: StoredEntry, draw: float
) -> None:
    wait = retry_after_s(entry, now=NOW, longest_s=SIX_HOURS, draw=draw)
    if entry.start - NOW > 1:
        assert NOW + wait < entry.start


def test_a_client_far_from_its_window_asks_every_six_hours_or_a_quarter_less() -> None:
    entry = stored(86_400 * 20, 86_400 * 22, 86_400 * 30)
    waits = [retry_after_s(entry, now=NOW, longest_s=SIX_HOURS, draw=d) for d in (0, 0.5, 0.999)]
    assert waits == [21_600, 18_900, 16_205]


def test_a_client_of_a_two_minute_certificate_does_not_wait_six_hours() -> None:
    assert retry_after_s(stored(80, 90, 120), now=NOW, longest_s=SIX_HOURS, draw=0) == 40
    assert retry_after_s(stored(-1, 9, 39), now=NOW, longest_s=SIX_HOURS, draw=0) == 4


def test_an_answer_has_what_the_entry_has() -> None:
    rotation = uuid.uuid4()
    entry = StoredEntry(NOW, NOW + 60, NOW + 900, rotation.bytes, "incident", "https://ca.test/why")
    info = renewal_info(entry, now=NOW - 100, longest_s=SIX_HOURS, draw=0)
    assert (info.start.timestamp(), info.end.timestamp()) == (NOW, NOW + 60)
    assert (info.rotation_id, info.reason) == (str(rotation), "incident")
    assert (info.explanation_url, info.retry_after_s) == ("https://ca.test/why", 50)
    assert renewal_info(stored(1, 2, 3), now=NOW, longest_s=60, draw=0).reason == "lifetime"
