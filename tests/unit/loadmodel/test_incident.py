"""Everything renewed at once, by priority."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from estcore.pki.profile import PRIORITIES
from loadmodel.incident import Claims, allot, renew_all

some = st.lists(st.integers(0, 5000), min_size=4, max_size=4)
fleets = st.lists(st.integers(0, 3000), min_size=4, max_size=4)


def steady(per_s: int) -> Claims:
    return Claims(size=10_000, most_per_s=per_s)


@given(st.integers(1, 2000), some)
def test_places_are_used_up_and_none_gets_more_than_it_wants(
    total: int, waiting: list[int]
) -> None:
    found = allot(total, waiting)
    assert sum(found) == min(total, sum(waiting))
    assert all(0 <= got <= wanted for got, wanted in zip(found, waiting, strict=True))


@given(st.integers(20, 2000))
def test_every_priority_moves_and_critical_gets_half(total: int) -> None:
    found = allot(total, [10**6] * 4)
    assert all(found)
    assert found[0] >= total // 2


@given(fleets, st.integers(20, 500), st.integers(20, 500))
def test_every_certificate_is_renewed_once(fleet: list[int], announced: int, signed: int) -> None:
    found = renew_all(
        dict(zip(PRIORITIES, fleet, strict=True)), steady(announced), signed_per_s=signed
    )
    total = sum(fleet)
    assert found.certificates == total
    slowest = min(announced, signed)
    assert total <= found.all_s * slowest
    assert found.all_s <= total // slowest + 2
    for left in found.left_per_minute.values():
        assert left == sorted(left, reverse=True)


def test_the_urgent_are_done_first_where_all_are_as_many() -> None:
    found = renew_all(dict.fromkeys(PRIORITIES, 10_000), steady(500), signed_per_s=100).done_s
    assert found["critical"] < found["high"] < found["normal"] < found["low"] == 400


def test_announcing_no_faster_than_is_signed_keeps_no_agent_waiting() -> None:
    fleet = dict.fromkeys(PRIORITIES, 10_000)
    fast = renew_all(fleet, steady(1000), signed_per_s=100)
    paced = renew_all(fleet, steady(100), signed_per_s=100)
    assert paced.peak_waiting <= 100 < fast.peak_waiting
    assert paced.all_s == fast.all_s


def test_larger_claims_announce_faster() -> None:
    assert Claims(size=200, claim_ms=100.0, replicas=2).per_s == int(2 * 200 / 0.3)
    fleet = dict.fromkeys(PRIORITIES, 20_000)
    slow = renew_all(fleet, Claims(size=20, claim_ms=100.0), signed_per_s=500)
    fast = renew_all(fleet, Claims(size=2000, claim_ms=100.0), signed_per_s=500)
    assert slow.announced_s > fast.announced_s
    assert slow.all_s >= fast.all_s
    assert slow.peak_waiting < fast.peak_waiting
