"""Reconciliation with the ledger: does a service hold what was committed, minute by minute?

A PubAck says that the stream has an event, not that a consumer applied it, and a stream can lose
what it acknowledged. ca-signer publishes for every closed window how many certificates it
committed and a digest of their ids. A window that differs is compared again, since its events may
still be under way; then ca-signer is asked to publish it again; after that it is given up.

The message about a window can be lost with the stream whose loss it would show. Therefore each
service also asks for the sums: at start, after each reconnect and every hour those of the last
day; at start and once a day those of every day before.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum

from estcore.clock import Clock, monotonic_s
from estcore.errors import MalformedRequest, Unavailable
from estcore.messages.envelope import decode, encode
from estcore.messages.events import (
    DAY_S,
    MAX_WINDOWS,
    WINDOW_S,
    ReannounceAnswered,
    ReannounceRequested,
    WindowsAnswered,
    WindowsRequested,
    WindowSum,
    window_sums_sql,
)
from estcore.messages.topics import REANNOUNCE_TOPIC, WINDOWS_TOPIC
from estcore.runtime.bus import Bus
from estcore.runtime.database import Connection, Database
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop

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
    _compared: dict[tuple[dt.datetime, dt.datetime], int] = field(default_factory=dict, init=False)

    async def compare(self, window: WindowSum) -> tuple[Verdict, int]:
        """Return what to do with a window, and how many certificates were found.

        Raises:
            Unavailable: database or ca-signer unavailable; compare again later.
        """
        key = window.start, window.end
        count, digest = await self.count_and_digest(window.start, window.end)
        if count == window.count and (not count or digest == _padded(window.digest)):
            self._compared.pop(key, None)
            return Verdict.EQUAL, count
        compared = self._compared.get(key, 0) + 1
        verdict = Verdict.DIFFERS
        if compared > self.patience + self.max_requests:
            self._compared.pop(key, None)
            return Verdict.GIVEN_UP, count
        if compared > self.patience:
            await self._request(window)
            verdict = Verdict.REQUESTED
        self._compared[key] = compared
        return verdict, count

    async def _request(self, window: WindowSum) -> None:
        request = ReannounceRequested(
            requester=self.requester,
            windows=(window.start,),
            length_s=int((window.end - window.start).total_seconds()) or None,
        )
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


Sums = dict[dt.datetime, tuple[int, str]]
_RETRY_S = 30.0
_SETTLE_S = 5.0
_AGAIN_S = 86_400.0
_PIECE_DAYS = 28
_FAST_S = 0.25
_SLOW_S = 2.0


@dataclass(kw_only=True, eq=False, slots=True)
class LedgerComparison:
    """Asks ca-signer for the sums of all windows and compares those of one service with them."""

    bus: Bus
    database: Database
    clock: Clock
    requester: str
    rows: str
    """What this service holds: a table or query with ``issuance_id`` (text) and ``issued_at``."""
    handle: Callable[[WindowSum], Awaitable[bool]]
    """Compares one window that differs and has it published again; True when it is done."""
    every_s: float
    recheck_s: float
    active: Callable[[], bool] = lambda: True
    """Whether it is this process's turn to compare."""
    history_days: int = 1400
    request_timeout_s: float = _REQUEST_TIMEOUT_S
    _due: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _days_at: float | None = field(default=None, init=False)
    _days_left: dt.datetime | None = field(default=None, init=False)
    """Where the comparison of all days goes on, after one that was deferred."""
    _piece_days: int = field(default=_PIECE_DAYS, init=False)

    async def run(self, stop: asyncio.Event) -> None:
        """Compare at start, after each reconnect and on schedule, until ``stop``."""

        async def reconnected() -> None:
            self._due.set()

        self.bus.on_reconnect(reconnected)
        self._due.set()
        while not stop.is_set():
            if not self._due.is_set() or not self.active():
                await self._wait(stop)
                continue
            self._due.clear()
            # Events that a consumer is about to get are not missing.
            if await sleep_or_stop(stop, _SETTLE_S):
                return
            try:
                await self.compare(stop)
            except (Unavailable, MalformedRequest) as exc:
                log.info("comparison with the ledger deferred", extra=fields(code=exc.code))
                if not await sleep_or_stop(stop, _RETRY_S):
                    self._due.set()

    async def _wait(self, stop: asyncio.Event) -> None:
        """Wait for the next comparison, or look once a second whether this process is active."""
        if self._due.is_set():
            await sleep_or_stop(stop, 1)
            return
        waits = [asyncio.ensure_future(self._due.wait()), asyncio.ensure_future(stop.wait())]
        await asyncio.wait(waits, timeout=self.every_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await wait
        self._due.set()

    async def compare(self, stop: asyncio.Event) -> None:
        """Compare the last day by minutes, and if it is time, the days before by days.

        Raises:
            Unavailable: database or ca-signer unavailable.
            MalformedRequest: the answer cannot be read.
        """
        now = self.clock.now()
        today = _floor(now, DAY_S)
        start = _floor(now - dt.timedelta(seconds=DAY_S), WINDOW_S)
        await self._windows(start, now, stop)
        if self._days_at is not None and monotonic_s() - self._days_at < _AGAIN_S:
            return
        if await self._days(today, stop):
            self._days_at = monotonic_s()

    async def _days(self, today: dt.datetime, stop: asyncio.Event) -> bool:
        """Compare every day before ``today``, newest first; True when all are done.

        In pieces of as many days as both sides sum well within the timeouts of the request and of
        a statement: fewer after a slow or unanswered one, more after a fast one.
        """
        oldest = today - dt.timedelta(days=self.history_days)
        end = self._days_left or today
        while end > oldest:
            start = max(oldest, end - dt.timedelta(days=self._piece_days))
            began = monotonic_s()
            try:
                different = await self._different(start, end, DAY_S)
            except Unavailable:
                self._days_left = end
                self._piece_days = max(1, self._piece_days // 2)
                raise
            took_s = monotonic_s() - began
            if took_s < _FAST_S:
                self._piece_days = min(self._piece_days * 2, self.history_days)
            elif took_s > _SLOW_S:
                self._piece_days = max(1, self._piece_days // 2)
            for day in different:
                if stop.is_set():
                    return False
                log.warning(
                    "a day differs from the ledger", extra=fields(start=day.start.isoformat())
                )
                await self._windows(day.start, day.end, stop)
            end = self._days_left = start
        self._days_left = None
        return True

    async def _windows(self, start: dt.datetime, end: dt.datetime, stop: asyncio.Event) -> None:
        open_windows = await self._different(start, end, WINDOW_S)
        while open_windows:
            open_windows = [w for w in open_windows if not await self.handle(w)]
            if open_windows and await sleep_or_stop(stop, self.recheck_s):
                return

    async def _different(
        self, start: dt.datetime, end: dt.datetime, length_s: int
    ) -> list[WindowSum]:
        request = WindowsRequested(
            requester=self.requester, start=start, end=end, length_s=length_s
        )
        octets = await self.bus.request(
            WINDOWS_TOPIC,
            encode(request),
            answered_by=("ca-signer",),
            timeout_s=self.request_timeout_s,
        )
        theirs = decode(WindowsAnswered, octets).windows
        async with self.database.connection() as connection:
            ours = await sums(connection, self.rows, start, end, length_s)
        return [w for w in theirs if ours.get(w.start) != (w.count, _padded(w.digest))]


async def sums(
    connection: Connection, rows: str, start: dt.datetime, end: dt.datetime, length_s: int
) -> Sums:
    """Return count and digest of each window of ``length_s`` seconds that holds something."""
    length = dt.timedelta(seconds=length_s)
    found = await connection.fetch(window_sums_sql(rows), length, start, end)
    return {row["start"]: (row["count"], row["digest"].bytes.hex()) for row in found}


def _floor(moment: dt.datetime, length_s: int) -> dt.datetime:
    seconds = int(moment.timestamp())
    return dt.datetime.fromtimestamp(seconds - seconds % length_s, dt.UTC)


def check_size(request: WindowsRequested) -> None:
    """Check that an answer fits into one message.

    Raises:
        MalformedRequest: it does not, or the times have no zone or are in no order.
    """
    if request.start.tzinfo is None or request.end.tzinfo is None or request.end < request.start:
        raise MalformedRequest("windows of no time", code="message.malformed")
    if (request.end - request.start).total_seconds() // request.length_s >= MAX_WINDOWS:
        raise MalformedRequest("too many windows", code="message.malformed")
