"""Consumers and reloads where every service has an account of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from estcore.messages import permissions, topics
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.consume import PullConsumer
from estcore.runtime.topology import declare
from estdev.nats import SENDING
from estsuite_testing.nats_accounts import STORED, USERS, World, running_accounts
from estsuite_testing.servers import make_nats

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with running_accounts(tmp_path_factory.mktemp("accounts")) as found:
        yield found


@pytest.mark.logs_errors("empty message, fetching singly")
async def test_an_empty_message_holds_up_no_consumer(world: World) -> None:
    """The server ends a streamed answer between accounts at a message without any octet."""
    topic = "est.request.default.issuing.high"
    front, signer = await world.bus("est-frontend"), await world.bus("ca-signer")
    consumer = PullConsumer(signer, topics.EST_REQUESTS, "signer-issuing-high", credit=64)
    try:
        await consumer.start()
        for number in range(3):
            async with world.thief("est-frontend") as (client, _):
                for payload in (b"", b"", b""):
                    await client.publish(topic, payload)
                await client.flush()
            await front.publish_confirmed(
                [Outgoing(topic, f"{number} {n}".encode()) for n in range(9)]
            )
            wanted = {f"{number} {n}".encode() for n in range(9)}
            # Once, what was under way has to wait for the ack wait of ten seconds.
            async with asyncio.timeout(15 if number == 0 else 3):
                while wanted:
                    await consumer.wait(0.2)
                    for delivery in consumer.take(64):
                        wanted.discard(delivery.data)
                        await delivery.ack()
                    await consumer.maintain()
    finally:
        await front.close()
        await signer.close()


async def test_a_reload_adds_an_account_and_ends_no_connection(tmp_path: Path) -> None:
    first = {name: USERS[name] for name in ("migrate", "ca-signer", "est-frontend")}
    server = make_nats(tmp_path, first)
    await server.start()
    world = World(server, Bus.unconnected("administrator"), {})
    try:
        seed = server.seed_file("migrate").read_text().strip()
        migrate = await Bus.connect(world.settings("migrate"), "migrate", "test", seed=seed)
        await declare(migrate, topics.STREAMS, topics.signer_consumers("issuing"), replicas=1)
        await migrate.close()
        front = await world.bus("est-frontend")
        pid = server.pid
        server.reload({**first, "est-frontend-b": permissions.frontend("b")})
        await asyncio.sleep(0.5)
        server.reload()  # nats-server activates the imports of a new account at the second one
        await asyncio.sleep(0.5)
        second = await world.bus("est-frontend-b")
        for bus, group in ((front, "default"), (second, "b")):
            topic = f"est.request.{group}.issuing.normal"
            async with asyncio.timeout(10):
                while not bus.connected:
                    await asyncio.sleep(0.05)
            await bus.publish_confirmed([Outgoing(topic, b"x")])
            assert bus.ready
            await bus.close()
        assert server.pid == pid
    finally:
        await server.stop(kill=True)


async def test_migrate_may_change_streams_and_publishes_on_no_topic_that_one_stores(
    world: World,
) -> None:
    world.before = await world.state()
    async with world.thief("migrate") as (client, violations):
        for topic in STORED:
            await client.publish(topic, b"x")
        await client.flush()
        async with asyncio.timeout(5):
            while len(violations) < len(STORED):
                await asyncio.sleep(0.02)
    assert await world.new() == set()
    assert "migrate" not in SENDING
