"""Pull consumers: a standing request for messages, refilled at half, watched for silence.

The client's ``fetch`` costs two requests a call and cannot be left standing. Here one pull
request with credit for many messages is open at all times, so a message that arrives is
delivered at once, and an idle consumer costs one heartbeat every few seconds. Credits bound
what is in hand. Silence while connected means a dead subscription: it is made anew.

nats-server ends a streamed answer between accounts at a message without payload and headers
(``processServiceImport``), and loses what it would have sent after it until the ack wait is over.
No sender of ours publishes one. One that does so delays one batch: from then on each message has a
request of its own for a while, which ends with that message in any case.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Sequence

from estcore.clock import monotonic_s
from estcore.errors import BusUnavailable
from estcore.runtime.bus import Bus
from estcore.runtime.delivery import Delivery, DoneParts, parts_of
from estcore.runtime.logs import fields
from estcore.runtime.nats_client import BUS_ERRORS, Msg, Subscription
from estcore.runtime.service import wake_at

log = logging.getLogger(__name__)

_EXPIRES_S = 10
_HEARTBEAT_S = 5
_SILENCE_S = 3 * _HEARTBEAT_S
_UNREADY_S = 2 * _SILENCE_S
_DRAIN_S = 2
_PAUSE_S = 1.0
_SINGLY_S = 3600.0
_SINGLY_CREDIT = 32
"""Open requests of one message: all processes of a consumer share the server's 512."""
_NS = 1_000_000_000


