"""Messages that a consumer delivered, and how each is ended: acknowledged, deferred, given up.

A delivery of joined messages (``messages.joined``) is one delivery for each of them. Each part is
ended by itself; the message is when all of them are: acknowledged, or, where one was deferred,
delivered again with all of them. Those that were done are left out by a process that did them
(``DoneParts``), and recognised by their ids, like any repetition, by a different one.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from hashlib import sha256

from typing_extensions import override

from estcore.errors import MalformedRequest
from estcore.messages.joined import split
from estcore.messages.signatures import Sender
from estcore.runtime.bus import Bus
from estcore.runtime.nats_client import BUS_ERRORS, Msg

log = logging.getLogger(__name__)

_NS = 1_000_000_000
_DEFERRED = 10_000
"""Deferred messages of which the parts that are done are remembered."""


class Delivery:
    """One delivered message. Exactly one of ``ack``, ``nak``, ``term`` ends it."""

    __slots__ = ("_bus", "attempt", "data", "reply", "sender", "sequence", "topic")

    def __init__(self, bus: Bus, message: Msg) -> None:
        self._bus = bus
        self.data: bytes = message.data
        self.topic: str = message.subject
        self.reply: str = message.reply
        self.sender: Sender | None = bus.sender_of(message)
        # $JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>,
        # or with <domain>.<account> after ACK; counted from the end both are alike
        # (the longer form has one more token at its end).
        parts = message.reply.split(".")
        first = 4 if len(parts) < 11 else 6  # noqa: PLR2004 - see above
        self.attempt = int(parts[first])
        self.sequence = int(parts[first + 1])

    @property
    def place(self) -> str:
        """Where its stream has it; the position follows in a message of several."""
        return str(self.sequence)

    def stored_s(self) -> float:
        """Return when its stream stored the message, Unix time."""
        parts = self.reply.split(".")
        first = 4 if len(parts) < 11 else 6  # noqa: PLR2004 - see above
        return int(parts[first + 3]) / _NS

    def payload(self) -> bytes:
        """Return the octets of a message whose sender has the right to its topic.

        Raises:
            MalformedRequest: it has none; ``data`` is for dead letters only.
        """
        if self.sender is None:
            raise MalformedRequest(
                "the message is not signed by a sender of its topic", code="message.unsigned"
            )
        return self.data

    async def ack(self) -> None:
        """Everything it causes is durable."""
        await self._answer(b"+ACK")

    async def nak(self, delay_s: float) -> None:
        """Not now: deliver again after ``delay_s``."""
        await self._answer(b'-NAK {"delay":%d}' % int(delay_s * _NS))

    async def term(self) -> None:
        """Never again: it is unreadable or dead-lettered."""
        await self._answer(b"+TERM")

    async def working(self) -> None:
        """Still at it: start the ack wait anew."""
        await self._answer(b"+WPI")

    async def _answer(self, word: bytes) -> None:
        try:
            await self._bus.client.publish(self.reply, word)
        except BUS_ERRORS:
            # The server delivers again; handlers are idempotent.
            log.debug("acknowledgement not sent")


class DoneParts:
    """Parts of deferred messages that this process has done: they are not done again.

    A message comes again whole, as often as one of its parts is deferred. Without this a sender
    could have all the others processed again and again with one that is refused for its rate.
    """

    def __init__(self) -> None:
        self._by_message: OrderedDict[bytes, frozenset[int]] = OrderedDict()

    def of(self, message: bytes) -> frozenset[int]:
        """Return the places of the parts that are done; ``message`` is its SHA-256."""
        return self._by_message.get(message, frozenset())

    def keep(self, message: bytes, places: frozenset[int]) -> None:
        """Remember them until the message is done, or forgotten among many."""
        self._by_message[message] = places
        self._by_message.move_to_end(message)
        if len(self._by_message) > _DEFERRED:
            self._by_message.popitem(last=False)

    def forget(self, message: bytes) -> None:
        """The message is done."""
        self._by_message.pop(message, None)


class _Shared:
    """The delivery that parts have in common."""

    def __init__(
        self, delivery: Delivery, done: DoneParts, ended: frozenset[int], count: int
    ) -> None:
        self.delivery = delivery
        self._done = done
        self._ended = set(ended)
        self._open = count
        self._delay_s: float | None = None

    async def end(self, index: int, delay_s: float | None) -> None:
        """End a part; ``delay_s`` is that of one to be delivered again."""
        if delay_s is None:
            self._ended.add(index)
        else:
            self._delay_s = max(delay_s, self._delay_s or 0.0)
        self._open -= 1
        if self._open:
            return
        message = sha256(self.delivery.data).digest()
        if self._delay_s is None:
            self._done.forget(message)
            await self.delivery.ack()
        else:
            self._done.keep(message, frozenset(self._ended))
            await self.delivery.nak(self._delay_s)


class DeliveryPart(Delivery):
    """One message of several that were delivered together; ended like a delivery of its own."""

    __slots__ = ("_shared", "index")

    def __init__(self, shared: _Shared, index: int, data: bytes) -> None:
        # A part has no message of its own.
        whole = shared.delivery
        self._shared = shared
        self.index = index
        self.data = data
        self.topic, self.reply, self.sender = whole.topic, whole.reply, whole.sender
        self.attempt, self.sequence = whole.attempt, whole.sequence

    @property
    @override
    def place(self) -> str:
        return f"{self.sequence}-{self.index}"

    @override
    async def ack(self) -> None:
        await self._shared.end(self.index, None)

    @override
    async def nak(self, delay_s: float) -> None:
        await self._shared.end(self.index, delay_s)

    @override
    async def term(self) -> None:
        await self._shared.end(self.index, None)

    @override
    async def working(self) -> None:
        await self._shared.delivery.working()


def parts_of(delivery: Delivery, done: DoneParts) -> list[Delivery]:
    """Return a delivery for each message in it that is not done.

    It is itself where it has one message, or no known sender.
    """
    messages = split(delivery.data)
    if len(messages) == 1 or delivery.sender is None:
        return [delivery]
    ended: frozenset[int] = frozenset()
    if delivery.attempt > 1:
        ended = done.of(sha256(delivery.data).digest())
    left = [index for index in range(len(messages)) if index not in ended]
    shared = _Shared(delivery, done, ended, len(left))
    return [DeliveryPart(shared, index, messages[index]) for index in left]
