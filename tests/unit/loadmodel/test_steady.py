"""A fleet's renewals over time."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadmodel import steady
from loadmodel.fleet import (
    MIXED,
    MIXES,
    PRIORITY_SHARES,
    PROFILES,
    Mix,
    Profile,
    by_priority,
    counts,
    renewals_per_s,
)


@given(
    st.sampled_from(list(PROFILES.values())),
    st.integers(0, 10**6).map(str),
    st.floats(0, 1),
)
def test_every_generation_is_renewed_once_and_before_it_ends(
    profile: Profile, slot: str, phase: float
) -> None:
    lifetime_s = profile.lifetime.total_seconds()
    first_s = phase * profile.cycle_s(slot, 1)
    found = list(steady.renewals(profile, slot, first_s=first_s, until_s=first_s + 10 * lifetime_s))
    assert [generation for generation, _, _ in found] == list(range(1, len(found) + 1))
    assert len(found) >= 15
    for (_, issued, due), (_, following, _) in itertools.pairwise(found):
        assert issued < due == following
        assert due < issued + lifetime_s - profile.reaction_time.total_seconds() + 1e-3
        assert due - issued >= profile.shortest_cycle_s - 1e-3


def test_a_simulated_day_has_the_rate_of_the_arithmetic() -> None:
    day = steady.day(40_000, MIXED, name="mixed")
    expected = renewals_per_s(40_000, MIXED)
    assert day.mean_per_s == pytest.approx(expected, rel=0.03)
    assert steady.expected(40_000, MIXED) == pytest.approx(expected * 86_400)
    assert day.mean_per_s <= day.p99_minute_per_s <= day.peak_minute_per_s
    assert sum(day.per_quarter_hour) == day.renewals
    assert len(day.per_quarter_hour) == 96


def test_certificates_of_a_day_are_renewed_more_than_once_in_it() -> None:
    day = steady.day(2_000, MIXES["24 h"], name="24 h")
    assert day.renewals == pytest.approx(2_000 / (2 / 3 - 0.025), rel=0.02)


def test_bunches_widen_with_each_generation() -> None:
    found = steady.bunch(PROFILES["7 d"], within_s=3600, generations=(1, 4, 16), sample=3000)
    first, fourth, sixteenth = (found.peaks[g] for g in (1, 4, 16))
    assert first > fourth > sixteenth > 1


@given(st.integers(0, 10**7), st.sampled_from(list(MIXES.values())))
def test_no_certificate_is_lost_when_a_fleet_is_split(total: int, mix: Mix) -> None:
    assert sum(counts(total, mix).values()) == total
    assert sum(by_priority(total).values()) == total


def test_shares_add_up_to_one() -> None:
    sums = [*(sum(mix.values()) for mix in MIXES.values()), sum(PRIORITY_SHARES.values())]
    assert sums == pytest.approx([1.0] * len(sums))