class PullConsumer:
    """Messages of one durable consumer, in the order delivered.

    ``wake`` is set whenever something arrives. A worker of several consumers gives them one
    event of its own and clears it itself before it takes. A message of several (``joined``) is a
    delivery for each of them.
    """

    def __init__(
        self,
        bus: Bus,
        stream: str,
        name: str,
        *,
        credit: int,
        wake: asyncio.Event | None = None,
        joined: bool = False,
    ) -> None:
        self.stream, self.name = stream, name
        self._bus, self._credit, self._joined = bus, credit, joined
        self._queue: deque[Delivery] = deque()
        self._open = 0
        self._subscription: Subscription | None = None
        self._heard = self._answered = monotonic_s()
        self._paused = False
        self._missing = False
        self._pull_at = 0.0
        self._singly_until = 0.0
        self._cut_off = False
        self._maintaining: asyncio.Task[None] | None = None
        self._done = DoneParts()
        self.wake = wake or asyncio.Event()
        self._own_wake = wake is None

    async def start(self) -> None:
        """Open the standing request."""
        await self._subscribe()
        self._bus.on_reconnect(self._restart)

    @property
    def waiting(self) -> int:
        """How many messages are here and not taken."""
        return len(self._queue)

    @property
    def ready(self) -> bool:
        """The server has answered recently, and the consumer exists."""
        return not self._missing and monotonic_s() - self._answered < _UNREADY_S

    def take(self, limit: int) -> list[Delivery]:
        """Return up to ``limit`` messages that are here; none is an answer."""
        deliveries = [self._queue.popleft() for _ in range(min(limit, len(self._queue)))]
        if self._own_wake and not self._queue:
            self.wake.clear()
        return deliveries

    async def wait(self, timeout_s: float) -> bool:
        """Wait until something is here; False when the time is over."""
        if self._queue:
            return True
        try:
            async with asyncio.timeout_at(wake_at(timeout_s)):
                await self.wake.wait()
        except TimeoutError:
            return False
        return True

    async def maintain(self) -> None:
        """Keep the standing request open; call it often (every take, at least every second)."""
        if self._paused or self._subscription is None or not self._bus.connected:
            return
        if self._cut_off:
            log.warning("empty message, fetching singly", extra=fields(consumer=self.name))
            await self._restart()
            return
        if monotonic_s() - self._heard > _SILENCE_S:
            if not self._missing:
                log.warning("consumer silent, resubscribing", extra=fields(consumer=self.name))
            await self._restart()
            return
        credit = self._credit_now()
        free = credit - self._open - len(self._queue)
        if free * 2 >= credit:
            await self._pull(free)

    def _singly(self) -> bool:
        return monotonic_s() < self._singly_until

    def _credit_now(self) -> int:
        return min(self._credit, _SINGLY_CREDIT) if self._singly() else self._credit

    async def pause(self) -> Sequence[Delivery]:
        """Stop fetching; returns what was not taken, for ``nak``.

        What the server had sent by then is among it: such a message would otherwise wait for its
        ack timeout.
        """
        self._paused = True
        if self._subscription is not None:
            subscription, self._subscription = self._subscription, None
            await _drained(subscription)
        rest = list(self._queue)
        self._queue.clear()
        return rest

    async def resume(self) -> None:
        """Fetch again after ``pause``."""
        self._paused = False
        await self._restart()

    async def _subscribe(self) -> None:
        inbox = self._bus.client.new_inbox()
        self._subscription = await self._bus.client.subscribe_plain(inbox, self._arrived)
        self._inbox = inbox
        self._open = 0
        self._cut_off = False
        self._heard = monotonic_s()
        self._pull_at = 0.0
        await self._pull(self._credit_now() - len(self._queue))

    async def _restart(self) -> None:
        if self._paused:
            return
        old, self._subscription = self._subscription, None
        if old is not None:
            try:
                await old.unsubscribe()
            except BUS_ERRORS:
                log.debug("previous subscription not closed")
        try:
            await self._subscribe()
        except BUS_ERRORS as exc:
            raise BusUnavailable("cannot subscribe") from exc

    async def _pull(self, batch: int) -> None:
        if batch <= 0 or monotonic_s() < self._pull_at:
            return
        requests, each = (batch, 1) if self._singly() else (1, batch)
        body = {"batch": each, "expires": _EXPIRES_S * _NS, "idle_heartbeat": _HEARTBEAT_S * _NS}
        octets = json.dumps(body).encode()
        topic = f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{self.name}"
        try:
            for _ in range(requests):
                await self._bus.client.publish(topic, octets, reply=self._inbox)
        except BUS_ERRORS:
            log.debug("pull request not sent")
            return
        self._open += batch

    def _arrived(self, message: Msg) -> None:
        headers = message.headers
        status = headers.get("Status") if headers and not message.reply else None
        if status is None:
            self._alive()
            self._open -= 1
            delivery = Delivery(self._bus, message)
            self._queue.extend(parts_of(delivery, self._done) if self._joined else (delivery,))
            if not message.data and not headers:
                self._cut_off |= not self._singly()
                self._singly_until = monotonic_s() + _SINGLY_S
            self.wake.set()
            return
        if status == "100":
            self._alive()
            return
        # This request is over; the server says how many messages of it were left.
        pending = (headers or {}).get("Nats-Pending-Messages")
        self._open -= int(pending) if pending else self._open
        self._open = max(self._open, 0)
        reason = (headers or {}).get("Description", "")
        if status == "408":
            self._alive()
        else:
            self._ended(status, reason)
        # The next request is sent at once: what arrives meanwhile would wait for it.
        self._maintaining = asyncio.get_running_loop().create_task(self._maintain_again())

    async def _maintain_again(self) -> None:
        try:
            await self.maintain()
        except BusUnavailable:
            log.debug("pull request not sent")  # the worker maintains it as well

    def _alive(self) -> None:
        self._heard = self._answered = monotonic_s()
        self._missing = False

    def _ended(self, status: str, reason: str) -> None:
        """Note that the server ended a pull request before its time, and pause before the next.

        Nothing answers on the topic where there is no stream, no consumer or no JetStream (503).
        """
        self._pull_at = monotonic_s() + _PAUSE_S
        missing = status != "409" or "Deleted" in reason
        if status == "409" or missing != self._missing:
            log.warning(
                "pull request ended by the server",
                extra=fields(consumer=self.name, stream=self.stream, status=status, reason=reason),
            )
        self._missing = missing


async def _drained(subscription: Subscription) -> None:
    """Unsubscribe and receive what was under way, for a while at the most.

    nats-py must end its round trip itself: one that is cancelled ends the connection when the
    server answers.
    """

    async def drain() -> None:
        try:
            await subscription.drain()  # type: ignore[no-untyped-call]  # nats-py
        except (TimeoutError, *BUS_ERRORS):
            log.debug("subscription of the consumer not closed")

    await asyncio.wait({asyncio.ensure_future(drain())}, timeout=_DRAIN_S)
