"""Request consumer: take requests from the consumers by weight, hand them on in batches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from ca_signer import metrics
from estcore.clock import monotonic_s, unix_ms
from estcore.errors import BusUnavailable
from estcore.messages.topics import EST_REQUESTS, signer_consumer
from estcore.pki.profile import PRIORITIES, Priority
from estcore.runtime.bus import Bus
from estcore.runtime.consume import PullConsumer
from estcore.runtime.database import Database
from estcore.runtime.delivery import Delivery
from estcore.runtime.service import wake_at

log = logging.getLogger(__name__)

SHARES = {Priority.CRITICAL: 50, Priority.HIGH: 30, Priority.NORMAL: 15, Priority.LOW: 5}
_CREDIT = 32
"""Messages of up to a dozen requests: all are done within the ack wait, by a slow HSM as well."""


class DeliveryHandler(Protocol):
    """Ends every delivery with exactly one of ack, nak, term."""

    async def process(self, deliveries: Sequence[Delivery]) -> None:
        """Handle deliveries that were fetched together."""
        ...


class RequestConsumer:
    """One consumer per issuer and priority, one loop, a few batches in flight.

    Weighted shares, not strict precedence: low priority always moves, and the share of a
    priority without waiting requests goes to the others. For an issuer that is not ``usable``
    (its token is unavailable) nothing is fetched, and waiting requests go back for other signers.
    """

    def __init__(  # noqa: PLR0913 - the parts of the signer, joined in main
        self,
        bus: Bus,
        database: Database,
        handler: DeliveryHandler,
        *,
        issuers: Sequence[str],
        batch_size: int,
        in_flight: int,
        linger_s: float = 0,
        usable: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._database = database
        self._handler = handler
        self._size = batch_size
        self._in_flight = in_flight
        self._linger_s = linger_s
        self._usable = usable
        self._paused: set[PullConsumer] = set()
        self._last_size = 0
        self._wake = asyncio.Event()
        self._consumers = {
            (issuer, priority): PullConsumer(
                bus,
                EST_REQUESTS,
                signer_consumer(issuer, priority).name,
                credit=_CREDIT,
                wake=self._wake,
                joined=True,
            )
            for issuer in issuers
            for priority in PRIORITIES
        }

    @property
    def ready(self) -> bool:
        """Every consumer received something from the server lately."""
        return all(consumer.ready for consumer in self._consumers.values())

    @property
    def busy(self) -> bool:
        """Requests are here that no batch has taken yet."""
        return self._waiting()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop``; then put back what was not started and finish the rest."""
        for consumer in self._consumers.values():
            await consumer.start()
        slots = asyncio.Semaphore(self._in_flight)
        async with asyncio.TaskGroup() as group:
            waker = group.create_task(self._wake_on(stop))
            while not stop.is_set():
                if not await self._tend():
                    continue
                await slots.acquire()
                deliveries = await self._next(stop)
                if not deliveries:
                    slots.release()
                    continue
                group.create_task(self._run(deliveries, slots))
            await self._put_back()
            waker.cancel()

    async def _next(self, stop: asyncio.Event) -> list[Delivery]:
        self._wake.clear()
        if not self._waiting() and not stop.is_set():
            try:
                async with asyncio.timeout_at(wake_at(1)):
                    await self._wake.wait()
            except TimeoutError:
                self._last_size = 0
                return []
        if self._linger_s and 1 < self._last_size < self._size // 2:
            # Under load a few milliseconds make the batch fuller; a lone request never waits.
            await asyncio.sleep(self._linger_s)
        deliveries = self._take()
        self._last_size = len(deliveries)
        return deliveries

    def _waiting(self) -> bool:
        return any(consumer.waiting for consumer in self._consumers.values())

    async def _tend(self) -> bool:
        if not self._database.ready and not await self._database.alive():
            # Without the ledger nothing can be done: what is here waits, nothing more is fetched.
            await asyncio.sleep(0.5)
            return False
        for (issuer, priority), consumer in self._consumers.items():
            await self._set_paused(consumer, paused=not self._usable(issuer))
            await consumer.maintain()
            metrics.WAITING.labels(issuer, priority).set(consumer.waiting)
        return True

    async def _set_paused(self, consumer: PullConsumer, *, paused: bool) -> None:
        if paused == (consumer in self._paused):
            return
        if paused:
            self._paused.add(consumer)
            for delivery in await consumer.pause():
                await delivery.nak(0)
            return
        try:
            await consumer.resume()
        except BusUnavailable:
            return  # the next round tries again
        self._paused.discard(consumer)

    def _take(self) -> list[Delivery]:
        batch: list[Delivery] = []
        for (_, priority), consumer in self._consumers.items():
            share = max(1, self._size * SHARES[priority] // 100)
            if consumer.waiting:
                batch += consumer.take(min(share, self._size - len(batch)))
        for consumer in self._consumers.values():
            if consumer.waiting and len(batch) < self._size:
                batch += consumer.take(self._size - len(batch))
        return batch

    async def _run(self, deliveries: list[Delivery], slots: asyncio.Semaphore) -> None:
        started, now_s = monotonic_s(), unix_ms() / 1000
        for delivery in deliveries:
            if delivery.attempt == 1:
                # Two clocks: NATS's and ours.
                metrics.QUEUE_SECONDS.observe(max(now_s - delivery.stored_s(), 0))
        try:
            await self._handler.process(deliveries)
        finally:
            slots.release()
            metrics.SECONDS.observe(monotonic_s() - started)

    async def _wake_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._wake.set()

    async def _put_back(self) -> None:
        for consumer in self._consumers.values():
            for delivery in await consumer.pause():
                await delivery.nak(0)
