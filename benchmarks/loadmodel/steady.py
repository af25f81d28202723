"""A day of renewals, and what the spread does to a fleet that was enrolled at once (pure)."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from loadmodel.fleet import PROFILES, Mix, Profile, counts, renewals_per_s

DAY_S = 86_400
_MINUTE_S = 60
_BINS = 200


class Day(BaseModel):
    """Renewals of one day."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    certificates: int
    mix: str
    renewals: int
    mean_per_s: float
    p99_minute_per_s: float
    """The rate in the minute that 99 of 100 minutes do not exceed."""
    peak_minute_per_s: float
    peak_second: int
    per_quarter_hour: list[int]


def renewals(
    profile: Profile, slot_id: str, *, first_s: float, until_s: float
) -> Iterator[tuple[int, float, float]]:
    """Yield generation, issuance and renewal of a slot, the first renewed at ``first_s``.

    Each generation begins at the renewal of the one before.
    """
    generation = 1
    issued, due = first_s - profile.cycle_s(slot_id, generation), first_s
    while due < until_s:
        yield generation, issued, due
        generation += 1
        issued, due = due, due + profile.cycle_s(slot_id, generation)


def day(certificates: int, mix: Mix, *, name: str, seed: int = 1) -> Day:
    """Renew a fleet that was enrolled evenly over time, for one day, each certificate for itself.

    The time between a slot being due and its certificate, seconds in a suite that keeps up, is
    left out.
    """
    chance = random.Random(seed)
    seconds = array("L", bytes(DAY_S * array("L").itemsize))
    for profile_name, n in counts(certificates, mix).items():
        profile = PROFILES[profile_name]
        shortest_s = profile.shortest_cycle_s
        for slot in range(n):
            phase = chance.random()
            if phase * shortest_s >= DAY_S:
                continue  # certainly not today: saves the draw
            slot_id = f"{profile_name}-{slot}"
            first_s = phase * profile.cycle_s(slot_id, 1)
            for _, _, due in renewals(profile, slot_id, first_s=first_s, until_s=DAY_S):
                seconds[int(due)] += 1
    return summary(seconds, certificates, name)


def summary(seconds: array[int], certificates: int, name: str) -> Day:
    """Summarize the renewals in each second of a day."""
    minutes = sorted(_sums(seconds, _MINUTE_S))
    total = sum(seconds)
    return Day(
        certificates=certificates,
        mix=name,
        renewals=total,
        mean_per_s=round(total / len(seconds), 4),
        p99_minute_per_s=round(minutes[len(minutes) * 99 // 100] / _MINUTE_S, 3),
        peak_minute_per_s=round(minutes[-1] / _MINUTE_S, 3),
        peak_second=max(seconds),
        per_quarter_hour=_sums(seconds, 15 * _MINUTE_S),
    )


class Bunch(BaseModel):
    """A fleet enrolled within a short time: its busiest time in each generation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    profile: str
    spread: float
    enrolled_within_s: int
    peaks: dict[int, float]
    """By generation: the busiest two-hundredth of a cycle, as a multiple of the mean rate."""


def bunch(
    profile: Profile, *, within_s: int, generations: tuple[int, ...], sample: int, seed: int = 1
) -> Bunch:
    """Follow ``sample`` slots through their generations; a ratio does not depend on the size."""
    chance = random.Random(seed)
    last = max(generations)
    bin_s = profile.mean_cycle_s / _BINS
    histograms = {generation: dict[int, int]() for generation in generations}
    for slot in range(sample):
        at = chance.random() * within_s
        for generation in range(1, last + 1):
            at += profile.cycle_s(f"{profile.name}-{slot}", generation)
            if generation in histograms:
                place = int(at / bin_s)
                histogram = histograms[generation]
                histogram[place] = histogram.get(place, 0) + 1
    mean = sample / _BINS
    peaks = {g: round(max(h.values()) / mean, 1) for g, h in histograms.items()}
    return Bunch(
        profile=profile.name, spread=profile.spread, enrolled_within_s=within_s, peaks=peaks
    )


def expected(certificates: int, mix: Mix) -> float:
    """Return the renewals of a day by arithmetic alone."""
    return renewals_per_s(certificates, mix) * DAY_S


def _sums(seconds: array[int], length: int) -> list[int]:
    return [sum(seconds[at : at + length]) for at in range(0, len(seconds), length)]
