"""Metrics of streams and consumers, asked for with the rights of each service."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from prometheus_client import Gauge

from estcore.messages import topics
from estcore.runtime import stream_lengths
from estcore.runtime.bus import Outgoing
from estcore.runtime.stream_lengths import StreamLengths
from estsuite_testing.nats_accounts import World, running_accounts

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
CONSUMERS = {
    "ca-signer": [*topics.signer_consumers("issuing"), *topics.SIGNER_CONSUMERS],
    "renewal": list(topics.RENEWAL_CONSUMERS),
    "audit": list(topics.AUDIT_CONSUMERS),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with running_accounts(tmp_path_factory.mktemp("accounts")) as found:
        yield found


def _values(gauge: Gauge) -> dict[tuple[str, ...], float]:
    samples = [sample for metric in gauge.collect() for sample in metric.samples]
    return {tuple(sample.labels.values()): sample.value for sample in samples}


@pytest.mark.parametrize("service", sorted(CONSUMERS))
async def test_each_service_sees_its_streams_and_consumers(world: World, service: str) -> None:
    for gauge in (stream_lengths.MESSAGES, stream_lengths.PENDING):
        gauge.clear()
    bus = await world.bus(service)
    await StreamLengths(bus, topics.owned_by(service), CONSUMERS[service]).ask()
    streams = {name for (name,) in _values(stream_lengths.MESSAGES)}
    assert streams == {stream.name for stream in topics.owned_by(service)}
    assert set(_values(stream_lengths.PENDING)) == {
        (consumer.stream, consumer.name) for consumer in CONSUMERS[service]
    }


async def test_what_waits_is_counted(world: World) -> None:
    front, signer = await world.bus("est-frontend"), await world.bus("ca-signer")
    lengths = StreamLengths(signer, topics.owned_by("ca-signer"), CONSUMERS["ca-signer"])
    await lengths.ask()
    stream, consumer = (topics.EST_REQUESTS,), (topics.EST_REQUESTS, "signer-issuing-normal")
    before = _values(stream_lengths.MESSAGES)[stream], _values(stream_lengths.PENDING)[consumer]
    topic = "est.request.default.issuing.normal"
    await front.publish_confirmed([Outgoing(topic, b"x") for _ in range(3)])
    await lengths.ask()
    after = _values(stream_lengths.MESSAGES)[stream], _values(stream_lengths.PENDING)[consumer]
    assert [b - a for a, b in zip(before, after, strict=True)] == [3, 3]
    assert _values(stream_lengths.BYTES)[stream] > 0
    assert _values(stream_lengths.LIMIT_BYTES)[stream] == 2 << 30
    assert 0 <= _values(stream_lengths.OLDEST)[stream] < 120
