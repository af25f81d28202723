"""Everything must be renewed: slots announced by priority, signed by priority (pure).

One step a second. Announcements and signatures are shared out as renewal and ca-signer do it:
50/30/15/5 by priority, what one priority does not use goes to the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from estcore.pki.profile import PRIORITIES, Priority
from renewal.rotation.schedule import shares

_MINUTE_S = 60


class Incident(BaseModel):
    """How long it takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    certificates: int
    signed_per_s: int
    claim_size: int
    announced_s: int
    """When the last one was announced."""
    done_s: dict[str, int]
    """By priority: when the last one had its certificate."""
    peak_waiting: int
    """Agents that have received their event and have no certificate yet."""
    left_per_minute: dict[str, list[int]]
    """By priority: without a new certificate, at the end of each minute."""

    @property
    def all_s(self) -> int:
        """When the last of all had its certificate."""
        return max(self.done_s.values())


def allot(total: int, waiting: Sequence[int]) -> list[int]:
    """Share ``total`` places out among those that wait, by priority, most urgent first.

    First each priority gets its share at most, then the rest goes to those that want more,
    in their order.
    """
    found = [0] * len(waiting)
    left = total
    for most in (shares(total), [total] * len(waiting)):
        for priority, wanted in enumerate(waiting):
            more = min(most[priority], wanted - found[priority], left)
            found[priority] += more
            left -= more
    return found


@dataclass(frozen=True)
class Claims:
    """How fast slots are announced."""

    size: int
    """Slots of one claim, ``scheduler.claim_size``."""
    claim_ms: float = 0.0
    """What finding and taking them takes, however many are due."""
    least_ms: float = 1.0
    """What it takes with the event at the least."""
    replicas: int = 1
    most_per_s: int | None = None
    """A pace."""

    @property
    def per_s(self) -> int:
        """How many slots all replicas announce in a second."""
        took_s = (self.least_ms * self.size + self.claim_ms) / 1000
        found = max(1, int(self.replicas * self.size / took_s))
        return found if self.most_per_s is None else min(found, self.most_per_s)


def renew_all(
    certificates: dict[Priority, int], claims: Claims, *, signed_per_s: int, name: str = ""
) -> Incident:
    """Renew every certificate once, as fast as slots are announced and signers sign."""
    unannounced = [certificates[p] for p in PRIORITIES]
    waiting = [0] * len(PRIORITIES)
    done_s = [0] * len(PRIORITIES)
    left_per_minute: list[list[int]] = [[] for _ in PRIORITIES]
    peak = second = announced_s = 0
    while any(unannounced) or any(waiting):
        second += 1
        due = sum(unannounced)
        announced_s = second if due else announced_s
        for n, announced in enumerate(allot(claims.per_s, unannounced)):
            unannounced[n] -= announced
            waiting[n] += announced
        peak = max(peak, sum(waiting))
        for n, signed in enumerate(allot(signed_per_s, waiting)):
            waiting[n] -= signed
            if signed and not unannounced[n] + waiting[n]:
                done_s[n] = second
        if second % _MINUTE_S == 0:
            for n, minutes in enumerate(left_per_minute):
                minutes.append(unannounced[n] + waiting[n])
    names = [p.value for p in PRIORITIES]
    return Incident(
        name=name,
        certificates=sum(certificates.values()),
        signed_per_s=signed_per_s,
        claim_size=claims.size,
        announced_s=announced_s,
        done_s=dict(zip(names, done_s, strict=True)),
        peak_waiting=peak,
        left_per_minute=dict(zip(names, left_per_minute, strict=True)),
    )
