"""Limits of streams: no group of front ends fills one for the others, no message is too large."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ca_signer.publishing.publisher import EventPublisher
from estcore.clock import SystemClock
from estcore.errors import BusUnavailable, ConfigurationError
from estcore.messages import topics
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.settings import BusSettings
from estcore.runtime.topology import declare
from estdev.layout import nats_users
from estsuite_testing.platform import Platform
from estsuite_testing.servers import make_nats

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
OWN = topics.audit_refusal_topic("est-frontend", "default")
LIMITS = next(s for s in topics.STREAMS if s.name == topics.AUDIT_REFUSAL)


async def declared(platform: Platform) -> None:
    bus = await platform.provisioner()
    await declare(bus, topics.STREAMS, topics.AUDIT_CONSUMERS, replicas=1)
    await bus.close()


async def test_a_group_that_fills_its_part_of_the_refusals_leaves_the_rest(
    platform: Platform,
) -> None:
    await declared(platform)
    front = await Bus.connect(platform.bus("est-frontend"), "est-frontend", "test")
    signer = await Bus.connect(platform.bus("ca-signer"), "ca-signer", "test")
    try:
        left = LIMITS.max_per_topic
        while left:
            count = min(left, 1000)
            await front.publish_confirmed([Outgoing(OWN, b"x")] * count, timeout_s=30)
            left -= count
        with pytest.raises(BusUnavailable) as refused:
            await front.publish_confirmed([Outgoing(OWN, b"x")])
        assert refused.value.code == "bus.full"
        of_others = topics.audit_refusal_topic("ca-signer", "test")
        await signer.publish_confirmed([Outgoing(of_others, b"x")])
    finally:
        await front.close()
        await signer.close()


async def test_a_server_without_room_is_named_the_stream_and_its_size(tmp_path: Path) -> None:
    nats = make_nats(tmp_path, nats_users())
    await nats.start()
    await nats.stop()
    config = json.loads(nats.config_file.read_text())
    config["jetstream"]["max_file_store"] = 3 * 1024**3
    nats.config_file.write_text(json.dumps(config))
    nats._write_config = lambda: None  # type: ignore[method-assign]
    await nats.start()
    settings = BusSettings(url=nats.url, nkey_seed_file=nats.seed_file("migrate"))
    try:
        seed = nats.seed_file("migrate").read_text().strip()
        bus = await Bus.connect(settings, "migrate", "test", seed=seed)
        try:
            with pytest.raises(ConfigurationError) as refused:
                await declare(bus, topics.STREAMS, (), replicas=1)
        finally:
            await bus.close()
    finally:
        await nats.stop()
    assert refused.value.reason.startswith(
        "JetStream refuses stream PKI_EVENTS (2048 MiB on each of 1 servers): insufficient storage"
    )


async def test_a_message_larger_than_the_largest_batch_is_refused(platform: Platform) -> None:
    await declared(platform)
    front = await Bus.connect(platform.bus("est-frontend"), "est-frontend", "test")
    try:
        with pytest.raises(BusUnavailable):
            await front.publish_confirmed([Outgoing(OWN, b"x" * LIMITS.max_message_bytes)])
        assert front.client.stats["reconnects"] == 0
    finally:
        await front.close()


async def test_records_of_large_requests_signed_together_are_published(platform: Platform) -> None:
    """A hundred records of 30 kB are three times what NATS takes in one message."""
    await declared(platform)
    bus = await Bus.connect(platform.bus("ca-signer"), "ca-signer", "test")
    try:
        publisher = EventPublisher(bus, SystemClock(), "test")
        records = [{"record_id": str(n), "reason": "x" * 30_000} for n in range(100)]
        await publisher.mappings(records)
        assert bus.client.stats["reconnects"] == 0
    finally:
        await bus.close()
