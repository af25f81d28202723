"""Batches of audit records sent a moment ago: sent again when their stream has lost them.

A PubAck says that the stream has a message, not that audit has read it. Where all replicas of a
stream are lost, or its newest messages with the leader that had them, its numbers begin again at a
lower one, and the connection was lost with the servers: so they are sent again after every
reconnect, also where nothing new is to be sent. Audit keeps each record once, by its id.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from estcore.clock import monotonic_s
from estcore.errors import BusUnavailable
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.logs import fields

log = logging.getLogger(__name__)

_KEEP_S = 60.0
_RETRY_S = 2.0
_KEEP_OCTETS = 4 * 1024 * 1024


class SentBatches:
    """The batches of the last minute, up to four megabytes."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._reconnected = False
        self._resending: asyncio.Task[None] | None = None
        bus.on_reconnect(self._note_reconnect)
        self._kept: deque[tuple[float, Outgoing]] = deque()
        self._octets = 0
        self._newest = 0

    async def _note_reconnect(self) -> None:
        # Other publishers may have brought the numbers above those of before.
        self._reconnected = True
        if self._kept and (self._resending is None or self._resending.done()):
            self._resending = asyncio.create_task(self._resend())

    async def _resend(self) -> None:
        """Send again what is kept, unless ``publish`` did; until it is stored or the bus closed."""
        while self._reconnected and not self._bus.closing:
            try:
                self._newest = await self._publish_kept()
            except BusUnavailable:
                await asyncio.sleep(_RETRY_S)
            else:
                self._reconnected = False

    async def _publish_kept(self) -> int:
        """Publish all that is kept; returns the number that the stream gave to the last."""
        log.info(
            "audit records sent again, in case their stream lost them",
            extra=fields(batches=len(self._kept)),
        )
        # In one publication of several: their order is the one they are sent in.
        *_, sequence = await self._bus.publish_confirmed([kept for _, kept in self._kept])
        return sequence

    async def publish(self, message: Outgoing, *, timeout_s: float = 5) -> None:
        """Publish a batch, and those before it if the stream may have lost messages since.

        Raises:
            BusUnavailable: not confirmed; the batches before it are kept for the next call.
        """
        before = self._newest  # what was stored before this is sent has a lower number
        (sequence,) = await self._bus.publish_confirmed([message], timeout_s=timeout_s)
        lost = sequence <= before
        if (lost or self._reconnected) and self._kept:
            sequence = await self._publish_kept()
        self._reconnected = False
        self._newest = sequence if lost else max(self._newest, sequence)
        self._keep(message)

    def _keep(self, message: Outgoing) -> None:
        now = monotonic_s()
        self._kept.append((now, message))
        self._octets += len(message.payload)
        while self._kept and (self._octets > _KEEP_OCTETS or self._kept[0][0] < now - _KEEP_S):
            _, dropped = self._kept.popleft()
            self._octets -= len(dropped.payload)
