"""Is this machine's clock right? Compared with a reference, and watched for steps in between.

A certificate says from when to when it is valid, so a wrong clock makes certificates that are not
valid yet, or expired when they are issued. The reference is PostgreSQL's clock, which all services
share; front ends have that of NATS, and the times of the signed state.
"""

from __future__ import annotations

import logging
from collections import deque

from prometheus_client import Gauge

from estcore.clock import monotonic_s, unix_ms
from estcore.errors import ClockWrong
from estcore.runtime.logs import fields

log = logging.getLogger(__name__)

LIMIT_S = 30.0
_WARN_S = 5.0
_KEEP_S = 900.0

CLOCK_OFFSET_S = Gauge(
    "estsuite_clock_offset_seconds",
    "How far this machine's clock is ahead of the reference; negative when it is behind.",
)


class ClockCheck:
    """The offset of this machine's clock, estimated from comparisons with a reference.

    Delays only ever make an offset look larger than it is, so the smallest of the last
    comparisons counts. A step of the clock after a comparison is seen by the monotonic clock.
    """

    def __init__(self, *, keep_s: float = _KEEP_S) -> None:
        self._keep_s = keep_s
        self._compared: deque[tuple[float, float]] = deque(maxlen=64)
        self._warned = False

    def compared(self, reference_unix_s: float) -> None:
        """Take one comparison: the reference's time, at this moment."""
        now = monotonic_s()
        # Kept as the offset of the monotonic clock, which nothing sets.
        self._compared.append((now, now - reference_unix_s))
        offset = self.offset_s
        CLOCK_OFFSET_S.set(offset)
        if (abs(offset) > _WARN_S) != self._warned:
            self._warned = not self._warned
            if self._warned:
                log.warning("clock differs", extra=fields(offset_s=round(offset, 1)))
            else:
                log.info("clock agrees again", extra=fields(offset_s=round(offset, 1)))

    @property
    def offset_s(self) -> float:
        """How far the clock is ahead; 0 before the first comparison."""
        oldest = monotonic_s() - self._keep_s
        while len(self._compared) > 1 and self._compared[0][0] < oldest:
            self._compared.popleft()
        if not self._compared:
            return 0.0
        ahead = _wall_ahead_s()
        return min((ahead + offset for _, offset in self._compared), key=abs)

    @property
    def known(self) -> bool:
        """Whether it was ever compared."""
        return bool(self._compared)

    @property
    def right(self) -> bool:
        """Whether the clock may be used."""
        return abs(self.offset_s) <= LIMIT_S

    def require(self, limit_s: float = LIMIT_S) -> None:
        """Check that the clock is no further off than ``limit_s``, as far as is known.

        Raises:
            ClockWrong: it is.
        """
        offset = self.offset_s
        if abs(offset) > min(limit_s, LIMIT_S):
            direction = "ahead" if offset > 0 else "behind"
            raise ClockWrong(f"the clock is {abs(offset):.0f} s {direction}")


def _wall_ahead_s() -> float:
    return unix_ms() / 1000 - monotonic_s()
