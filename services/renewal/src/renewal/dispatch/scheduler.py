"""The two loops of time: announcing what is due, and finishing what was left.

Both look at the database about once a second while there is something to do, and every three
seconds while there is nothing, with jitter so that replicas do not look together. An event that
this process applied ends the longer pause of announcing. A database or bus that is unavailable is
waited for; nothing is lost, since rows say what is to be done.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import random
from collections.abc import Awaitable, Callable

from estcore.errors import Unavailable
from estcore.pki.profile import PRIORITIES
from estcore.runtime import faults
from estcore.runtime.bus import Bus
from estcore.runtime.database import Connection, Database
from estcore.runtime.logs import Repetition, fields
from estcore.runtime.service import event_or_stop, sleep_or_stop
from estcore.runtime.tracing import Tracing
from renewal.dispatch import claims
from renewal.metrics import DISPATCHED, LAPSED, UNANSWERED
from renewal.publishing.publisher import RotationPublisher
from renewal.rotation.requested_renewal import apply_kept
from renewal.rotation.schedule import room, shares
from renewal.settings import RenewalSettings

log = logging.getLogger(__name__)

_BATCH = 500
_IDLE = 2
"""So many looks are left out while there is nothing to do."""


class Scheduler:
    """Claims due slots and announces them."""

    def __init__(
        self,
        settings: RenewalSettings,
        database: Database,
        bus: Bus,
        publisher: RotationPublisher,
        tracing: Tracing,
        changed: asyncio.Event | None = None,
    ) -> None:
        """``changed`` is set when slots were changed, and may be due."""
        self._settings, self._database, self._bus = settings, database, bus
        self._publisher, self._tracing = publisher, tracing
        self._scheduler = settings.scheduler
        self._due = claims.DueCounts()
        self._changed = changed or asyncio.Event()
        self._unanswered = Repetition(log, "announcements wait for answers")

    async def run_due(self, stop: asyncio.Event) -> None:
        """Announce due slots until stopped."""
        await self._repeat(stop, self.dispatch_due, self._changed)

    async def run_upkeep(self, stop: asyncio.Event) -> None:
        """Take back lapsed leases, let time pass, finish announcements, until stopped."""
        await self._repeat(stop, self.keep_up, asyncio.Event())

    async def dispatch_due(self) -> int:
        """Claim due slots by weighted shares, work-conserving, and announce them.

        No more are announced than agents and signers answer: ``max_unanswered`` at a time.

        Raises:
            Unavailable: bus or database unavailable; a sweeper publishes the claimed slots.
        """
        if not self._bus.connected:
            return 0  # claiming now would only start leases that no agent is notified of
        async with self._database.connection() as connection:
            due = await self._due.count(connection)
            if not any(due):
                UNANSWERED.set(0)
                return 0
            most = self._scheduler.max_unanswered
            within = dt.timedelta(seconds=self._scheduler.answer_s)
            unanswered = await claims.count_unanswered(connection, within=within, limit=most)
        UNANSWERED.set(unanswered)
        total = self._scheduler.claim_size
        places, free = shares(total), room(most, unanswered)
        if unanswered >= most:
            self._unanswered.warn(max_unanswered=most)
        else:
            self._unanswered.over()
        claimed, full = 0, []
        for priority in range(len(PRIORITIES)):
            limit = min(places[priority], total - claimed, free[priority] - claimed)
            count = await self._claim(priority, due[priority], limit)
            claimed += count
            if count == limit:
                full.append(priority)
        for priority in full:
            left = min(total, free[priority]) - claimed
            claimed += await self._claim(priority, due[priority], left)
        return claimed

    async def _claim(self, priority: int, due: int, limit: int) -> int:
        if due == 0 or limit <= 0:
            return 0
        with self._tracing.root("renewal.dispatch", priority=priority) as traceparent:

            async def work(connection: Connection) -> list[str]:
                return await claims.claim(
                    connection,
                    priority=priority,
                    due=due,
                    limit=limit,
                    owner=self._settings.instance,
                    traceparent=traceparent,
                    leases=self._scheduler.lease,
                )

            slot_ids = await self._database.run(work)
            self._due.claimed(priority, due=due, limit=limit, found=len(slot_ids))
            if not slot_ids:
                return 0
            faults.hit("renewal.claimed")
            DISPATCHED.labels(PRIORITIES[priority].value).inc(len(slot_ids))
            await self._publisher.dues(slot_ids)
        log.info(
            "renewal due", extra=fields(slots=len(slot_ids), priority=PRIORITIES[priority].value)
        )
        return len(slot_ids)

    async def keep_up(self) -> int:
        """Do once what upkeep does; returns how many slots or events it touched.

        Raises:
            Unavailable: bus or database unavailable; the next run continues.
        """
        patience = dt.timedelta(seconds=self._scheduler.sweep_after_s)
        async with self._database.connection() as connection:
            waiting = await claims.find_waiting(connection, patience)
        lapsed, updated = await self._update_slots(waiting)
        if updated:
            faults.hit("renewal.checked")
        LAPSED.inc(len(lapsed.slots))
        if lapsed.overdue:
            log.warning("renewal lease expired", extra=fields(slots=len(lapsed.overdue)))
        if not self._bus.connected:
            return len(lapsed.slots) + len(updated)
        if lapsed.overdue:
            await self._publisher.lapses(lapsed.overdue)
        await self._publisher.rotations(updated)
        swept = await self._publisher.sweep(patience) if waiting.unpublished else 0
        if swept:
            log.warning("unpublished rotation events published", extra=fields(events=swept))
        return len(lapsed.slots) + len(updated) + swept

    async def _update_slots(self, waiting: claims.Waiting) -> tuple[claims.Lapsed, list[str]]:
        """Return slots whose lease ran out, and those in which time changed something."""
        lapsed = claims.Lapsed([], [])
        updated: list[str] = []
        if waiting.lapsed:
            lapsed = await self._database.run(lambda c: claims.take_back(c, limit=_BATCH))
        if waiting.to_check:
            updated = await self._database.run(
                lambda c: claims.let_time_pass(c, limit=_BATCH, rotation=self._settings.rotation)
            )
        if waiting.requested:
            updated += await self._database.run(apply_kept)
        return lapsed, updated

    async def _repeat(
        self, stop: asyncio.Event, look: Callable[[], Awaitable[int]], changed: asyncio.Event
    ) -> None:
        deferred = Repetition(log, "scheduler deferred")
        while not stop.is_set():
            changed.clear()
            try:
                done = await look()
            except Unavailable as exc:
                deferred.warn(error=exc.reason, code=exc.code)
                done = 0
            else:
                deferred.over()
            # Work waiting: look again at once; a full look means there is more.
            pause = 0.0 if done >= self._scheduler.claim_size else self._scheduler.poll_s
            jitter = 0.75 + random.random() / 2  # noqa: S311 - spreading, not secrecy
            if await sleep_or_stop(stop, max(pause * jitter, 0.001)) or done:
                continue
            await event_or_stop(stop, changed, _IDLE * pause)
