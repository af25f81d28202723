"""Anti-entropy with the ledger: does the log hold what was issued, minute by minute.

The signer tells count and digest of every closed window. A window that differs is compared
again later, since its records may still be on their way; from the second time on the signer is
asked to announce it again. A window that stays different is given up, on record and in metrics.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from audit import metrics, store
from audit.self_records import SelfRecords
from audit.settings import SERVICE, WindowSettings
from estcore import ids
from estcore.errors import BusUnavailable, LedgerUnavailable, MalformedRequest
from estcore.messages.envelope import decode, encode
from estcore.messages.events import ReannounceRequested, WindowClosed, window_digest
from estcore.messages.topics import AUDIT_CONSUMER, PKI_EVENTS, REANNOUNCE_TOPIC
from estcore.runtime.bus import Bus
from estcore.runtime.consume import Delivery, PullConsumer
from estcore.runtime.database import Database
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop

log = logging.getLogger(__name__)

_CREDIT = 64
_TICK_S = 1.0


class Windows:
    """The job that compares closed windows while this process is the writer."""

    def __init__(
        self,
        settings: WindowSettings,
        *,
        bus: Bus,
        database: Database,
        own: SelfRecords,
        leading: Callable[[], bool],
    ) -> None:
        self._settings, self._bus, self._database = settings, bus, database
        self._own, self._leading = own, leading
        self._consumer = PullConsumer(bus, PKI_EVENTS, AUDIT_CONSUMER, credit=_CREDIT)

    async def run(self, stop: asyncio.Event) -> None:
        """Compare until ``stop``."""
        started = paused = False
        while not stop.is_set():
            if not self._leading():
                if started and not paused:
                    await self._hand_back()
                    paused = True
                await sleep_or_stop(stop, _TICK_S)
                continue
            if not started or paused:
                await (self._consumer.resume() if started else self._consumer.start())
                started, paused = True, False
            await self._consumer.maintain()
            await self._consumer.wait(_TICK_S)
            for delivery in self._consumer.take(_CREDIT):
                await self._handle(delivery)
        if started and not paused:
            await self._hand_back()

    async def _hand_back(self) -> None:
        for delivery in await self._consumer.pause():
            await delivery.nak(0)

    async def _handle(self, delivery: Delivery) -> None:
        try:
            window = decode(WindowClosed, delivery.data)
            if window.start.tzinfo is None or window.end.tzinfo is None:
                raise MalformedRequest("a window without time zone", code="message.malformed")
        except MalformedRequest as exc:
            log.error("reconciliation window unreadable", extra=fields(reason=exc.reason))
            metrics.WINDOWS.labels("malformed").inc()
            await delivery.term()
            return
        try:
            settled = await self._compare(window, delivery.attempt)
        except LedgerUnavailable:
            await delivery.nak(self._settings.retry_s)
            return
        if settled:
            await delivery.ack()
        else:
            await delivery.nak(self._settings.retry_s)

    async def _compare(self, window: WindowClosed, attempt: int) -> bool:
        async with self._database.connection() as connection:
            found = await store.issued_between(connection, window.start, window.end)
            equal = (
                len(found) == window.count
                and window_digest(found) == window.digest.rjust(64, "0").lower()
            )
            last = attempt >= self._settings.attempts
            state = "equal" if equal else "given_up" if last else "open"
            await store.note_window(
                connection,
                (window.start, window.end),
                expected=window.count,
                found=len(found),
                state=state,
                attempts=attempt,
            )
        metrics.WINDOWS.labels(state).inc()
        if equal:
            return True
        if last:
            self._give_up(window, len(found))
            return True
        if attempt > 1:
            await self._ask(window)
        return False

    async def _ask(self, window: WindowClosed) -> None:
        metrics.REANNOUNCE.inc()
        question = ReannounceRequested(requester=SERVICE, windows=(window.start,))
        try:
            await self._bus.request(REANNOUNCE_TOPIC, encode(question))
        except BusUnavailable as exc:
            log.warning("republication request unanswered", extra=fields(error=exc.reason))

    def _give_up(self, window: WindowClosed, found: int) -> None:
        log.error(
            "audit log differs from the ledger",
            extra=fields(start=window.start, expected=window.count, found=found),
        )
        self._own.note(
            "audit.window_differs",
            phase="error",
            severity="error",
            reason=("window.differs", "the log does not hold what the ledger issued"),
            record_id=ids.record_id("audit.window_differs", window.id),
            start=window.start.isoformat(),
            expected=window.count,
            found=found,
        )
