"""Retry-After: every legal form gives its seconds, and any other text gives none."""

from __future__ import annotations

import datetime as dt
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estcore.est.retry_after import LONGEST_S, http_date, retry_after_s

NOW = dt.datetime(2026, 11, 28, 12, 0, 0, tzinfo=dt.UTC)
FIRST = dt.datetime(1977, 1, 1, tzinfo=dt.UTC)
moments = st.integers(0, 100 * 365 * 86_400).map(lambda s: FIRST + dt.timedelta(seconds=s))


@pytest.mark.parametrize(
    "text",
    [
        "Sat, 28 Nov 2026 12:00:07 GMT",
        "Saturday, 28-Nov-26 12:00:07 GMT",
        "Sat Nov 28 12:00:07 2026",
        "7",
        "007",
        " 7\t",
    ],
)
def test_seconds_and_each_form_of_a_date_are_read(text: str) -> None:
    """RFC 9110 10.2.3: Retry-After = HTTP-date / delay-seconds."""
    assert retry_after_s(text, now=NOW) == 7


@given(moments)
def test_every_moment_is_read_in_each_form(moment: dt.datetime) -> None:
    """RFC 9110 5.6.7: "MUST accept all three HTTP-date formats"."""
    for text in (
        format_datetime(moment, usegmt=True),
        moment.strftime("%A, %d-%b-%y %H:%M:%S GMT"),
        moment.ctime(),
    ):
        assert http_date(text, now=NOW) == moment


def test_a_year_of_two_digits_is_at_most_fifty_years_ahead() -> None:
    """RFC 9110 5.6.7: more than 50 years in the future is the most recent year in the past."""
    for year, meant in ((76, 2076), (77, 1977), (99, 1999), (0, 2000), (26, 2026)):
        moment = http_date(f"Sunday, 06-Nov-{year:02} 08:49:37 GMT", now=NOW)
        assert moment is not None
        assert moment.year == meant


def test_a_leap_second_is_legal() -> None:
    assert retry_after_s("Sat, 28 Nov 2026 12:00:60 GMT", now=NOW) == 59


@pytest.mark.parametrize(
    "text",
    ["86401", "9" * 20, "9" * 5000, "Sat, 28 Nov 9999 12:00:00 GMT", "Sat Nov 28 12:00:00 2027"],
)
def test_a_wait_is_at_most_a_day(text: str) -> None:
    assert retry_after_s(text, now=NOW) == LONGEST_S


def test_a_date_in_the_past_is_now() -> None:
    assert retry_after_s("Sun Nov  6 08:49:37 1994", now=NOW) == 0


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "-1",
        "+1",
        "1.5",
        "1e3",
        "²",
        "٣",
        "NaN",
        "soon",
        "1, 2",
        "Sat, 31 Feb 2026 12:00:00 GMT",
        "Sat, 28 Nov 2026 25:00:00 GMT",
        "Sat, 28 Nov 0000 12:00:00 GMT",
        "Sat, 28 Nov 2026 12:00:61 GMT",
        "Sat, 28 Nov 2026 12:00:00 +0000",
        "Sat Nov 28 12:00:00 2026 GMT\n",
        "2026-11-28T12:00:00Z",
        "\udcff",
    ],
)
def test_anything_else_is_no_wait(text: str | None) -> None:
    assert retry_after_s(text, now=NOW) is None


@given(st.one_of(st.text(), st.text(alphabet="0123456789 :-,GMTSaturdyNov")))
def test_any_text_gives_a_wait_within_bounds_or_none(text: str) -> None:
    wait = retry_after_s(text, now=NOW)
    assert wait is None or 0 <= wait <= LONGEST_S
