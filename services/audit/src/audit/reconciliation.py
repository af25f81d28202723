"""Reconciliation of the audit log with the ledger, window by window, by the writer.

A window that stays different is given up: in the log, in metrics and on record.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Callable, Sequence

from audit import metrics, store
from audit.self_records import SelfRecords
from audit.settings import SERVICE, WindowSettings
from estcore import ids
from estcore.clock import Clock
from estcore.errors import MalformedRequest, Unavailable
from estcore.messages.envelope import decode
from estcore.messages.events import WindowClosed, WindowSum, window_digest
from estcore.messages.topics import AUDIT_CONSUMER, PKI_EVENTS
from estcore.runtime.bus import Bus
from estcore.runtime.consume import PullConsumer
from estcore.runtime.database import Database
from estcore.runtime.delivery import Delivery
from estcore.runtime.logs import fields
from estcore.runtime.reconciliation import LedgerComparison, Verdict, WindowComparison
from estcore.runtime.worker import MessageWorker

log = logging.getLogger(__name__)

_CREDIT = 64
_PATIENCE = 1


class Reconciliation:
    """The job that compares closed windows while this process is the writer."""

    def __init__(
        self,
        settings: WindowSettings,
        *,
        bus: Bus,
        database: Database,
        own: SelfRecords,
        clock: Clock,
        leading: Callable[[], bool],
    ) -> None:
        self._settings, self._database, self._own = settings, database, own
        self._comparison = WindowComparison(
            bus=bus,
            requester=SERVICE,
            count_and_digest=self._count_and_digest,
            patience=_PATIENCE,
            max_requests=max(1, settings.attempts - _PATIENCE - 1),
        )
        consumer = PullConsumer(bus, PKI_EVENTS, AUDIT_CONSUMER, credit=_CREDIT)
        self._attempts: dict[dt.datetime, int] = {}
        self._ledger = LedgerComparison(
            bus=bus,
            database=database,
            clock=clock,
            requester=SERVICE,
            rows="issued",
            handle=self._compare_again,
            every_s=settings.ledger_every_s,
            recheck_s=settings.retry_s,
            active=leading,
        )
        self._worker = MessageWorker(consumer, self._handle_all, batch_size=_CREDIT, active=leading)

    async def run(self, stop: asyncio.Event) -> None:
        """Compare windows as they are published, until ``stop``."""
        await self._worker.run(stop)

    async def run_ledger(self, stop: asyncio.Event) -> None:
        """Ask for the sums of all windows and compare them, until ``stop``."""
        await self._ledger.run(stop)

    async def _handle_all(self, deliveries: Sequence[Delivery], _: asyncio.Event) -> None:
        for delivery in deliveries:
            await self._handle(delivery)

    async def _handle(self, delivery: Delivery) -> None:
        try:
            window = decode(WindowClosed, delivery.payload())
            if window.start.tzinfo is None or window.end.tzinfo is None:
                raise MalformedRequest("a window without time zone", code="message.malformed")
        except MalformedRequest as exc:
            log.error("reconciliation window unreadable", extra=fields(reason=exc.reason))
            metrics.WINDOWS.labels("malformed").inc()
            await delivery.term()
            return
        try:
            done = await self._compare(window, delivery.attempt)
        except Unavailable as exc:
            log.warning("reconciliation windows deferred", extra=fields(code=exc.code))
            done = False
        if done:
            await delivery.ack()
        else:
            await delivery.nak(self._settings.retry_s)

    async def _compare_again(self, window: WindowSum) -> bool:
        attempt = self._attempts.get(window.start, 0) + 1
        self._attempts[window.start] = attempt
        done = await self._compare(window, attempt)
        if done:
            del self._attempts[window.start]
        return done

    async def _compare(self, window: WindowSum, attempt: int) -> bool:
        verdict, count = await self._comparison.compare(window)
        state = "open" if verdict is Verdict.REQUESTED else verdict.value
        metrics.WINDOWS.labels(state).inc()
        if verdict is Verdict.REQUESTED:
            metrics.REANNOUNCE.inc()
        async with self._database.connection() as connection:
            await store.note_window(
                connection,
                (window.start, window.end),
                expected=window.count,
                logged=count,
                state=state,
                attempts=attempt,
            )
        if verdict is Verdict.GIVEN_UP:
            self._give_up(window, count)
        return verdict.final

    async def _count_and_digest(self, start: dt.datetime, end: dt.datetime) -> tuple[int, str]:
        async with self._database.connection() as connection:
            issuances = await store.issued_between(connection, start, end)
        return len(issuances), window_digest(issuances)

    def _give_up(self, window: WindowSum, count: int) -> None:
        log.error(
            "audit log differs from the ledger",
            extra=fields(start=window.start, expected=window.count, found=count),
        )
        self._own.note(
            "audit.window_differs",
            phase="error",
            severity="error",
            reason=("window.differs", "the log does not hold what the ledger issued"),
            record_id=ids.record_id("audit.window_differs", f"window-{window.start.isoformat()}"),
            start=window.start.isoformat(),
            expected=window.count,
            found=count,
        )
