"""How many connections: all, of one source, and of each kind those that wait for something.

A connection is *waiting* from its arrival until it has shown what costs its sender: a whole
handshake, a whole request head. Until then it is cheap to open and easy to hold. The limits:

- Waiting connections of one source, and all connections of one source: one more is refused.
- All waiting connections: the oldest of the source with the most of them is ended for one more of
  a source with fewer. So sources that hold connections open shut out themselves.
- All connections: one more is refused.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from est_frontend import metrics


@dataclass(frozen=True)
class ConnectionBounds:
    """The limits of one port."""

    waiting: int
    waiting_per_source: int
    total: int
    total_per_source: int
    name: str = ""
    """Stands before the reason in the metric of ended connections."""


def _nothing() -> None:
    """End a connection that has ended."""


@dataclass(eq=False)
class Arrival:
    """One connection, from its arrival to its end."""

    limits: ConnectionLimits
    source: str
    abort: Callable[[], object]
    _waiting: bool = field(default=True, init=False)
    _open: bool = field(default=True, init=False)

    def established(self) -> None:
        """The handshake is complete, or the head of a request is there."""
        if self._waiting:
            self._waiting = False
            self.limits.forget_waiting(self)

    def ended(self) -> None:
        """The connection is closed; more calls change nothing."""
        self.established()
        if self._open:
            self._open = False
            self.abort = _nothing  # it leads to the connection, which leads here
            self.limits.forget(self)


class ConnectionLimits:
    """Counts the connections of one port."""

    def __init__(self, bounds: ConnectionBounds) -> None:
        self._bounds = bounds
        self._waiting: defaultdict[str, dict[Arrival, None]] = defaultdict(dict)
        self._waiting_count = 0
        self._total = 0
        self._of_source: Counter[str] = Counter()

    @property
    def waiting(self) -> int:
        """Connections without a complete handshake or head."""
        return self._waiting_count

    @property
    def total(self) -> int:
        """All connections."""
        return self._total

    def arrive(self, source: str, abort: Callable[[], object]) -> Arrival | None:
        """Count a new connection; None where there are too many. ``abort`` ends it at once."""
        why = self._objection(source)
        if why is not None:
            self._count(why)
            return None
        arrival = Arrival(self, source, abort)
        self._waiting[source][arrival] = None
        self._waiting_count += 1
        self._total += 1
        self._of_source[source] += 1
        return arrival

    def _objection(self, source: str) -> str | None:
        bounds = self._bounds
        if self._total >= bounds.total:
            return "too_many"
        if self._of_source[source] >= bounds.total_per_source:
            return "source_too_many"
        if len(self._waiting.get(source, ())) >= bounds.waiting_per_source:
            return "source_waiting"
        if self._waiting_count >= bounds.waiting and not self._make_room(source):
            return "waiting"
        return None

    def _make_room(self, source: str) -> bool:
        """End the oldest waiting connection of the source with the most, if that has more."""
        heaviest = max(self._waiting, key=lambda s: len(self._waiting[s]))
        if len(self._waiting[heaviest]) <= len(self._waiting.get(source, ())):
            return False
        oldest = next(iter(self._waiting[heaviest]))
        abort = oldest.abort
        oldest.ended()
        self._count("waiting")
        abort()
        return True

    def end_waiting(self) -> None:
        """End every connection that waits."""
        for arrival in [a for of_source in self._waiting.values() for a in of_source]:
            arrival.abort()

    def forget_waiting(self, arrival: Arrival) -> None:
        """Take a connection from those that wait."""
        of_source = self._waiting[arrival.source]
        of_source.pop(arrival, None)
        self._waiting_count -= 1
        if not of_source:
            del self._waiting[arrival.source]

    def forget(self, arrival: Arrival) -> None:
        """Take a connection from all."""
        self._total -= 1
        self._of_source[arrival.source] -= 1
        if not self._of_source[arrival.source]:
            del self._of_source[arrival.source]

    def _count(self, why: str) -> None:
        metrics.CUT.labels(self._bounds.name + why).inc()
