"""Many agents that ask at once, or wait out an outage: every request as an event (pure).

Agents pause as ``estclient`` does: ``Limits`` between attempts and polls, ``Backoff`` after a step
that failed. Front ends, stream and signers are queues with the limits of the settings and of
``topics``: a connection costs a front end CPU time and is closed where too many wait; an enrollment
is published once per front end and again after growing pauses; requests of one front end within
``LONGEST_S`` share a message; a full stream is 503, no answer in time 202. Signers together
take requests in order at one rate. Left out: priorities, batches, redelivery, the network.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from est_frontend.enrollment.joined_requests import LONGEST_S, MAX_OCTETS
from est_frontend.settings import LimitSettings, ListenSettings, RateSettings
from estclient.agent.backoff import Backoff
from estclient.agent.settings import AgentSettings
from estclient.errors import ServerAway, StillPending
from estclient.est.client import Limits
from estcore.messages.topics import EST_REQUESTS, STREAMS
from estcore.policy.labels import Label

_MINUTE_S = 60
_REPEAT_S = 10.0
_LONGEST_DOUBLINGS = 5
"""As ``est_frontend.enrollment.signer_gateway``: a request is published again after 10 s, 20 s, …."""
_WINDOW_S = 600
_KEPT_S = 120
_RETRY_AFTER_S = float(Label.model_fields["retry_after_s"].default)
_ANSWER_TIMEOUT_S = 5.0
_LISTEN = {
    name: float(ListenSettings.model_fields[name].default)
    for name in ("max_handshakes", "max_handshakes_per_source")
}


@dataclass(frozen=True)
class Suite:
    """The servers of a scenario."""

    frontends: int
    connection_ms: float
    """CPU time of a front end for a new connection with its request."""
    signed_per_s: float
    """Of all signers together."""
    request_octets: int = 2300
    retry_after_s: float = _RETRY_AFTER_S
    answer_timeout_s: float = _ANSWER_TIMEOUT_S
    max_in_flight: int = LimitSettings.model_fields["max_in_flight"].default
    max_messages: int = next(s.max_per_topic for s in STREAMS if s.name == EST_REQUESTS)
    down_from_s: float = float("inf")
    down_until_s: float = float("inf")


@dataclass(frozen=True)
class Crowd:
    """Who asks, and when each begins."""

    starts: Sequence[float]
    one_source: bool = False
    """All behind one address."""
    one_secret: bool = False
    """All enroll with one secret: the limit of an identity counts."""


class Outcome(BaseModel):
    """What happened."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    agents: int
    enrolled: int
    half_s: float
    """From the first start to half of them having their certificate."""
    most_s: float
    """The same for 99 of 100."""
    all_s: float
    connections: int
    refused: int
    """Connections closed at once."""
    limited: int
    """429."""
    busy: int
    """503, too many in flight."""
    full: int
    """503, the stream took nothing."""
    pending: int
    """202."""
    published: int
    """Requests, copies among them."""
    copies_signed: int
    """Requests that reached a signer when their certificate was there already."""
    late_copies: int
    """Of them, more than ten minutes after it: beyond the idempotency window."""
    peak_connections_per_s: int
    peak_in_flight: int
    """At one front end."""
    peak_messages: int
    waiting_per_minute: list[int]
    """Agents that have begun and have no certificate, at the end of each minute."""
    connections_per_minute: list[int]
    signed_per_minute: list[int]


@dataclass
class _Ticket:
    expires: float
    copies: int = 0
    answered: bool = False
    asked: int = 0
    """Number of the request that waits; 0 for none."""


@dataclass
class _FrontEnd:
    free_at: float = 0.0
    in_flight: int = 0
    tickets: dict[int, _Ticket] = field(default_factory=dict)
    message: list[tuple[int, int]] = field(default_factory=list)
    message_until: float = -1.0
    level: float = 0.0
    level_at: float = 0.0


class _Agent:
    """What one agent remembers between requests."""

    __slots__ = ("attempt", "backoff", "began", "done_at", "pending_until")

    def __init__(self, began: float, backoff: Backoff) -> None:
        self.began = began
        self.backoff = backoff
        self.attempt = 0
        self.pending_until: float | None = None
        self.done_at: float | None = None


