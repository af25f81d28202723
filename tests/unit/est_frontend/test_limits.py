"""Limits in memory: fair tables, pauses, connections, refusals. No flood takes the room of others."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from est_frontend.audit_trail.refusal_counts import RefusalCounts
from est_frontend.auth.spent_proofs import SpentProofs
from est_frontend.connection_limits import Arrival, ConnectionBounds, ConnectionLimits
from est_frontend.fair_table import FairTable, network_of
from est_frontend.rate_limits import Attempt, Backoff, Buckets, TooOften
from estcore.errors import NotAuthenticated
from estcore.messages.enrollment import Claim
from estcore.runtime.sockets import address_of, source_of

SOURCES = st.sampled_from([f"10.{n}.0.{m}" for n in range(3) for m in range(4)])


# What a client counts as.


@pytest.mark.parametrize(
    ("peer", "address", "source", "network"),
    [
        ("192.0.2.7", "192.0.2.7", "192.0.2.7", "192.0.2.0/24"),
        ("::ffff:192.0.2.7", "192.0.2.7", "192.0.2.7", "192.0.2.0/24"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2:3::4", "2001:db8:1:2::/64", "2001:db8:1::/48"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2:ffff::", "2001:db8:1:2::/64", "2001:db8:1::/48"),
        ("fe80::1%eth0", "fe80::1", "fe80::/64", "fe80::/48"),
        ("::1", "::1", "::/64", "::/48"),
        ("unknown", "unknown", "unknown", "unknown"),
    ],
)
def test_an_ipv6_client_is_its_64_and_a_mapped_address_is_ipv4(
    peer: str, address: str, source: str, network: str
) -> None:
    assert address_of((peer, 1, 0, 0)) == address
    assert source_of(address) == source
    assert network_of(source) == network


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_all_addresses_of_a_64_are_one_source(prefix: int, one: int, other: int) -> None:
    first, second = (ipaddress.IPv6Address(prefix << 64 | low) for low in (one, other))
    if first.ipv4_mapped is None and second.ipv4_mapped is None:
        assert source_of(str(first)) == source_of(str(second))


def test_no_peer_is_unknown() -> None:
    assert address_of(None) == address_of("") == "unknown"


# Fair tables.


@given(st.lists(st.tuples(SOURCES, st.booleans()), max_size=80), st.integers(1, 6))
def test_a_table_holds_its_capacity_and_its_largest_network_makes_room(
    steps: list[tuple[str, bool]], capacity: int
) -> None:
    table: FairTable[int] = FairTable(capacity)
    model: dict[str, int] = {}
    for number, (name, put) in enumerate(steps):
        sizes = Counter(map(network_of, model))
        if put:
            known = name in model
            table.put(name, network_of(name), number)
            gone = [n for n in model if n != name and table.get(n) is None]
            if known or len(model) < capacity:
                assert gone == []
            else:
                assert len(gone) == 1
                assert sizes[network_of(gone[0])] == max(sizes.values())
            model = {n: v for n, v in model.items() if n not in gone} | {name: number}
        else:
            assert table.pop(name) == model.pop(name, None)
        assert len(table) == len(model) <= capacity
        assert all(table.get(n) == v for n, v in model.items())


def test_a_flood_of_one_network_pushes_out_itself() -> None:
    table: FairTable[str] = FairTable(100)
    for number in range(20):
        table.put(f"198.51.{number}.1", f"198.51.{number}.0/24", "kept")
    for number in range(1000):
        source = source_of(f"2001:db8:0:{number:x}::1")
        table.put(source, network_of(source), "flood")
    assert [table.get(f"198.51.{n}.1") for n in range(20)] == ["kept"] * 20
    assert len(table) == 100


def test_a_bucket_of_a_quiet_source_outlives_a_flood_of_sources() -> None:
    buckets = Buckets("address", rate=0.001, burst=1, capacity=200)
    buckets.take("192.0.2.1")
    for number in range(1000):
        buckets.take(source_of(f"2001:db8:{number >> 8:x}:{number & 255:x}::1"))
    with pytest.raises(TooOften):
        buckets.take("192.0.2.1")


# Pauses after wrong credentials.


async def fail(backoff: Backoff, name: str, source: str = "192.0.2.1", times: int = 1) -> None:
    for _ in range(times):
        (await backoff.begin(name, source)).failed()


async def test_of_thirty_guesses_at_once_no_more_are_tried_than_one_after_the_other() -> None:
    backoff = Backoff(free=5, longest_s=300)
    tried = running = most = 0

    async def guess() -> None:
        nonlocal tried, running, most
        attempt = await backoff.begin("a@b", "b")
        tried += 1
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        attempt.failed()

    results = await asyncio.gather(*(guess() for _ in range(30)), return_exceptions=True)
    assert sum(isinstance(r, TooOften) for r in results) == 30 - tried
    # Five are free; the sixth is what the first pause follows.
    assert (tried, most) == (6, 5)
    one_by_one = Backoff(free=5, longest_s=300)
    with pytest.raises(TooOften):
        await fail(one_by_one, "a@b", "b", 7)


async def test_thirty_right_attempts_at_once_all_get_in() -> None:
    backoff = Backoff(free=5, longest_s=300)
    await fail(backoff, "a@b", times=4)

    async def enter() -> None:
        attempt = await backoff.begin("a@b", "192.0.2.1")
        await asyncio.sleep(0.001)
        attempt.forgive()

    await asyncio.gather(*(enter() for _ in range(30)))
    await fail(backoff, "a@b", times=5)


async def test_an_attempt_that_is_withdrawn_counts_nothing_and_excuses_nothing() -> None:
    backoff = Backoff(free=2, longest_s=300)
    for _ in range(10):
        attempt = await backoff.begin("a", "a")
        attempt.withdrawn()
        attempt.failed()  # ended already: changes nothing
    await fail(backoff, "a", times=2)
    (await backoff.begin("a", "a")).withdrawn()
    await fail(backoff, "a")
    with pytest.raises(TooOften):
        await backoff.begin("a", "a")


async def test_handshakes_do_not_wait_for_one_another() -> None:
    """``begin_now`` is for callers that cannot wait: as many as may fail, and no more."""
    backoff = Backoff(free=3, longest_s=300)
    under_way = [backoff.begin_now("a", "a") for _ in range(3)]
    with pytest.raises(TooOften):
        backoff.begin_now("a", "a")
    under_way[0].withdrawn()
    backoff.begin_now("a", "a").withdrawn()


async def test_a_cancelled_wait_leaves_room_for_others() -> None:
    backoff = Backoff(free=1, longest_s=300)
    first = await backoff.begin("a", "a")
    waiting = [asyncio.ensure_future(backoff.begin("a", "a")) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    first.forgive()
    second = await waiting[1]
    assert isinstance(second, Attempt)
    second.forgive()
    (await waiting[2]).forgive()
    assert not backoff._under_way


async def test_no_flood_of_first_failures_ends_a_pause() -> None:
    backoff = Backoff(free=2, longest_s=300, capacity=50)
    await fail(backoff, "victim@192.0.2.1", times=3)
    for number in range(2000):
        source = source_of(f"10.{number >> 8}.{number & 255}.1")
        await fail(backoff, f"x@{source}", source, 2)
    with pytest.raises(TooOften):
        backoff.check("victim@192.0.2.1")
    assert len(backoff._few) <= 50
    # Nor does a network that earns pauses by the thousand.
    for number in range(500):
        source = source_of(f"2001:db8:0:{number:x}::1")
        await fail(backoff, source, source, 3)
    with pytest.raises(TooOften):
        backoff.check("victim@192.0.2.1")
    assert len(backoff._many) <= 50


# Connections.


def limits(**changes: int) -> ConnectionLimits:
    values = {"waiting": 10, "waiting_per_source": 4, "total": 20, "total_per_source": 8}
    return ConnectionLimits(ConnectionBounds(**(values | changes), name=""))


def test_a_source_has_its_share_of_waiting_and_of_all_connections() -> None:
    counted = limits()
    waiting = [counted.arrive("a", list) for _ in range(6)]
    assert [w is not None for w in waiting] == [True] * 4 + [False] * 2
    for arrival in waiting[:4]:
        assert arrival is not None
        arrival.established()
    more = [counted.arrive("a", list) for _ in range(4)]
    assert all(more)
    assert counted.arrive("a", list) is None, "eight of this source are open"
    assert counted.arrive("b", list) is not None


def test_where_all_wait_the_oldest_of_the_heaviest_source_makes_room() -> None:
    counted = limits(waiting=6)
    ended: list[str] = []
    for name in ("a", "b"):
        for number in range(3):
            counted.arrive(name, functools.partial(ended.append, f"{name}{number}"))
    assert counted.arrive("c", list) is not None
    assert ended == ["a0"]
    assert counted.arrive("b", list) is None, "no source has more than this one"
    assert counted.arrive("c", list) is not None
    assert ended == ["a0", "b0"]
    assert (counted.waiting, counted.total) == (6, 6)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["new", "done", "end"]))))
def test_the_counts_are_those_of_what_is_open(steps: list[tuple[str, str]]) -> None:
    counted = limits(waiting=4, waiting_per_source=2, total=6, total_per_source=4)
    open_: dict[Arrival, bool] = {}
    for source, step in steps:
        if step == "new":
            evicted: list[Arrival] = []
            arrival = counted.arrive(source, functools.partial(_evict, open_, evicted))
            if arrival is not None:
                evicted.append(arrival)
                open_[arrival] = True
        for found in [a for a in open_ if a.source == source][:1]:
            if step == "done":
                found.established()
                open_[found] = False
            elif step == "end":
                found.ended()
                found.ended()
                del open_[found]
        assert counted.total == len(open_) <= 6
        assert counted.waiting == sum(open_.values()) <= 4
        for name in "abc":
            mine = [waits for a, waits in open_.items() if a.source == name]
            assert len(mine) <= 4
            assert sum(mine) <= 2


def _evict(open_: dict[Arrival, bool], evicted: list[Arrival]) -> None:
    del open_[evicted[0]]


# Refusals and proofs.


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from("xy"), st.booleans(), st.booleans()),
        max_size=100,
    ),
    st.integers(1, 5),
)
def test_every_refusal_is_recorded_or_counted_once(
    steps: list[tuple[str, str, bool, bool]], per_source: int
) -> None:
    counts = RefusalCounts(per_source)
    reported: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for source, code, room, ends in steps:
        seen[code] += 1
        reported[code] += counts.records(source, code, room=room)
        if ends and room:
            for item in counts.end_window():
                reported[item.code] += item.count
        elif ends:
            counts.widen()
    for item in counts.end_window():
        reported[item.code] += item.count
        assert 1 <= item.sources <= 4
    assert not counts
    assert +reported == seen


def test_a_proof_is_spent_until_it_would_not_be_accepted_any_more() -> None:
    proofs = SpentProofs(keep_s=600, capacity=3)
    first = Claim(kind="dpop", id="1")
    proofs.spend(first)
    for again in (first, Claim(kind="dpop", id="1")):
        with pytest.raises(NotAuthenticated) as caught:
            proofs.spend(again)
        assert caught.value.code == "auth.replayed"
    proofs.spend(Claim(kind="digest", id="1"))
    short = SpentProofs(keep_s=-1)
    short.spend(first)
    short.spend(first)
