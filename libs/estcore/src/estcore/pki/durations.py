"""Durations in configuration: ``90d``, ``24h``, ``2m``, ``30s``; always whole seconds."""

from __future__ import annotations

import datetime as dt
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_FORM = re.compile(r"([0-9]{1,9})([smhd])")


def parse_duration(value: Any) -> dt.timedelta:
    """Return the duration written as a number and one of s, m, h, d; a timedelta passes.

    Raises:
        ValueError: anything else, with a sentence for the operator.
    """
    if isinstance(value, dt.timedelta):
        return value
    match = _FORM.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a duration such as 90d, 24h, 15m or 30s")
    return dt.timedelta(seconds=int(match[1]) * _UNITS[match[2]])


def format_duration(value: dt.timedelta) -> str:
    """Return the shortest exact form ``parse_duration`` reads."""
    seconds = int(value.total_seconds())
    for unit in ("d", "h", "m"):
        if seconds and seconds % _UNITS[unit] == 0:
            return f"{seconds // _UNITS[unit]}{unit}"
    return f"{seconds}s"


Duration = Annotated[
    dt.timedelta, BeforeValidator(parse_duration), PlainSerializer(format_duration)
]
