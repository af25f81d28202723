"""Fleets: how many certificates of which lifetime, and how each is scheduled (pure)."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from estcore.pki.profile import PRIORITIES, Priority, RenewalRules
from renewal.rotation.schedule import LATEST_SHARE, due_at

_EPOCH = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
_DAY = dt.timedelta(days=1)
_HOUR = dt.timedelta(hours=1)
CERTIFICATES_PER_SERVICE = 50


@dataclass(frozen=True)
class Profile:
    """What decides the moment of a renewal."""

    name: str
    lifetime: dt.timedelta
    reaction_time: dt.timedelta
    spread: float = RenewalRules.model_fields["spread"].default

    def cycle_s(self, slot_id: str, generation: int) -> float:
        """Return the seconds from issuance of a generation to its renewal, as renewal decides."""
        due = due_at(
            issued_at=_EPOCH,
            not_after=_EPOCH + self.lifetime,
            reaction_time=self.reaction_time,
            spread=self.spread,
            slot_id=slot_id,
            generation=generation,
        )
        return (due - _EPOCH).total_seconds()

    @property
    def shortest_cycle_s(self) -> float:
        """No cycle is shorter."""
        earliest = self.lifetime * (LATEST_SHARE - self.spread)
        return min(earliest, self.lifetime - self.reaction_time).total_seconds()

    @property
    def mean_cycle_s(self) -> float:
        """The mean where the reaction time decides nothing, as in the profiles below."""
        return (self.lifetime * (LATEST_SHARE - self.spread / 2)).total_seconds()


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("24 h", _DAY, 4 * _HOUR),
        Profile("7 d", 7 * _DAY, _DAY),
        Profile("30 d", 30 * _DAY, 7 * _DAY),
        Profile("90 d", 90 * _DAY, 14 * _DAY),
    )
}
Mix = dict[str, float]
"""Shares by the name of a profile."""
MIXED: Mix = {"24 h": 0.05, "7 d": 0.15, "30 d": 0.40, "90 d": 0.40}
MIXES: dict[str, Mix] = {"mixed": MIXED, **{name: {name: 1.0} for name in PROFILES}}
PRIORITY_SHARES = dict(zip(PRIORITIES, (0.05, 0.15, 0.70, 0.10), strict=True))
"""Assumed shares of the priorities, critical first."""


def counts(total: int, shares: dict[str, float]) -> dict[str, int]:
    """Split ``total`` by shares that add up to 1; the last one gets what rounding left."""
    found = {name: int(total * share) for name, share in shares.items()}
    last = next(reversed(found))
    found[last] += total - sum(found.values())
    return found


def by_priority(total: int) -> dict[Priority, int]:
    """Split ``total`` by the assumed shares of priorities."""
    split = counts(total, {p.value: share for p, share in PRIORITY_SHARES.items()})
    return {Priority(name): n for name, n in split.items()}


def renewals_per_s(certificates: int, mix: Mix) -> float:
    """Return the mean rate of renewals in a fleet in which nothing fails."""
    split = counts(certificates, mix)
    return sum(n / PROFILES[name].mean_cycle_s for name, n in split.items())
