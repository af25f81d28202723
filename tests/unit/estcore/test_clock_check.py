"""The offset of a clock, from comparisons with a reference."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estcore.clock import unix_ms
from estcore.errors import ClockWrong
from estcore.runtime.clock_check import LIMIT_S, ClockCheck


@given(st.floats(-1e9, 1e9))
def test_an_offset_is_what_it_was_compared_with(ahead_s: float) -> None:
    check = ClockCheck()
    check.compared(unix_ms() / 1000 - ahead_s)
    assert check.offset_s == pytest.approx(ahead_s, abs=1)
    if abs(abs(ahead_s) - LIMIT_S) > 1:
        assert check.right == (abs(ahead_s) < LIMIT_S)


@given(st.floats(-20, 20), st.lists(st.floats(31, 1e6), min_size=1, max_size=20))
def test_what_was_under_way_for_long_does_not_make_a_clock_wrong(
    ahead_s: float, delays_s: list[float]
) -> None:
    check = ClockCheck()
    for delay_s in (*delays_s, 0.0, *delays_s):
        check.compared(unix_ms() / 1000 - ahead_s - delay_s)
    assert check.right
    assert check.offset_s == pytest.approx(ahead_s, abs=1) or abs(check.offset_s) <= abs(ahead_s)


def test_a_clock_is_right_before_anything_is_known() -> None:
    assert ClockCheck().right
    ClockCheck().require()


@pytest.mark.parametrize(("ahead_s", "text"), [(600, "600 s ahead"), (-7200, "7200 s behind")])
def test_a_wrong_clock_says_by_how_much_and_in_which_direction(ahead_s: float, text: str) -> None:
    check = ClockCheck()
    check.compared(unix_ms() / 1000 - ahead_s + 0.2)
    with pytest.raises(ClockWrong, match=text):
        check.require()


def test_a_short_lifetime_asks_for_a_better_clock() -> None:
    check = ClockCheck()
    check.compared(unix_ms() / 1000 - 12)
    check.require()
    with pytest.raises(ClockWrong):
        check.require(9)
