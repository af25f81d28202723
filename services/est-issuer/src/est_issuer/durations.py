"""Durations as Kubernetes writes them, Go's ``time.Duration``: ``2160h0m0s`` (pure)."""

from __future__ import annotations

import datetime as dt
import re

_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ns|us|µs|μs|ms|s|m|h))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|μs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}
_LONGEST = 64


def parse_duration(text: object) -> dt.timedelta | None:
    """Return a duration; None where the text is none, or is negative."""
    if not isinstance(text, str) or len(text) > _LONGEST or not _DURATION.fullmatch(text):
        return None
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    try:
        return dt.timedelta(seconds=seconds)
    except OverflowError:
        return None


def shown(duration: dt.timedelta) -> str:
    """Return a duration for people: whole days, or hours, minutes and seconds."""
    seconds = int(duration.total_seconds())
    if seconds and seconds % 86400 == 0:
        return f"{seconds // 86400}d"
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    parts = ((hours, "h"), (minutes, "m"), (rest, "s"))
    return "".join(f"{n}{unit}" for n, unit in parts if n) or "0s"
