"""Audit records of a front end whose stream is lost before audit has read them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from est_frontend.audit_trail.trail import AuditTrail
from est_frontend.settings import TrailSettings
from estcore.clock import SystemClock
from estcore.ids import uuid7
from estcore.messages import topics
from estcore.messages.audit import Actor, AuditBatch, AuditRecordBuilder
from estcore.messages.envelope import decode, encode
from estcore.runtime.boot import Boot
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.consume import PullConsumer
from estcore.runtime.own_records import OwnRecords
from estcore.runtime.topology import declare
from estsuite_testing.platform import Platform

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


async def declared(platform: Platform) -> None:
    bus = await platform.provisioner()
    await declare(bus, topics.owned_by("audit"), topics.AUDIT_CONSUMERS[:2], replicas=1)
    await bus.close()


def add(trail: AuditTrail) -> None:
    trail.event("service.test")


async def numbers(platform: Platform) -> list[int | None]:
    """The numbers of the records in the stream, as audit reads them."""
    return [number for _, number in await records(platform)]


async def records(platform: Platform) -> list[tuple[str, int | None]]:
    """Service and number of each record in the stream, as audit reads them."""
    bus = await Bus.connect(platform.bus("audit"), "audit", "test")
    consumer = PullConsumer(bus, topics.AUDIT_REFUSAL, topics.AUDIT_CONSUMER, credit=100)
    await consumer.start()
    found: list[tuple[str, int | None]] = []
    while await consumer.wait(1):
        for delivery in consumer.take(100):
            batch = decode(AuditBatch, delivery.payload())
            found += [(r.producer.service, r.producer_seq) for r in batch.records]
            await delivery.ack()
        await consumer.maintain()
    await consumer.pause()
    await bus.close()
    return found


async def test_what_a_lost_stream_had_is_sent_again(platform: Platform, tmp_path: Path) -> None:
    await declared(platform)
    bus = await Bus.connect(platform.bus("est-frontend"), "est-frontend", "test")
    settings = TrailSettings(spool_file=tmp_path / "spool.db")
    trail = AuditTrail(bus, settings, SystemClock(), group="default", instance="test")
    await trail.open()
    try:
        for _ in range(3):
            add(trail)
            await trail.flush()
        await platform.delete_stream(topics.AUDIT_REFUSAL)
        await declared(platform)
        add(trail)
        await trail.flush()
        assert sorted(n for n in await numbers(platform) if n) == [1, 2, 3, 4]
        add(trail)
        await trail.flush()
        assert await numbers(platform) == [5]
    finally:
        await trail.close()
        await bus.close()


async def test_it_is_sent_again_also_where_others_were_faster(
    platform: Platform, tmp_path: Path
) -> None:
    """Their messages brought the numbers of the new stream above those of before."""
    await declared(platform)
    bus = await Bus.connect(platform.bus("est-frontend"), "est-frontend", "test")
    signer = await Bus.connect(platform.bus("ca-signer"), "ca-signer", "test")
    settings = TrailSettings(spool_file=tmp_path / "spool.db")
    trail = AuditTrail(bus, settings, SystemClock(), group="default", instance="test")
    await trail.open()
    try:
        for _ in range(2):
            add(trail)
            await trail.flush()
        await platform.delete_stream(topics.AUDIT_REFUSAL)
        await platform.nats.stop(kill=True)
        await platform.nats.start()
        await declared(platform)
        async with asyncio.timeout(15):
            while not (bus.connected and signer.connected):
                await asyncio.sleep(0.05)
        assert [await record_of(signer, n) for n in range(10)][-1] > 2
        add(trail)
        await trail.flush()
    finally:
        await trail.close()
        await bus.close()
        await signer.close()
    found = await numbers(platform)
    assert [n for n in sorted(n for n in found if n) if n <= 3] == [1, 2, 3]


async def test_it_is_sent_again_also_where_nothing_new_is_to_be_sent(
    platform: Platform, tmp_path: Path
) -> None:
    """By a front end without clients, and by services for the records about themselves."""
    await declared(platform)
    bus = await Bus.connect(platform.bus("est-frontend"), "est-frontend", "test")
    signer = await Bus.connect(platform.bus("ca-signer"), "ca-signer", "test")
    settings = TrailSettings(spool_file=tmp_path / "spool.db")
    trail = AuditTrail(bus, settings, SystemClock(), group="default", instance="test")
    await trail.open()
    topic = topics.audit_refusal_topic("ca-signer", "test")
    own = OwnRecords(signer, topic, "test", SystemClock(), Boot())
    try:
        add(trail)
        await trail.flush()
        await own.begin()
        await platform.delete_stream(topics.AUDIT_REFUSAL)
        await platform.nats.stop(kill=True)
        await platform.nats.start()
        await asyncio.sleep(1)  # without the stream nothing can be stored
        await declared(platform)
        found: list[tuple[str, int | None]] = []
        async with asyncio.timeout(20):
            while len(found) < 2:
                found += await records(platform)
        assert sorted(found) == [("ca-signer", 1), ("est-frontend", 1)]
        assert not await records(platform)
    finally:
        await trail.close()
        await bus.close()
        await signer.close()


async def record_of(signer: Bus, number: int) -> int:
    """Store a record of a different service; returns its sequence."""
    builder = AuditRecordBuilder("ca-signer", "test", uuid7())
    record = builder.success(
        "service.test",
        record_id=uuid7(),
        at=SystemClock().now(),
        correlation_id=str(number),
        actor=Actor(type="system", subject="ca-signer"),
    )
    topic = topics.audit_refusal_topic("ca-signer", "test")
    (sequence,) = await signer.publish_confirmed(
        [Outgoing(topic, encode(AuditBatch(records=(record,))))]
    )
    return sequence
