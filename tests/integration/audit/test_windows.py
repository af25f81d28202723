"""Anti-entropy: the log against what the ledger says it committed."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable

import pytest

from audit.settings import WindowSettings
from estcore import ids
from estcore.messages.audit import AuditRecord, Target
from estcore.messages.envelope import decode, encode
from estcore.messages.events import (
    ReannounceAnswered,
    ReannounceRequested,
    WindowClosed,
    window_digest,
)
from estcore.messages.topics import REANNOUNCE_TOPIC, WINDOW_TOPIC
from estcore.runtime.bus import Incoming, Outgoing
from estsuite_testing.audit_stack import AuditWorld

pytestmark = pytest.mark.integration
START = dt.datetime(2026, 1, 2, 12, 0, tzinfo=dt.UTC)
QUICK = WindowSettings(retry_s=0.2, attempts=6)


def outcome(record: Callable[..., AuditRecord], number: int) -> AuditRecord:
    return record(
        number,
        action="certificate.issue",
        phase="outcome",
        outcome="success",
        target=Target(issuance_id=f"i-{number}", issued_at=START + dt.timedelta(seconds=number)),
    )


def closed(issuances: list[str], minute: int = 0) -> Outgoing:
    start = START + dt.timedelta(minutes=minute)
    window = WindowClosed(
        id=ids.uuid7(),
        source="ca-signer/s-0",
        time=start,
        correlation_id="window",
        start=start,
        end=start + dt.timedelta(minutes=1),
        count=len(issuances),
        digest=window_digest(issuances),
    )
    return Outgoing(WINDOW_TOPIC, encode(window), window.id)


async def test_equal_windows_close_and_missing_records_are_requested(
    world: AuditWorld, record: Callable[..., AuditRecord]
) -> None:
    async with world.service(windows=QUICK), world.publisher() as publisher:
        asked = asyncio.Event()

        async def answer(message: Incoming) -> None:
            question = decode(ReannounceRequested, message.payload)
            assert question.requester == "audit"
            assert question.windows == (START,)
            if not asked.is_set():
                await publisher.send(outcome(record, 3))
            asked.set()
            await publisher.bus.answer(message, encode(ReannounceAnswered(announced=1)))

        await publisher.bus.subscribe(REANNOUNCE_TOPIC, answer)
        await publisher.send(*(outcome(record, n) for n in (1, 2)))
        await publisher.bus.publish_confirmed([closed([], minute=5), closed(["i-1", "i-2", "i-3"])])
        await asyncio.wait_for(asked.wait(), 20)
        await world.wait("select count(*) from window_check where state = 'equal'", 2)


@pytest.mark.logs_errors("audit log differs from the ledger")
async def test_a_window_that_stays_different_is_abandoned_on_record(world: AuditWorld) -> None:
    async with world.service(windows=QUICK), world.publisher() as publisher:

        async def answer(message: Incoming) -> None:
            await publisher.bus.answer(message, encode(ReannounceAnswered(announced=0)))

        await publisher.bus.subscribe(REANNOUNCE_TOPIC, answer)
        await publisher.bus.publish_confirmed([closed(["i-9"], minute=7)])
        given_up = "select count(*) from window_check where state = 'given_up'"
        await world.wait(f"{given_up} and extract(minute from start) = 7", 1)
        # A window of another test may come again from the stream; each is recorded once.
        recorded = "select count(*) from record where action = 'audit.window_differs'"
        await world.wait(f"select ({recorded}) - ({given_up})", 0)


async def test_a_window_stays_open_as_long_as_ca_signer_does_not_answer(world: AuditWorld) -> None:
    """An outage of ca-signer is no reason to give a window up."""
    async with world.service(windows=QUICK), world.publisher() as publisher:
        await publisher.bus.publish_confirmed([closed(["i-8"], minute=8)])
        still_open = "select state from window_check where extract(minute from start) = 8"
        await world.wait(still_open, "open")
        await asyncio.sleep(QUICK.retry_s * QUICK.attempts * 2)
        await world.wait(still_open, "open")


def test_the_digest_needs_no_order() -> None:
    assert window_digest(["a", "b"]) == window_digest(["b", "a"]) != window_digest(["a"])
    assert window_digest([]) == "0" * 64
