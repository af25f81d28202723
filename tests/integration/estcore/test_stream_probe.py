"""Readiness of streams, against a real nats-server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from estcore.messages import topics
from estcore.runtime.bus import Bus
from estcore.runtime.consume import PullConsumer
from estcore.runtime.stream_probe import StreamProbe
from estcore.runtime.topology import declare
from estsuite_testing.platform import Platform

pytestmark = pytest.mark.integration

RIGHTS = (
    topics.audit_issue_topic("ca-signer"),
    topics.certificate_topic("issued", "any", "any"),
    topics.cacerts_topic("issuing"),
)
STREAMS = (topics.AUDIT_ISSUE, topics.PKI_EVENTS, topics.PKI_STATE, topics.CANARY)


async def declared(platform: Platform) -> None:
    bus = await platform.provisioner()
    try:
        consumers = (*topics.SIGNER_CONSUMERS, *topics.AUDIT_CONSUMERS)
        await declare(bus, topics.STREAMS, consumers, replicas=1)
    finally:
        await bus.close()


@pytest.fixture
async def signer(platform: Platform) -> AsyncIterator[Bus]:
    await declared(platform)
    bus = await Bus.connect(platform.bus("ca-signer"), "ca-signer", "s-0", rights=RIGHTS)
    yield bus
    await bus.close()
    await declared(platform)


@pytest.mark.parametrize("stream", STREAMS)
async def test_each_stream_that_is_missing_is_noticed_and_seen_when_it_is_back(
    platform: Platform, signer: Bus, stream: str
) -> None:
    probe = StreamProbe(signer, "ca-signer")
    assert not probe.ready
    await probe.probe()
    assert probe.ready
    await platform.delete_stream(stream)
    await probe.probe()
    assert not probe.ready
    await declared(platform)
    await probe.probe()
    assert probe.ready


async def test_probes_leave_one_message_and_nothing_in_any_other_stream(
    platform: Platform, signer: Bus
) -> None:
    before = await platform.stored_messages()
    probe = StreamProbe(signer, "ca-signer")
    for _ in range(5):
        await probe.probe()
    after = await platform.stored_messages()
    assert after.pop(topics.CANARY) <= before.pop(topics.CANARY) + 1
    assert after == before


async def test_a_consumer_without_a_stream_is_not_ready_and_does_not_spin(
    platform: Platform, signer: Bus
) -> None:
    """The server answers each pull with 503 at once; a pause bounds how often it is asked."""
    consumer = PullConsumer(signer, topics.PKI_EVENTS, topics.ROTATIONS_CONSUMER, credit=8)
    await consumer.start()
    assert consumer.ready
    await platform.delete_stream(topics.PKI_EVENTS)
    sent = signer.client.stats["out_msgs"]
    async with asyncio.timeout(10):
        while consumer.ready:
            await consumer.maintain()
            await asyncio.sleep(0.05)
    for _ in range(60):
        await consumer.maintain()
        await asyncio.sleep(0.05)
    assert signer.client.stats["out_msgs"] - sent < 15
    await declared(platform)
    async with asyncio.timeout(30):
        while not consumer.ready:
            await consumer.maintain()
            await asyncio.sleep(0.05)
    await consumer.pause()
