"""Requests that are ready at about the same time travel to ca-signer in one message.

A request waits for others only while this front end is busy: until as many have gathered as are
sent and not answered yet, or none has joined them for four milliseconds. One that is alone is sent
at once.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from estcore.errors import BusUnavailable
from estcore.messages.joined import groups, join, joined_id
from estcore.runtime.bus import Bus, Outgoing

MAX_OCTETS = 28 * 1024
"""Of a joined message; the stream takes 32 KiB."""
PAUSE_S = 0.004
LONGEST_S = 0.02


@dataclass(frozen=True)
class _Waiting:
    """A request that is not published yet."""

    request_id: str
    payload: bytes
    confirmed: asyncio.Future[None]


@dataclass
class _Topic:
    """The requests of one topic."""

    until: float
    """The event loop's time at which the first of them has waited long enough."""
    waiting: list[_Waiting] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None


class JoinedRequests:
    """Publishes requests on the request stream, several in a message where there are several."""

    def __init__(self, bus: Bus, *, timeout_s: float) -> None:
        self._bus = bus
        self._timeout_s = timeout_s
        self._topics: dict[str, _Topic] = {}
        self._unanswered: set[str] = set()
        self._looking = False
        self._tasks: set[asyncio.Task[None]] = set()

    def publish(self, topic: str, request_id: str, payload: bytes) -> asyncio.Future[None]:
        """Take a request; the future is done when the stream has it.

        The future raises what refused the message, and is cancelled when nothing confirmed it in
        time.

        Raises:
            BusUnavailable: not connected; nothing is taken.
        """
        if not self._bus.connected:
            raise BusUnavailable("the bus is not connected")
        loop = asyncio.get_running_loop()
        confirmed: asyncio.Future[None] = loop.create_future()
        now = loop.time()
        place = self._topics.get(topic)
        if place is None:
            place = self._topics[topic] = _Topic(now + LONGEST_S)
        place.waiting.append(_Waiting(request_id, payload, confirmed))
        if place.timer is not None:
            place.timer.cancel()
        place.timer = loop.call_at(min(now + PAUSE_S, place.until), self._send, topic)
        self._look_soon()
        return confirmed

    def answered(self, request_id: str) -> None:
        """Note that a request was answered, or that nothing waits for its answer any more."""
        if request_id in self._unanswered:
            self._unanswered.discard(request_id)
            self._look_soon()

    def _look_soon(self) -> None:
        """Look at what waits once everything that is ready in this turn of the loop is here."""
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._looking = False
        for topic, place in list(self._topics.items()):
            if len(place.waiting) >= len(self._unanswered):
                self._send(topic)

    def _send(self, topic: str) -> None:
        place = self._topics.pop(topic, None)
        if place is None:
            return
        if place.timer is not None:
            place.timer.cancel()
        self._unanswered.update(one.request_id for one in place.waiting)
        task = asyncio.get_running_loop().create_task(self._publish(topic, place.waiting))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _publish(self, topic: str, waiting: list[_Waiting]) -> None:
        for part in groups([one.payload for one in waiting], max_octets=MAX_OCTETS):
            together = waiting[part]
            message = Outgoing(
                topic,
                join([one.payload for one in together]),
                joined_id([one.request_id for one in together]),
            )
            try:
                stored = await self._bus.submit(message, timeout_s=self._timeout_s)
            except BusUnavailable as exc:
                for one in together:
                    _fail(one.confirmed, exc)
            else:
                stored.add_done_callback(_Outcome(together))


@dataclass(frozen=True)
class _Outcome:
    """Hands the outcome of a message to each request in it."""

    together: list[_Waiting]

    def __call__(self, stored: asyncio.Future[Any]) -> None:
        error = None if stored.cancelled() else stored.exception()
        for one in self.together:
            if one.confirmed.done():
                continue
            if stored.cancelled():
                one.confirmed.cancel()
            elif error is not None:
                _fail(one.confirmed, error)
            else:
                one.confirmed.set_result(None)


def _fail(confirmed: asyncio.Future[None], error: BaseException) -> None:
    if not confirmed.done():
        confirmed.set_exception(error)
        confirmed.exception()  # the caller may have stopped waiting: not an error of the loop
