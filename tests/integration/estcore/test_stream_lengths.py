"""Metrics of streams and consumers, asked for with the rights of each service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from prometheus_client import Gauge

from estcore.messages import topics
from estcore.runtime import stream_lengths
from estcore.runtime.admin import AdminServer
from estcore.runtime.bus import Outgoing
from estcore.runtime.settings import AdminSettings
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


async def _scraped(port: int) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
    page = await reader.read()
    writer.close()
    return page.decode()


async def test_whoever_reads_the_metrics_gets_the_lengths_of_that_moment(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    front, signer = await world.bus("est-frontend"), await world.bus("ca-signer")
    lengths = StreamLengths(signer, topics.owned_by("ca-signer"), CONSUMERS["ca-signer"])
    monkeypatch.setattr(stream_lengths, "_FRESH_S", 0.3)
    admin = AdminServer(AdminSettings(port=0), {})
    admin.before_metrics(lengths.refresh)
    port = await admin.start()

    def waiting(page: str) -> int:
        name = f'estsuite_stream_messages{{stream="{topics.EST_REQUESTS}"}}'
        return int(float(next(x.split()[1] for x in page.splitlines() if x.startswith(name))))

    async def publish() -> None:
        await front.publish_confirmed([Outgoing("est.request.default.issuing.normal", b"x")])

    try:
        before = waiting(await _scraped(port))
        await publish()
        # A second scraper in the same moment causes no second round of questions.
        assert waiting(await _scraped(port)) == before
        await asyncio.sleep(0.4)
        assert waiting(await _scraped(port)) == before + 1
    finally:
        await admin.stop()


async def test_a_scrape_does_not_wait_for_a_server_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("estcore.runtime.admin._REFRESH_S", 0.2)
    admin = AdminServer(AdminSettings(port=0), {})
    admin.before_metrics(asyncio.Event().wait)
    port = await admin.start()
    try:
        async with asyncio.timeout(3):
            assert "estsuite_build_info" in await _scraped(port)
    finally:
        await admin.stop()
