"""Reconciliation with the ledger: does a service hold what was committed, minute by minute?

A PubAck says that the stream has an event, not that a consumer applied it, and a stream can lose
what it acknowledged. ca-signer publishes for every closed window how many certificates it
committed and a digest of their ids. A window that differs is compared again, since its events may
still be under way; then ca-signer is asked to publish it again; after that it is given up.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum

from estcore.messages.envelope import decode, encode
from estcore.messages.events import ReannounceAnswered, ReannounceRequested, WindowClosed
from estcore.messages.topics import REANNOUNCE_TOPIC
from estcore.runtime.bus import Bus
from estcore.runtime.logs import fields

log = logging.getLogger(__name__)

_REQUEST_TIMEOUT_S = 10
CountAndDigest = Callable[[dt.datetime, dt.datetime], Awaitable[tuple[int, str]]]
"""Returns how many certificates a service holds of a window, and ``window_digest`` of their ids."""


class Verdict(Enum):
    """What came of comparing a window."""

    EQUAL = "equal"
    DIFFERS = "open"
    REQUESTED = "requested"
    GIVEN_UP = "given_up"

    @property
    def final(self) -> bool:
        """The window is not compared again."""
        return self in {Verdict.EQUAL, Verdict.GIVEN_UP}


@dataclass(kw_only=True, eq=False, slots=True)
class WindowComparison:
    """Compares closed windows of one service with what ca-signer committed.

    Comparisons are counted by this process. One during which the database or ca-signer was
    unavailable does not count.
    """

    bus: Bus
    requester: str
    count_and_digest: CountAndDigest
    patience: int
    """Comparisons before the first request."""
    max_requests: int
    _compared: dict[dt.datetime, int] = field(default_factory=dict, init=False)

    async def compare(self, window: WindowClosed) -> tuple[Verdict, int]:
        """Return what to do with a window, and how many certificates were found.

        Raises:
            Unavailable: database or ca-signer unavailable; compare again later.
        """
        count, digest = await self.count_and_digest(window.start, window.end)
        if count == window.count and (not count or digest == _padded(window.digest)):
            self._compared.pop(window.start, None)
            return Verdict.EQUAL, count
        compared = self._compared.get(window.start, 0) + 1
        verdict = Verdict.DIFFERS
        if compared > self.patience + self.max_requests:
            self._compared.pop(window.start, None)
            return Verdict.GIVEN_UP, count
        if compared > self.patience:
            await self._request(window)
            verdict = Verdict.REQUESTED
        self._compared[window.start] = compared
        return verdict, count

    async def _request(self, window: WindowClosed) -> None:
        request = ReannounceRequested(requester=self.requester, windows=(window.start,))
        reply = await self.bus.request(
            REANNOUNCE_TOPIC,
            encode(request),
            answered_by=("ca-signer",),
            timeout_s=_REQUEST_TIMEOUT_S,
        )
        log.warning(
            "reconciliation window requested again",
            extra=fields(
                start=window.start.isoformat(),
                republished=decode(ReannounceAnswered, reply).announced,
            ),
        )


def _padded(digest: str) -> str:
    return digest.rjust(64, "0").lower()
