"""Audit records of a front end whose stream is lost before audit has read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from est_frontend.audit_trail.trail import AuditTrail
from est_frontend.settings import TrailSettings
from estcore.clock import SystemClock
from estcore.messages import topics
from estcore.messages.audit import AuditBatch
from estcore.messages.envelope import decode
from estcore.runtime.bus import Bus
from estcore.runtime.consume import PullConsumer
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
    bus = await Bus.connect(platform.bus("audit"), "audit", "test")
    consumer = PullConsumer(bus, topics.AUDIT_REFUSAL, topics.AUDIT_CONSUMER, credit=100)
    await consumer.start()
    found: list[int | None] = []
    while await consumer.wait(1):
        for delivery in consumer.take(100):
            batch = decode(AuditBatch, delivery.payload())
            found += [record.producer_seq for record in batch.records]
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
