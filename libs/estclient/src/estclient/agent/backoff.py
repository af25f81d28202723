"""Pauses of the agent after failures: doubled, spread, and as long as the server asked for."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from estclient.errors import ServerAway, StillPending
from estcore.clock import monotonic_s
from estcore.est.retry_after import LONGEST_S

T = TypeVar("T")

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

        A server that asked for a longer pause gets it, up to the longest one: a wrong clock or text
        at the server must not keep the agent from its other work.
        """
        doubled: float = min(self._first_s * 2 ** min(self._failures, _DOUBLINGS), self._longest_s)
        self._failures += 1
        pause = doubled * self._spread(0.5, 1)
        match error:
            case (
                ServerAway(retry_after_s=float(wished)) | StillPending(retry_after_s=float(wished))
            ):
                return max(pause, min(wished, self._longest_s))
            case _:
                return pause


class ApprovalWait:
    """Keeps a request that waits for approval from being repeated too early.

    RFC 7030 section 4.2.3: "the client MUST wait at least the specified 'retry-after' time before
    repeating the same request." Meanwhile the agent does its other work.
    """

    def __init__(self, monotonic: Callable[[], float] = monotonic_s) -> None:
        self._monotonic = monotonic
        self._not_before = 0.0

    async def ask(self, send: Callable[[], Awaitable[T]]) -> T:
        """Send the request, unless it is too early.

        Raises:
            StillPending: not approved yet, or not asked again yet.
        """
        left = self._not_before - self._monotonic()
        if left > 0:
            raise StillPending("the request still waits for approval", retry_after_s=left)
        try:
            return await send()
        except StillPending as exc:
            self._not_before = self._monotonic() + min(exc.retry_after_s or 0, LONGEST_S)
            raise
