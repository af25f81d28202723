"""A clock that a test moves."""

from __future__ import annotations

import datetime as dt


class FakeClock:
    """Implements ``estcore.clock.Clock``; starts at a fixed moment."""

    def __init__(self, start: dt.datetime | None = None) -> None:
        self._now = start or dt.datetime(2026, 11, 22, 12, 0, tzinfo=dt.UTC)

    def now(self) -> dt.datetime:
        """Return the present moment."""
        return self._now

    def forward(self, **parts: float) -> None:
        """Move by a timedelta given as keyword arguments, for example ``minutes=5``."""
        self._now += dt.timedelta(**parts)
