"""Enrollment requests out, answers in. Never a hang: PubAck or not, answer or not, in time.

An enrollment this front end has under way is not published twice: a client that repeats it (same
principal, same key, same names) waits for the same answer. An answer that comes after the
client got 202 is kept for its next poll.

A request that the stream confirmed waits there. It is published again after ten seconds without an
answer, since a stream can lose what it confirmed, then after ever longer pauses: clients that
poll while ca-signer is down must not fill the stream. After a reconnect the next poll publishes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from est_frontend import metrics
from est_frontend.enrollment.joined_requests import JoinedRequests
from est_frontend.enrollment.pending_requests import PendingRequests
from estcore.clock import monotonic_s
from estcore.errors import BusUnavailable, MalformedRequest
from estcore.messages import topics
from estcore.messages.enrollment import EnrollmentAnswered, EnrollmentRequested
from estcore.messages.envelope import decode, encode
from estcore.messages.joined import split
from estcore.runtime import faults
from estcore.runtime.bus import Bus, Incoming

log = logging.getLogger(__name__)

_KEPT_S = 120
_TICKETS = 50_000
_COPIES = 5
"""The longest pause is 32 times the first."""


@dataclass
class _Ticket:
    """One enrollment under way."""

    request_ids: tuple[str, ...]
    """Of every copy that was published; the answer to any of them is the answer."""
    future: asyncio.Future[EnrollmentAnswered]
    expires: float


@dataclass(kw_only=True, eq=False, slots=True)
class SignerGateway:
    """Submits requests and matches answers."""

    bus: Bus
    pending: PendingRequests
    group: str
    instance: str
    answer_timeout_s: float
    repeat_s: float = 10.0
    """Seconds without an answer after which a poll publishes a request again, at first."""
    _tickets: OrderedDict[bytes, _Ticket] = field(default_factory=OrderedDict, init=False)
    _waiting: dict[str, _Ticket] = field(default_factory=dict, init=False)
    _requests: JoinedRequests = field(init=False)

    def __post_init__(self) -> None:
        # A client is answered 503 while it still waits where the stream confirms nothing.
        self._requests = JoinedRequests(self.bus, timeout_s=self.answer_timeout_s * 0.8)

    async def start(self) -> None:
        """Listen for answers."""
        topic = topics.reply_topic(self.group, self.instance, "x")[:-1] + "*"
        await self.bus.subscribe_plain(topic, self._answered)
        await self.pending.follow(self.bus)
        self.bus.on_reconnect(self._reconnected)

    async def _reconnected(self) -> None:
        """Publish what is asked again: the server may have come back without its streams."""
        for ticket in self._tickets.values():
            if not ticket.future.done():
                ticket.expires = 0.0

    @property
    def has_pending(self) -> bool:
        """Some enrollment is known to be pending, of this front end's clients or others."""
        return self.pending.any

    def wait_s(self, enrollment_id: bytes) -> int | None:
        """Return the seconds an open ticket has still to wait; None where there is none."""
        return self.pending.wait_s(enrollment_id)

    def under_way(self, key: bytes) -> bool:
        """Return whether this enrollment was submitted and not answered, lately."""
        ticket = self._tickets.get(key)
        return ticket is not None and ticket.expires > monotonic_s()

    async def submit(self, key: bytes, message: EnrollmentRequested) -> EnrollmentAnswered | None:
        """Return the signer's answer, or None when it does not come in time.

        ``key`` names the enrollment (``estcore.policy.identity``); a request whose key is under
        way is not published again.

        Raises:
            BusUnavailable: the request stream did not take it; nothing was asked.
        """
        ticket = self._tickets.get(key)
        if ticket is None or ticket.expires <= monotonic_s():
            ticket = self._publish(key, message)
        metrics.IN_FLIGHT.inc()
        try:
            await asyncio.wait((ticket.future,), timeout=self.answer_timeout_s)
        finally:
            metrics.IN_FLIGHT.dec()
        if not ticket.future.done():
            for request_id in ticket.request_ids:
                self._requests.answered(request_id)  # nothing waits for it now
            return None
        self._drop(key, ticket)
        return ticket.future.result()

    def _publish(self, key: bytes, message: EnrollmentRequested) -> _Ticket:
        topic = topics.request_topic(message.group, message.issuer, message.priority)
        future: asyncio.Future[EnrollmentAnswered] = asyncio.get_running_loop().create_future()
        replaced = self._tickets.get(key)
        earlier = replaced.request_ids[-_COPIES:] if replaced is not None else ()
        pause_s = self.repeat_s * 2 ** len(earlier)
        ticket = _Ticket((*earlier, message.id), future, monotonic_s() + pause_s)
        for request_id in ticket.request_ids:
            self._waiting[request_id] = ticket
        self._tickets[key] = ticket
        faults.hit("frontend.publish")
        try:
            confirmed = self._requests.publish(topic, message.id, encode(message))
        except BusUnavailable:
            self._drop(key, ticket)
            raise
        confirmed.add_done_callback(lambda done: _confirmed(done, future))
        self._forget_old()
        return ticket

    def _drop(self, key: bytes, ticket: _Ticket) -> None:
        for request_id in ticket.request_ids:
            self._waiting.pop(request_id, None)
            self._requests.answered(request_id)
        if self._tickets.get(key) is ticket:
            del self._tickets[key]

    def _forget_old(self) -> None:
        now = monotonic_s()
        while self._tickets:
            key, oldest = next(iter(self._tickets.items()))
            if oldest.expires + _KEPT_S > now and len(self._tickets) < _TICKETS:
                return
            self._drop(key, oldest)

    def _answered(self, message: Incoming) -> None:
        for payload in split(message.payload):
            try:
                answer = decode(EnrollmentAnswered, payload)
            except MalformedRequest:
                log.error("answer of ca-signer unreadable")
            else:
                self._take(answer)

    def _take(self, answer: EnrollmentAnswered) -> None:
        self._requests.answered(answer.request_id)
        ticket = self._waiting.get(answer.request_id)
        if ticket is not None and not ticket.future.done():
            # A late answer stays with its ticket until the client asks again.
            ticket.expires = monotonic_s() + _KEPT_S
            ticket.future.set_result(answer)


def _confirmed(done: asyncio.Future[Any], future: asyncio.Future[EnrollmentAnswered]) -> None:
    """The PubAck decides between 202 and 503; an answer that was faster wins."""
    error = None if done.cancelled() else done.exception()
    if future.done() or (error is None and not done.cancelled()):
        return
    code = error.code if isinstance(error, BusUnavailable) else "bus.unavailable"
    future.set_exception(BusUnavailable("the request stream took nothing", code=code))
    future.exception()  # the caller may have stopped waiting: not an error of the loop
