"""Anti-entropy: windows that differ from the ledger are asked for again."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import pytest

from estcore.clock import SystemClock
from estcore.errors import Unavailable
from estcore.ids import uuid7
from estcore.messages.envelope import decode, encode
from estcore.messages.events import (
    ReannounceAnswered,
    ReannounceRequested,
    WindowClosed,
    WindowsAnswered,
    WindowsRequested,
    WindowSum,
    window_digest,
)
from estcore.messages.topics import REANNOUNCE_TOPIC, WINDOW_TOPIC, WINDOWS_TOPIC
from estcore.runtime.bus import Bus, Incoming, Outgoing
from estcore.runtime.database import Database
from estcore.runtime.reconciliation import LedgerComparison
from estsuite_testing.renewal_bench import Bench

pytestmark = pytest.mark.integration


def window(issued: list[Any]) -> WindowClosed:
    """What ca-signer says about the minute of these certificates."""
    total = 0
    for one in issued:
        total ^= int.from_bytes(sha256(one.event.id.encode()).digest(), "big")
    start = min(i.event.issued_at for i in issued)
    return WindowClosed(
        id=uuid7(),
        source="ca-signer/test",
        time=SystemClock().now(),
        correlation_id="window",
        start=start,
        end=max(i.event.issued_at for i in issued) + dt.timedelta(microseconds=1),
        count=len(issued),
        digest=f"{total:064x}",
    )


@asynccontextmanager
async def ledger(bench: Bench, issued: list[Any], asked: list[Any]) -> AsyncIterator[None]:
    """Answers requests to publish again as ca-signer does."""

    async def answer(message: Incoming) -> None:
        request = decode(ReannounceRequested, message.payload)
        asked.append(request)
        await bench.announce(*issued, times=1)
        await bench.signer.answer(message, encode(ReannounceAnswered(announced=len(issued))))

    subscription = await bench.signer.subscribe(REANNOUNCE_TOPIC, answer)
    yield
    await subscription.unsubscribe()


async def publish(bench: Bench, closed: WindowClosed) -> None:
    await bench.signer.publish_confirmed([Outgoing(WINDOW_TOPIC, encode(closed), closed.id)])


async def test_a_certificate_the_stream_lost_is_requested_and_arrives(bench: Bench) -> None:
    kept, lost = bench.issue(age_s=10), bench.issue(age_s=9)
    asked: list[ReannounceRequested] = []
    closed = window([kept, lost])
    async with bench.running(), ledger(bench, [lost], asked):
        await bench.announce(kept)
        await bench.slot_is(kept, "idle")
        await publish(bench, closed)
        await bench.slot_is(lost, "idle")
    assert asked
    assert asked[0].requester == "renewal"
    assert asked[0].windows == (closed.start,)


async def test_a_window_that_agrees_asks_nothing(bench: Bench) -> None:
    fleet = [bench.issue(age_s=10), bench.issue(age_s=9)]
    asked: list[ReannounceRequested] = []
    async with bench.running(), ledger(bench, fleet, asked):
        await bench.announce(*fleet)
        await publish(bench, window(fleet))
        last = bench.issue()
        await bench.announce(last)
        await bench.slot_is(last, "idle")
    assert not asked


@asynccontextmanager
async def sums(
    bench: Bench, issued: list[Any], asked: list[Any], *, longest_days: float = 10_000
) -> AsyncIterator[None]:
    """Answers what the ledger committed, in windows of the length asked for; not above so many."""

    async def answer(message: Incoming) -> None:
        request = decode(WindowsRequested, message.payload)
        asked.append(request)
        if request.end - request.start > dt.timedelta(days=longest_days):
            return
        windows: dict[dt.datetime, list[str]] = {}
        for one in issued:
            at = one.event.issued_at
            if request.start <= at < request.end:
                past = int(at.timestamp()) % request.length_s
                start = at.replace(microsecond=0) - dt.timedelta(seconds=past)
                windows.setdefault(start, []).append(one.event.id)
        length = dt.timedelta(seconds=request.length_s)
        answered = WindowsAnswered(
            windows=tuple(
                WindowSum(
                    start=start, end=start + length, count=len(found), digest=window_digest(found)
                )
                for start, found in sorted(windows.items())
            )
        )
        await bench.signer.answer(message, encode(answered))

    subscription = await bench.signer.subscribe(WINDOWS_TOPIC, answer)
    yield
    await subscription.unsubscribe()


@pytest.mark.parametrize("age_s", [10, 3 * 86_400])
async def test_a_certificate_lost_with_its_window_is_requested_and_arrives(
    bench: Bench, age_s: float
) -> None:
    """Neither its event nor its window ever arrive; it is of today, or of days ago."""
    month = 30.0 * 86_400
    kept = bench.issue(age_s=age_s, lifetime_s=month)
    lost = bench.issue(age_s=age_s - 1, lifetime_s=month)
    asked: list[ReannounceRequested] = []
    requests: list[WindowsRequested] = []
    answering = ledger(bench, [lost], asked), sums(bench, [kept, lost], requests)
    async with answering[0], answering[1], bench.running():
        await bench.announce(kept)
        await bench.slot_is(kept, "idle")
        await bench.slot_is(lost, "idle")
    # Windows of other tests may still be on their way, of other lengths; the certificate arrives
    # with the first request, whichever window it is for.
    assert asked
    assert all(r.requester == "renewal" for r in requests)


async def test_all_days_are_compared_in_pieces_that_the_ledger_can_sum(bench: Bench) -> None:
    """Pieces above 40 days are not answered: the comparison goes on with smaller ones."""
    lost = bench.issue(age_s=300 * 86_400, lifetime_s=900.0 * 86_400)
    asked: list[WindowsRequested] = []
    found: list[WindowSum] = []

    async def handle(window: WindowSum) -> bool:
        found.append(window)
        return True

    settings = bench.settings
    bus = await Bus.connect(settings.bus, "renewal", "renewal-0")
    database = await Database.connect(settings.database, "renewal", "renewal")
    comparison = LedgerComparison(
        bus=bus,
        database=database,
        clock=SystemClock(),
        requester="renewal",
        rows="certificate",
        handle=handle,
        every_s=3600,
        recheck_s=0.1,
        request_timeout_s=0.5,
    )
    deferred = 0
    try:
        async with sums(bench, [lost], asked, longest_days=40):
            for _ in range(60):
                try:
                    await comparison.compare(asyncio.Event())
                    break
                except Unavailable:
                    deferred += 1
    finally:
        await database.close()
        await bus.close()
    assert deferred
    days = [r for r in asked if r.length_s == 86_400]
    answered = [r for r in days if r.end - r.start <= dt.timedelta(days=40)]
    assert days[0].end - days[0].start <= dt.timedelta(days=40)
    assert all(later.end == earlier.start for earlier, later in itertools.pairwise(answered))
    assert answered[0].end - answered[-1].start == dt.timedelta(days=1400)
    assert [w.count for w in found] == [1]
