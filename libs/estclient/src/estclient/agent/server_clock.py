"""The time by which an agent decides: that of the machine, corrected where it is wrong.

Every answer of the server has a Date (RFC 9110 section 6.6.1), over TLS that authenticated the
server. A machine whose clock differs by more than a minute renews by the server's time: neither
in a loop, nor too late. A machine whose clock was set, or that slept, has no comparison until the
next answer.
"""

from __future__ import annotations

import datetime as dt
import logging

from estcore.clock import Clock, monotonic_s
from estcore.runtime.logs import fields

log = logging.getLogger(__name__)

TOLERANCE_S = 60.0
"""Dates have whole seconds, and an answer travels; rules of seconds would be noise."""
_FRESH_S = 2 * 86_400.0
"""The server is asked once a day at least."""


class ServerClock:
    """The machine's clock with the difference that answers show."""

    def __init__(self, machine: Clock) -> None:
        self._machine = machine
        self._offset_s: float | None = None
        self._seen: tuple[dt.datetime, float] | None = None
        self._reported = False

    def now(self) -> dt.datetime:
        """Return the present moment, aware, UTC."""
        moment = self._machine.now()
        if not self.is_compared or self._offset_s is None or abs(self._offset_s) <= TOLERANCE_S:
            return moment
        return moment + dt.timedelta(seconds=self._offset_s)

    @property
    def offset_s(self) -> float | None:
        """Server minus machine in seconds; None while it is not known."""
        return self._offset_s if self.is_compared else None

    @property
    def is_wrong(self) -> bool:
        """Whether the machine's clock is known to be wrong."""
        return abs(self.offset_s or 0) > TOLERANCE_S

    @property
    def is_compared(self) -> bool:
        """Whether a comparison exists that the machine's clock has not left since."""
        if self._seen is None:
            return False
        moment, at = self._seen
        passed = monotonic_s() - at
        jump = (self._machine.now() - moment).total_seconds() - passed
        return abs(jump) <= TOLERANCE_S and passed <= _FRESH_S

    def compare(self, date: dt.datetime) -> None:
        """Take the Date of an answer that has just arrived."""
        moment = self._machine.now()
        self._seen = moment, monotonic_s()
        self._offset_s = (date - moment).total_seconds()
        if self.is_wrong != self._reported:
            self._reported = self.is_wrong
            offset_s = round(self._offset_s)
            if self._reported:
                log.warning(
                    "machine clock differs from the server's", extra=fields(offset_s=offset_s)
                )
            else:
                log.info("machine clock agrees with the server's", extra=fields(offset_s=offset_s))
