"""Pace of fleet operations: never more than the operator allowed, whatever the signers do."""

from __future__ import annotations

import datetime as dt

from hypothesis import given
from hypothesis import strategies as st

from ca_signer.pace import allowance


@given(
    st.integers(1, 12_000),
    st.lists(st.floats(0.5, 3600, allow_nan=False), min_size=1, max_size=50),
)
def test_no_more_are_handled_than_the_time_allows(per_minute: int, pauses: list[float]) -> None:
    """As the job paces: it works once the time for one is over, and counts from then."""
    handled, waited, elapsed = 0, 0.0, 0.0
    for pause in pauses:
        waited, elapsed = waited + pause, elapsed + pause
        if waited >= 60 / per_minute:
            handled += allowance(dt.timedelta(seconds=waited), per_minute)
            waited = 0.0
    assert handled <= elapsed * per_minute / 60 + 1e-3


@given(st.integers(1, 12_000), st.floats(0, 1e6, allow_nan=False))
def test_one_is_allowed_once_its_time_is_over_and_a_pause_is_not_made_up_for(
    per_minute: int, since_s: float
) -> None:
    allowed = allowance(dt.timedelta(seconds=since_s), per_minute)
    assert allowed <= max(10 * per_minute / 60, 1)
    if since_s > 60 / per_minute + 1e-3:
        assert allowed >= 1