class Simulation:
    """One run."""

    def __init__(self, suite: Suite, crowd: Crowd, *, seed: int = 1) -> None:
        self._suite, self._crowd = suite, crowd
        self._chance = random.Random(seed)
        self._limits = Limits()
        self._events: list[tuple[float, int, str, int, int]] = []
        self._number = 0
        self._frontends = [_FrontEnd(level=_RATES.identity_burst) for _ in range(suite.frontends)]
        self._agents: list[_Agent] = []
        self._stream: deque[list[tuple[int, int]]] = deque()
        self._messages = 0
        self._signing: deque[tuple[int, int, bool]] = deque()
        self._signer_busy = False
        self._issued: dict[int, float] = {}
        self._counts = dict.fromkeys(
            ("connections", "refused", "limited", "busy", "full", "pending", "published",
             "copies_signed", "late_copies"), 0,
        )  # fmt: skip
        self._per_second: dict[int, int] = {}
        self._signed: dict[int, int] = {}
        self._peak_in_flight = self._peak_messages = 0

    def run(self) -> Outcome:
        """Go on until every agent has its certificate."""
        first = _agent_default("retry_s")
        longest = _agent_default("longest_retry_s")
        for start in self._crowd.starts:
            backoff = Backoff(first, longest, self._chance.uniform)
            self._agents.append(_Agent(start, backoff))
            self._at(start, "connect", len(self._agents) - 1)
        if self._suite.down_until_s < float("inf"):
            self._at(self._suite.down_until_s, "sign", 0)
        steps = {
            "connect": self._connect,
            "request": self._request,
            "timeout": self._timeout,
            "signed": self._signed_one,
            "sign": lambda *_: self._sign_next(),
        }
        self._now = 0.0
        while self._events:
            self._now, _, what, agent, place = heapq.heappop(self._events)
            steps[what](agent, place)
        return self._outcome()

    # A connection arrives at a front end, and is served in its turn.

    def _connect(self, agent: int, _: int) -> None:
        suite = self._suite
        place = self._chance.randrange(suite.frontends)
        front_end = self._frontends[place]
        self._counts["connections"] += 1
        second = int(self._now)
        self._per_second[second] = self._per_second.get(second, 0) + 1
        each_s = suite.connection_ms / 1000
        waiting = max(front_end.free_at - self._now, 0) / each_s
        most = _LISTEN["max_handshakes_per_source" if self._crowd.one_source else "max_handshakes"]
        if waiting >= most:
            self._counts["refused"] += 1
            self._later(agent, 0.0)
            return
        front_end.free_at = max(front_end.free_at, self._now) + each_s
        self._at(front_end.free_at, "request", agent, place)

    def _request(self, agent: int, place: int) -> None:
        front_end = self._frontends[place]
        if front_end.in_flight >= self._suite.max_in_flight:
            self._counts["busy"] += 1
            self._later(agent, self._suite.retry_after_s)
            return
        if self._crowd.one_secret and not self._take(front_end):
            self._counts["limited"] += 1
            self._later(agent, 1.0)
            return
        ticket = front_end.tickets.get(agent)
        if ticket is None or ticket.expires <= self._now:
            ticket = self._publish(agent, place, ticket.copies if ticket else 0)
            if ticket is None:
                self._counts["full"] += 1
                self._later(agent, self._suite.retry_after_s)
                return
        if ticket.answered:
            self._done(agent)
            return
        self._number += 1
        ticket.asked = self._number
        front_end.in_flight += 1
        self._peak_in_flight = max(self._peak_in_flight, front_end.in_flight)
        self._at(self._now + self._suite.answer_timeout_s, "timeout", agent, place)

    def _take(self, front_end: _FrontEnd) -> bool:
        added = (self._now - front_end.level_at) * _RATES.identity_per_s
        front_end.level = min(_RATES.identity_burst, front_end.level + added)
        front_end.level_at = self._now
        if front_end.level < 1:
            return False
        front_end.level -= 1
        return True

    def _publish(self, agent: int, place: int, earlier: int) -> _Ticket | None:
        """Return the ticket, or None where the stream is full."""
        front_end = self._frontends[place]
        most = max(1, MAX_OCTETS // self._suite.request_octets)
        if self._now >= front_end.message_until or len(front_end.message) >= most:
            if self._messages >= self._suite.max_messages:
                front_end.tickets.pop(agent, None)
                return None
            front_end.message = []
            front_end.message_until = self._now + LONGEST_S
            self._messages += 1
            self._peak_messages = max(self._peak_messages, self._messages)
            self._stream.append(front_end.message)
            self._at(front_end.message_until, "sign", 0)
        front_end.message.append((agent, place))
        self._counts["published"] += 1
        copies = min(earlier, _LONGEST_DOUBLINGS)
        ticket = _Ticket(self._now + _REPEAT_S * 2**copies, earlier + 1)
        front_end.tickets[agent] = ticket
        return ticket

    def _timeout(self, agent: int, place: int) -> None:
        front_end = self._frontends[place]
        ticket = front_end.tickets.get(agent)
        if ticket is None or not ticket.asked:
            return  # answered in time
        ticket.asked = 0
        front_end.in_flight -= 1
        self._counts["pending"] += 1
        self._poll(agent)

    # The signers, as one that takes requests in order.

    def _sign_next(self) -> None:
        if self._signer_busy or self._suite.down_from_s <= self._now < self._suite.down_until_s:
            return
        if not self._signing:
            if not self._stream or self._is_open(self._stream[0]):
                return
            message = self._stream.popleft()
            last = len(message) - 1
            self._signing.extend(
                (agent, place, n == last) for n, (agent, place) in enumerate(message)
            )
        agent, place, is_last = self._signing.popleft()
        if is_last:
            self._messages -= 1
        self._signer_busy = True
        self._at(self._now + 1 / self._suite.signed_per_s, "signed", agent, place)

    def _is_open(self, message: list[tuple[int, int]]) -> bool:
        """Whether the front end still gathers requests for it."""
        return any(f.message is message and f.message_until > self._now for f in self._frontends)

    def _signed_one(self, agent: int, place: int) -> None:
        self._signer_busy = False
        if agent in self._issued:
            self._counts["copies_signed"] += 1
            self._counts["late_copies"] += self._now - self._issued[agent] > _WINDOW_S
        else:
            self._issued[agent] = self._now
        minute = int(self._now // _MINUTE_S)
        self._signed[minute] = self._signed.get(minute, 0) + 1
        front_end = self._frontends[place]
        ticket = front_end.tickets.get(agent)
        if ticket is not None:
            ticket.answered = True
            ticket.expires = max(ticket.expires, self._now + _KEPT_S)
            if ticket.asked:
                ticket.asked = 0
                front_end.in_flight -= 1
                self._done(agent)
        self._sign_next()

    # What the agent does with the answer.

    def _done(self, agent: int) -> None:
        self._agents[agent].done_at = self._now
        for front_end in self._frontends:
            ticket = front_end.tickets.pop(agent, None)
            if ticket is not None and ticket.asked:
                front_end.in_flight -= 1

    def _poll(self, agent: int) -> None:
        """202: again after Retry-After, as long as polls may last; then the step has failed."""
        me = self._agents[agent]
        if me.pending_until is None:
            me.pending_until = self._now + self._limits.pending_limit_s
        pause = self._limits.poll_s(self._suite.retry_after_s)
        me.attempt = 0
        if self._now + pause > me.pending_until:
            self._failed(agent, StillPending("", retry_after_s=self._suite.retry_after_s))
        else:
            self._at(self._now + pause, "connect", agent)

    def _later(self, agent: int, wished_s: float) -> None:
        """Refused or 503: some attempts more, then the step has failed."""
        me = self._agents[agent]
        pause = self._limits.pause_s(me.attempt, wished_s, self._chance.uniform)
        me.attempt += 1
        if pause is None:
            self._failed(agent, ServerAway("", retry_after_s=wished_s or None))
        else:
            self._at(self._now + pause, "connect", agent)

    def _failed(self, agent: int, error: ServerAway | StillPending) -> None:
        me = self._agents[agent]
        me.attempt, me.pending_until = 0, None
        self._at(self._now + me.backoff.pause_s(error), "connect", agent)

    def _at(self, moment: float, what: str, agent: int, place: int = 0) -> None:
        self._number += 1
        heapq.heappush(self._events, (moment, self._number, what, agent, place))

    def _outcome(self) -> Outcome:
        begun = min(self._crowd.starts)
        done = sorted(a.done_at - begun for a in self._agents if a.done_at is not None)
        minutes = int(self._now // _MINUTE_S) + 1
        starts = sorted(a.began for a in self._agents)
        ends = sorted(a.done_at for a in self._agents if a.done_at is not None)
        connections = [0] * minutes
        for second, n in self._per_second.items():
            connections[second // _MINUTE_S] += n
        return Outcome(
            agents=len(self._agents),
            enrolled=len(done),
            half_s=round(done[len(done) // 2], 1),
            most_s=round(done[len(done) * 99 // 100], 1),
            all_s=round(done[-1], 1),
            peak_connections_per_s=max(self._per_second.values()),
            peak_in_flight=self._peak_in_flight,
            peak_messages=self._peak_messages,
            waiting_per_minute=_waiting(starts, ends, minutes),
            connections_per_minute=connections,
            signed_per_minute=[self._signed.get(minute, 0) for minute in range(minutes)],
            **self._counts,
        )


def _waiting(starts: Sequence[float], ends: Sequence[float], minutes: int) -> list[int]:
    found, begun, ended = [], 0, 0
    for minute in range(1, minutes + 1):
        while begun < len(starts) and starts[begun] <= minute * _MINUTE_S:
            begun += 1
        while ended < len(ends) and ends[ended] <= minute * _MINUTE_S:
            ended += 1
        found.append(begun - ended)
    return found


def _agent_default(name: str) -> float:
    return float(AgentSettings.model_fields[name].default)


_RATES = RateSettings()
