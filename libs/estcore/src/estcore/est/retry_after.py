"""Retry-After (RFC 9110 section 10.2.3; RFC 7030 section 4.2.3): seconds, or a date in three forms.

An answer of a server must not end or stop its client, so every text gives a number of seconds
between 0 and ``LONGEST_S``, or nothing.
"""

from __future__ import annotations

import datetime as dt
import re

LONGEST_S = 86_400
"""A longer wait is cut to a day: the server may mean it, or its clock or its text is wrong."""

_DAYS = "Mon|Tue|Wed|Thu|Fri|Sat|Sun"
_LONG_DAYS = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH = f"(?P<month>{'|'.join(_MONTHS)})"
_TIME = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_SECONDS = re.compile(r"[0-9]+")
_DATES = (
    # IMF-fixdate, the one that is to be sent.
    re.compile(rf"(?:{_DAYS}), (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT"),
    # rfc850-date, with two digits of the year.
    re.compile(rf"(?:{_LONG_DAYS}), (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT"),
    # asctime-date, with a space before a day of one digit.
    re.compile(rf"(?:{_DAYS}) {_MONTH} (?P<day>[0-9 ][0-9]) {_TIME} (?P<year>[0-9]{{4}})"),
)
"""The forms of HTTP-date, RFC 9110 section 5.6.7. The day of the week is not compared."""
_DIGITS = 10
_LEAP_SECOND = 60
_CENTURY = 100
_FUTURE_YEARS = 50


def retry_after_s(text: str | None, *, now: dt.datetime) -> float | None:
    """Return how many seconds to wait, 0 to ``LONGEST_S``; None for no value or one that is none.

    A date in the past is 0.
    """
    if text is None:
        return None
    text = text.strip(" \t")
    if _SECONDS.fullmatch(text):
        digits = text.lstrip("0") or "0"
        return float(LONGEST_S if len(digits) > _DIGITS else min(int(digits), LONGEST_S))
    moment = http_date(text, now=now)
    if moment is None:
        return None
    return min(max((moment - now).total_seconds(), 0.0), float(LONGEST_S))


def http_date(text: str, *, now: dt.datetime) -> dt.datetime | None:
    """Return the moment of an HTTP-date, aware, UTC; None for what is none of the three forms.

    ``now`` decides the century of a year with two digits.
    """
    for form in _DATES:
        found = form.fullmatch(text)
        if found is not None:
            return _moment(found, now)
    return None


def _moment(found: re.Match[str], now: dt.datetime) -> dt.datetime | None:
    year, second = int(found["year"]), int(found["second"])
    if len(found["year"]) == len("00"):
        year += now.year - now.year % _CENTURY
        if year > now.year + _FUTURE_YEARS:
            # "MUST interpret … as representing the most recent year in the past that had the
            # same last two digits."
            year -= _CENTURY
    try:
        return dt.datetime(
            year,
            _MONTHS.index(found["month"]) + 1,
            int(found["day"]),
            int(found["hour"]),
            int(found["minute"]),
            min(second, _LEAP_SECOND - 1) if second <= _LEAP_SECOND else second,
            tzinfo=dt.UTC,
        )
    except ValueError:
        return None
