"""Anti-entropy: windows that differ from the ledger are asked for again."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import pytest

from estcore.clock import SystemClock
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
from estcore.runtime.bus import Incoming, Outgoing
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
        await bench.signer.publish_unconfirmed(
            message.reply, encode(ReannounceAnswered(announced=len(issued)))
        )

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
async def sums(bench: Bench, issued: list[Any], asked: list[Any]) -> AsyncIterator[None]:
    """Answers what the ledger committed, in windows of the length asked for."""

    async def answer(message: Incoming) -> None:
        request = decode(WindowsRequested, message.payload)
        asked.append(request)
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
        await bench.signer.publish_unconfirmed(message.reply, encode(answered))

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
    assert {a.length_s for a in asked} == {60}
    assert all(r.requester == "renewal" for r in requests)
