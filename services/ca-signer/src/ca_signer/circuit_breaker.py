"""A circuit breaker (pure): after failures in a row nothing is tried for a growing time.

    closed ── n failures in a row ──► open ── its time is over ──► half open: one probe
      ▲                                 ▲                              │        │
      └──────────── success ────────────┼──────────────────────────────┘        │
                                        └────────── failure: twice the time ────┘

A probe that ends neither way (its caller was cancelled) blocks nothing: the next one is let
through after as long again.
"""

from __future__ import annotations

from typing import Literal

State = Literal["closed", "half_open", "open"]


class Breaker:
    """Counts failures in a row; times are seconds of a monotonic clock, given by the caller."""

    def __init__(self, *, failures: int, open_s: float, longest_s: float) -> None:
        self._limit, self._first_s, self._longest_s = failures, open_s, longest_s
        self._failures = 0
        self._open_s = open_s
        self._retry_at = 0.0
        self.state: State = "closed"

    def due(self, now: float) -> bool:
        """Whether ``admit`` would let something through."""
        return self.state == "closed" or now >= self._retry_at

    def admit(self, now: float) -> bool:
        """Whether to try; while not closed a True makes the caller the one probe."""
        if self.state == "closed":
            return True
        if not self.due(now):
            return False
        self.state = "half_open"
        self._retry_at = now + self._open_s
        return True

    def succeeded(self) -> None:
        """It works: close."""
        self.state = "closed"
        self._failures = 0
        self._open_s = self._first_s

    def failed(self, now: float) -> None:
        """It failed: open at the limit; when it was not closed, for twice the time."""
        self._failures += 1
        if self.state != "closed":
            self._open_s = min(self._open_s * 2, self._longest_s)
        elif self._failures < self._limit:
            return
        self.state = "open"
        self._retry_at = now + self._open_s
