"""Pauses of the agent after failures: doubled, spread, and no shorter than the server asked for."""

from __future__ import annotations

import random
from collections.abc import Callable

from estclient.errors import ServerAway, StillPending
from estcore.est.retry_after import LONGEST_S

_DOUBLINGS = 16


class Backoff:
    """How long to wait after the failures in a row so far.

    Between half of the pause and all of it, so that a fleet that failed together does not return
    together. ``spread`` returns a number between two.
    """

    def __init__(
        self,
        first_s: float,
        longest_s: float,
        spread: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._first_s, self._longest_s = first_s, longest_s
        self._spread = spread
        self._failures = 0

    def succeeded(self) -> None:
        """Begin with the first pause again."""
        self._failures = 0

    def pause_s(self, error: BaseException) -> float:
        """Return the pause after one more failure.

        A request that waits for approval is repeated when the server says (RFC 7030 section
        4.2.3: "the client MUST wait at least the specified 'retry-after' time"), at most a day
        later. An overloaded server is not waited for longer than for one that does not answer.
        """
        doubled: float = min(self._first_s * 2 ** min(self._failures, _DOUBLINGS), self._longest_s)
        self._failures += 1
        pause = doubled * self._spread(0.5, 1)
        match error:
            case StillPending(retry_after_s=float(wished)):
                return max(pause, min(wished, LONGEST_S))
            case ServerAway(retry_after_s=float(wished)):
                return max(pause, min(wished, self._longest_s))
            case _:
                return pause
