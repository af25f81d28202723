"""Request handler for upstream issuers: requests run concurrently and are never batched."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ca_signer.issuance.request_handler import RequestHandler
from ca_signer.upstream.cycle import UpstreamCycle
from ca_signer.upstream.submissions import Submission
from estcore.runtime.delivery import Delivery
from estcore.runtime.service import sleep_or_stop

_WORKING_EVERY_S = 4.0


class UpstreamRequestHandler:
    """Handles deliveries side by side; one instance serves a process."""

    def __init__(self, handler: RequestHandler[Submission], cycle: UpstreamCycle) -> None:
        self._handler = handler
        self._cycle = cycle
        self._in_hand: set[Delivery] = set()

    async def attend(self, stop: asyncio.Event) -> None:
        """Keep the server from redelivering what is in hand: upstream CAs are slow."""
        self._cycle.stopping = stop
        while not await sleep_or_stop(stop, _WORKING_EVERY_S):
            for delivery in list(self._in_hand):
                await delivery.working()

    async def process(self, deliveries: Sequence[Delivery]) -> None:
        """End every delivery with exactly one of ack, nak, term."""
        async with asyncio.TaskGroup() as group:
            for delivery in deliveries:
                group.create_task(self._handle(delivery))

    async def _handle(self, delivery: Delivery) -> None:
        self._in_hand.add(delivery)
        try:
            request = await self._handler.read(delivery)
            if request is not None:
                await self._handler.handle(request)
        finally:
            self._in_hand.discard(delivery)
