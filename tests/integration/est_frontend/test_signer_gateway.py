"""Requests that wait for a signer: polls do not fill the stream, and nothing waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from est_frontend.enrollment.pending_requests import PendingRequests
from est_frontend.enrollment.signer_gateway import SignerGateway
from estcore import ids
from estcore.clock import SystemClock
from estcore.messages import topics
from estcore.messages.enrollment import EnrollmentAnswered, EnrollmentRequested, Principal
from estcore.messages.envelope import decode, encode
from estcore.pki.profile import Priority
from estcore.runtime.bus import Bus
from estcore.runtime.consume import PullConsumer
from estcore.runtime.topology import declare
from estsuite_testing.e2e_stack import make_csr
from estsuite_testing.platform import Platform

pytestmark = pytest.mark.integration

CONSUMER = topics.signer_consumer("issuing", Priority.NORMAL)


def request(csr: bytes) -> EnrollmentRequested:
    return EnrollmentRequested.model_construct(
        id=ids.uuid7(),
        source="est-frontend/f-0",
        time=SystemClock().now(),
        correlation_id="poll",
        operation="simpleenroll",
        group="default",
        instance="f-0",
        label="default",
        issuer="issuing",
        priority=Priority.NORMAL,
        principal=Principal(method="secret", name="web"),
        csr=csr,
        schema_version=1,
    )


@dataclass
class Bench:
    """A front end's gateway, and a signer that answers when it is asked to."""

    platform: Platform
    gateway: SignerGateway
    signer: Bus
    consumer: PullConsumer
    csr: bytes = field(default_factory=lambda: make_csr("dev-poll")[1])

    async def poll(self) -> EnrollmentAnswered | None:
        return await self.gateway.submit(b"enrollment", request(self.csr))

    async def queued(self) -> int:
        return (await self.platform.stored_messages())[topics.EST_REQUESTS]


@pytest.fixture
async def bench(platform: Platform) -> AsyncIterator[Bench]:
    migrating = await platform.provisioner()
    await declare(migrating, topics.owned_by("ca-signer"), (CONSUMER,), replicas=1)
    await migrating.close()
    async with platform.administrator() as administrator:
        await administrator.client.jetstream().purge_stream(topics.EST_REQUESTS)
    frontend = await Bus.connect(platform.bus("est-frontend"), "est-frontend", "f-0")
    signer = await Bus.connect(platform.bus("ca-signer"), "ca-signer", "s-0")
    gateway = SignerGateway(
        bus=frontend,
        pending=PendingRequests(SystemClock()),
        group="default",
        instance="f-0",
        answer_timeout_s=0.05,
        repeat_s=0.2,
    )
    await gateway.start()
    consumer = PullConsumer(signer, topics.EST_REQUESTS, CONSUMER.name, credit=64)
    yield Bench(platform, gateway, signer, consumer)
    await frontend.close()
    await signer.close()


async def test_polls_of_one_client_leave_few_copies_while_the_signer_is_down(bench: Bench) -> None:
    """Sixty polls in about four seconds: copies after 0.2, 0.6, 1.4, 3 seconds."""
    for _ in range(60):
        assert await bench.poll() is None
        await asyncio.sleep(0.02)
    assert 2 <= await bench.queued() <= 6


async def test_the_answer_to_any_copy_reaches_the_next_poll(bench: Bench) -> None:
    while await bench.queued() < 3:
        assert await bench.poll() is None
        await asyncio.sleep(0.1)
    await bench.consumer.start()
    await bench.consumer.wait(5)
    oldest = decode(EnrollmentRequested, bench.consumer.take(1)[0].payload())
    answer = EnrollmentAnswered(request_id=oldest.id, outcome="pending", retry_after_s=7)
    topic = topics.reply_topic("default", "f-0", oldest.id)
    await bench.signer.publish_unconfirmed(topic, encode(answer))
    async with asyncio.timeout(5):
        while (answered := await bench.poll()) is None:
            await asyncio.sleep(0.02)
    assert (answered.outcome, answered.retry_after_s) == ("pending", 7)


async def test_after_a_reconnect_the_next_poll_is_published(bench: Bench) -> None:
    """The server may have come back without its streams: what they confirmed is not there."""
    bench.gateway.repeat_s = 600
    assert await bench.poll() is None
    assert await bench.poll() is None
    assert await bench.queued() == 1
    await bench.platform.nats.stop(kill=True)
    await bench.platform.nats.start()
    async with asyncio.timeout(20):
        while not bench.gateway.bus.connected:
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.2)
    assert await bench.poll() is None
    assert await bench.queued() == 2
