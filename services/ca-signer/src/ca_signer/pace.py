"""Pace of fleet operations: how many certificates a job may handle now."""

from __future__ import annotations

import datetime as dt

_LONGEST_PAUSE_S = 10.0


def allowance(since: dt.timedelta, per_minute: int) -> int:
    """Return how many may be handled now; a pause of the signers is not made up for.

    ``since`` is the time since some were handled last.
    """
    pause_s = min(since.total_seconds(), max(_LONGEST_PAUSE_S, 60 / per_minute))
    # Negative where another signer paced after this transaction had begun.
    return max(0, int(pause_s * per_minute / 60))
