"""When a certificate is due, how long to wait after a failure, how long old and new overlap.

Pure: time and chance are arguments. One draw per generation, deterministic, so that any replica
computes the same moment again, and a fleet issued together does not come back together.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from hashlib import sha256

from estcore.pki.profile import PRIORITIES, Priority

LATEST_SHARE = 2 / 3
"""The share of the lifetime at which renewal starts at the latest."""
FLOOR = dt.timedelta(seconds=15)
SHORTEST = dt.timedelta(seconds=1)
CAP_SHARE = 8
"""A pause is never longer than an eighth of what is left of the certificate."""
WINDOW_SHARE = 4
"""The suggested window has a quarter of what is left of the certificate when it is due."""
OVERDUE_SHARE = 2 / 3
"""A client that renews by its own clock does so before this share of that time is over."""
_SECOND = dt.timedelta(seconds=1)
_HISTORY = dt.timedelta(hours=1)
_MINUTE = dt.timedelta(minutes=1)
_HOUR = dt.timedelta(hours=1)
MANAGED_LEASE = dt.timedelta(minutes=1)
"""What ca-signer has at most to renew by itself; then renewal asks it again."""
SHARES = (50, 30, 15, 5)
"""Weights of the priorities when many slots are due, most urgent first."""


@dataclass(frozen=True)
class Pause:
    """The backoff of one priority."""

    base: dt.timedelta
    cap: dt.timedelta


BACKOFF = {
    Priority.CRITICAL: Pause(FLOOR, 10 * _MINUTE),
    Priority.HIGH: Pause(_MINUTE, _HOUR),
    Priority.NORMAL: Pause(5 * _MINUTE, 6 * _HOUR),
    Priority.LOW: Pause(15 * _MINUTE, 24 * _HOUR),
}


def draw(slot_id: str, generation: int) -> float:
    """Return the slot's number in [0, 1) for this generation, the same every time."""
    octets = sha256(f"{slot_id}/{generation}".encode()).digest()[:8]
    # 53 bits: the quotient of 64 would round up to exactly 1 near the end.
    return (int.from_bytes(octets, "big") >> 11) / (1 << 53)


def due_at(
    *,
    issued_at: dt.datetime,
    not_after: dt.datetime,
    reaction_time: dt.timedelta,
    spread: float,
    slot_id: str,
    generation: int,
) -> dt.datetime:
    """Return when renewal starts: ``issued_at + L * (2/3 - spread * draw)``.

    L counts from issuance, not from notBefore. Never later than ``not_after - reaction_time``,
    never earlier than issuance.
    """
    lifetime = not_after - issued_at
    start = issued_at + lifetime * (LATEST_SHARE - spread * draw(slot_id, generation))
    return max(min(start, not_after - reaction_time), issued_at)


@dataclass(frozen=True)
class Window:
    """When a certificate is best renewed (RFC 9773 section 4.2), in whole seconds."""

    start: dt.datetime
    end: dt.datetime


def window(
    due: dt.datetime, *, not_after: dt.datetime, renew_by: dt.datetime | None = None
) -> Window:
    """Return the suggested window: from ``due`` for a quarter of what is then left.

    ``renew_by`` ends it sooner. It ends at least a second after its start, and never after the
    certificate does, unless that is due in its last second.
    """
    start = min(due.replace(microsecond=0), not_after - _SECOND)
    end = start + (not_after - start) / WINDOW_SHARE
    if renew_by is not None:
        end = min(end, renew_by)
    return Window(start, max(end.replace(microsecond=0), start + _SECOND))


def window_in_the_past(issued_at: dt.datetime) -> Window:
    """Return a window that was over when the certificate was issued: renew it at once."""
    end = issued_at.replace(microsecond=0)
    return Window(end - _HISTORY, end)


def overdue_at(due: dt.datetime, *, not_after: dt.datetime) -> dt.datetime:
    """Return when a client that follows its window, or its own clock, would have renewed."""
    return due + max(not_after - due, dt.timedelta(0)) * OVERDUE_SHARE


def backoff(
    priority: Priority, attempts: int, *, remaining: dt.timedelta, chance: float
) -> dt.timedelta:
    """Return the pause before the next announcement; ``chance`` is in [0, 1).

    Exponential with equal jitter (uniform in half to whole), at least 15 seconds, at most the
    priority's cap and an eighth of what is left of the certificate, which wins over the floor:
    a certificate that lives two minutes is asked for every few seconds.
    """
    pause = BACKOFF[priority]
    cap = min(pause.cap, max(remaining, dt.timedelta(0)) / CAP_SHARE)
    doubled = pause.base * (1 << min(max(attempts - 1, 0), 20))
    jittered = min(doubled, cap) * (0.5 + chance / 2)
    return max(jittered, min(FLOOR, cap), SHORTEST)


def lease(longest: dt.timedelta, *, remaining: dt.timedelta, share: float) -> dt.timedelta:
    """Return how long an agent has to answer: a share of what is left, at least a second."""
    return max(min(longest, remaining * share), SHORTEST)


def overlap(
    configured: dt.timedelta, *, client_reload: dt.timedelta, remaining: dt.timedelta
) -> dt.timedelta:
    """Return how long the old certificate stays in use after the new one was proven.

    At least two reload intervals of the slowest client, at most what is left of the old one.
    """
    return max(min(max(configured, 2 * client_reload), remaining), dt.timedelta(0))


def stall_at(
    *, issued_at: dt.datetime, not_after: dt.datetime, safety: dt.timedelta
) -> dt.datetime:
    """Return when a rotation without proof of use counts as stalled."""
    lifetime = max(not_after - issued_at, dt.timedelta(0))
    return not_after - min(safety, lifetime / CAP_SHARE)


def priority_rank(priority: Priority) -> int:
    """Return 0 for critical to 3 for low, as the table stores it."""
    return PRIORITIES.index(priority)


def shares(total: int) -> list[int]:
    """Return how many of ``total`` places each priority has, at least one."""
    return [max(1, total * weight // sum(SHARES)) for weight in SHARES]


def room(most: int, unanswered: int) -> list[int]:
    """Return how many slots of each priority may be announced while so many are unanswered.

    Each priority leaves a tenth of ``most`` to each one above it, so that agents that do not
    answer never keep the more urgent ones waiting.
    """
    return [max(0, most * (10 - rank) // 10 - unanswered) for rank in range(len(PRIORITIES))]
