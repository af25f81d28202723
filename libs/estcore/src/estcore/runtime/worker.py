"""Message worker: take what a consumer delivers, hand it on in batches, put the rest back.

The handler ends every delivery with exactly one of ack, nak, term. What was fetched and not handed
on when the worker stops or becomes inactive goes back at once, for another process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.consume import PullConsumer
from estcore.runtime.delivery import Delivery
from estcore.runtime.service import sleep_or_stop

_WAIT_S = 1.0
_INACTIVE_S = 1.0


class MessageWorker:
    """Runs one consumer. ``active`` returns whether it is this process's turn to consume."""

    def __init__(
        self,
        consumer: PullConsumer,
        handle: Callable[[Sequence[Delivery], asyncio.Event], Awaitable[None]],
        *,
        batch_size: int,
        linger_s: float = 0,
        active: Callable[[], bool] = lambda: True,
    ) -> None:
        self._consumer = consumer
        self._handle = handle
        self._batch_size = batch_size
        self._linger_s = linger_s
        self._active = active
        self._started = False
        self._consuming = False

    async def run(self, stop: asyncio.Event) -> None:
        """Hand on deliveries until ``stop``."""
        waker = asyncio.create_task(self._wake_on(stop))
        try:
            await self._run(stop)
        finally:
            waker.cancel()

    async def _wake_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._consumer.wake.set()

    async def _run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            if not self._active():
                await self._put_back()
                await sleep_or_stop(stop, _INACTIVE_S)
                continue
            await self._consume()
            await self._consumer.maintain()
            if not await self._consumer.wait(_WAIT_S):
                continue
            if self._linger_s:
                # A fuller batch costs the same transaction, and no client waits for it.
                await sleep_or_stop(stop, self._linger_s)
            deliveries = self._consumer.take(self._batch_size)
            if deliveries:
                await self._handle(deliveries, stop)
        await self._put_back()

    async def _consume(self) -> None:
        if self._consuming:
            return
        await (self._consumer.resume() if self._started else self._consumer.start())
        self._started = self._consuming = True

    async def _put_back(self) -> None:
        if not self._consuming:
            return
        self._consuming = False
        for delivery in await self._consumer.pause():
            await delivery.nak(0)


async def publish_dead_letter(
    bus: Bus, service: str, delivery: Delivery, *, reason: str, message_id: str
) -> None:
    """Keep a message for an operator on ``dead.<service>.<reason>``.

    Raises:
        BusUnavailable: not confirmed; the delivery is not ended.
    """
    letter = Outgoing(f"dead.{service}.{reason}", delivery.data, message_id)
    await bus.publish_confirmed([letter])
