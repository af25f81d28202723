"""Time as an argument: code that needs "now" is given a Clock."""

from __future__ import annotations

import datetime as dt
import time
from typing import Protocol


class Clock(Protocol):
    """Where time comes from. Always aware UTC."""

    def now(self) -> dt.datetime:
        """Return the present moment, aware, UTC."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> dt.datetime:
        """Return the machine's time, aware, UTC."""
        return dt.datetime.now(dt.UTC)  # noqa: TID251 - the one place


def unix_ms() -> int:
    """Return milliseconds since 1970 by the machine's clock."""
    return time.time_ns() // 1_000_000


def monotonic_s() -> float:
    """Return a time that only moves forward, for measuring distances."""
    return time.monotonic()
