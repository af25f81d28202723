"""When a certificate is due, and how long pauses are."""

from __future__ import annotations

import datetime as dt

from hypothesis import given
from hypothesis import strategies as st

from estcore.pki.profile import Priority
from renewal.rotation.schedule import (
    backoff,
    draw,
    due_at,
    lease,
    overlap,
    room,
    shares,
    stall_at,
)

START = dt.datetime(2026, 11, 22, 12, 0, tzinfo=dt.UTC)
MINUTE = dt.timedelta(minutes=1)
lifetimes = st.integers(60, 400 * 86_400).map(lambda s: dt.timedelta(seconds=s))
lefts = st.integers(0, 400 * 86_400).map(lambda s: dt.timedelta(seconds=s))
priorities = st.sampled_from(list(Priority))


def due(
    lifetime: dt.timedelta, reaction: dt.timedelta, spread: float, slot: str, n: int
) -> dt.datetime:
    return due_at(
        issued_at=START,
        not_after=START + lifetime,
        reaction_time=reaction,
        spread=spread,
        slot_id=slot,
        generation=n,
    )


@given(lifetimes, st.floats(0, 0.99), st.floats(0, 0.3), st.uuids(), st.integers(1, 10_000))
def test_renewal_is_never_due_later_than_the_reaction_time_before_the_end(
    lifetime: dt.timedelta, share: float, spread: float, slot: object, n: int
) -> None:
    reaction = lifetime * share
    found = due(lifetime, reaction, spread, str(slot), n)
    assert START <= found <= START + lifetime - reaction
    assert found <= START + lifetime * 2 / 3 + dt.timedelta(microseconds=1)


@given(lifetimes, st.floats(0, 0.3), st.uuids(), st.integers(1, 10_000))
def test_the_same_generation_is_due_at_the_same_moment_however_often_it_is_computed(
    lifetime: dt.timedelta, spread: float, slot: object, n: int
) -> None:
    reaction = lifetime / 10
    first = due(lifetime, reaction, spread, str(slot), n)
    assert first == due(lifetime, reaction, spread, str(slot), n)


@given(lifetimes, st.uuids(), st.lists(st.integers(0, 10**8), min_size=2))
def test_once_due_a_certificate_stays_due(
    lifetime: dt.timedelta, slot: object, seconds: list[int]
) -> None:
    moment = due(lifetime, lifetime / 10, 0.05, str(slot), 1)
    seen = [START + dt.timedelta(seconds=s) >= moment for s in sorted(seconds)]
    assert seen == sorted(seen)


def test_a_fleet_issued_together_comes_back_spread_over_a_twentieth_of_its_lifetime() -> None:
    day = dt.timedelta(days=30)
    moments = [due(day, day / 30, 0.05, f"slot-{n}", 1) for n in range(500)]
    assert dt.timedelta(hours=33) < max(moments) - min(moments) <= dt.timedelta(hours=36)
    assert all(0 <= draw(f"slot-{n}", 7) < 1 for n in range(500))


@given(priorities, st.integers(0, 200), lefts, st.floats(0, 1, exclude_max=True))
def test_a_pause_never_takes_more_than_an_eighth_of_what_is_left(
    priority: Priority, attempts: int, left: dt.timedelta, chance: float
) -> None:
    pause = backoff(priority, attempts, remaining=left, chance=chance)
    second = dt.timedelta(seconds=1)
    assert second <= pause <= max(left / 8, second)
    assert pause >= min(dt.timedelta(seconds=15), left / 8)


def test_pauses_double_up_to_the_cap_of_the_priority() -> None:
    year = dt.timedelta(days=365)
    found = [backoff(Priority.HIGH, n, remaining=year, chance=0.9999999) for n in range(1, 9)]
    assert [round(p / MINUTE) for p in found] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert backoff(Priority.HIGH, 2, remaining=year, chance=0) == MINUTE


def test_a_two_minute_certificate_is_asked_for_every_few_seconds() -> None:
    left = dt.timedelta(seconds=40)
    assert backoff(Priority.LOW, 1, remaining=left, chance=0.5) == dt.timedelta(seconds=5)
    hour = dt.timedelta(hours=1)
    assert lease(6 * hour, remaining=left, share=0.25) == dt.timedelta(seconds=10)


@given(lefts, lefts, lefts)
def test_an_overlap_ends_with_the_old_certificate_at_the_latest(
    wanted: dt.timedelta, reload: dt.timedelta, left: dt.timedelta
) -> None:
    found = overlap(wanted, client_reload=reload, remaining=left)
    assert dt.timedelta(0) <= found <= left
    assert found >= min(wanted, left)


def test_a_rotation_stalls_an_eighth_of_the_lifetime_before_the_end_at_most() -> None:
    end = START + 2 * MINUTE
    found = stall_at(issued_at=START, not_after=end, safety=dt.timedelta(days=1))
    assert end - found == dt.timedelta(seconds=15)


def test_every_priority_has_a_share_even_of_little() -> None:
    assert shares(200) == [100, 60, 30, 10]
    assert shares(1) == [1, 1, 1, 1]


@given(most=st.integers(10, 1_000_000), unanswered=st.integers(0, 2_000_000))
def test_a_more_urgent_priority_always_has_room_that_a_less_urgent_one_cannot_take(
    most: int, unanswered: int
) -> None:
    found = room(most, unanswered)
    assert found == sorted(found, reverse=True)
    assert max(found) + unanswered <= max(most, unanswered)
    assert min(found) >= 0
    # What the least urgent can fill leaves a tenth to the next, and so on.
    for lower in range(1, 4):
        filled = room(most, 0)[lower]
        assert room(most, filled)[lower] == 0
        assert room(most, filled)[lower - 1] >= most // 10
