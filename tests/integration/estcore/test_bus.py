"""The bus: rights of every service, permission violations, standing pulls across restarts."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from estcore.errors import BusUnavailable
from estcore.messages import topics
from estcore.pki.profile import Priority
from estcore.runtime.bus import Bus, Incoming, Outgoing
from estcore.runtime.consume import PullConsumer
from estcore.runtime.delivery import Delivery
from estcore.runtime.topology import declare
from estsuite_testing.platform import Platform

pytestmark = [
    pytest.mark.integration,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.logs_errors("bus permission violation"),
]

FORBIDDEN = [
    ("est-frontend", "pki.certificate.issued.a.b"),
    ("est-frontend", "est.request.other.issuing.normal"),
    ("est-frontend", "audit.issue.ca-signer"),
    ("est-frontend", "audit.refusal.est-frontend.other"),
    ("est-frontend", "pki.state.secrets.00"),
    ("renewal", "pki.certificate.issued.a.b"),
    ("renewal", "pki.state.cacerts.x"),
    ("audit", "pki.rotation.due.a.b"),
    ("audit", "pki.certificate.issued.a.b"),
    ("ca-signer", "pki.rotation.due.a.b"),
    ("ca-signer", "est.request.default.issuing.normal"),
    ("agent", "pki.rotation.due.demo.web"),
]


async def declared(platform: Platform) -> None:
    bus = await platform.provisioner()
    consumers = [*topics.signer_consumers("issuing"), *topics.RENEWAL_CONSUMERS]
    await declare(bus, topics.STREAMS, consumers, replicas=1)
    await bus.close()


@pytest.mark.parametrize(("user", "topic"), FORBIDDEN)
async def test_topics_of_others_are_refused_and_make_unready(
    platform: Platform, user: str, topic: str
) -> None:
    await declared(platform)
    bus = await Bus.connect(platform.bus(user), user, "test")
    try:
        assert bus.ready
        with pytest.raises(BusUnavailable):
            await bus.publish_confirmed([Outgoing(topic, b"x")], timeout_s=0.5)
        assert not bus.ready
        assert bus.violation is not None
        assert topic in bus.violation
    finally:
        await bus.close()


async def test_a_full_stream_is_named_at_once(platform: Platform) -> None:
    await declared(platform)
    provisioner = await platform.provisioner()
    front = await Bus.connect(platform.bus("est-frontend"), "est-frontend", "test")
    jetstream = provisioner.client.jetstream()
    config = (await jetstream.stream_info(topics.AUDIT_REFUSAL)).config
    message = Outgoing(topics.audit_refusal_topic("est-frontend", "default"), b"x")
    try:
        await jetstream.update_stream(replace(config, max_msgs=1))
        await front.publish_confirmed([message])
        async with asyncio.timeout(2):
            with pytest.raises(BusUnavailable) as refused:
                await front.publish_confirmed([message])
        assert refused.value.code == "bus.full"
    finally:
        await jetstream.update_stream(config)
        await provisioner.close()
        await front.close()


async def test_an_agent_receives_events_of_its_owner_only(platform: Platform) -> None:
    await declared(platform)
    agent = await Bus.connect(platform.bus("agent"), "agent", "test")
    renewal = await Bus.connect(platform.bus("renewal"), "renewal", "test")
    received: list[str] = []

    async def receive(message: Any) -> None:
        received.append(message.topic)

    try:
        await agent.subscribe("pki.rotation.*.demo.web", receive)
        await asyncio.sleep(0.2)
        await renewal.publish_confirmed(
            [
                Outgoing("pki.rotation.due.demo.web", b"{}"),
                Outgoing("pki.rotation.due.demo.other", b"{}"),
            ]
        )
        await asyncio.sleep(0.3)
        assert received == ["pki.rotation.due.demo.web"]
        await agent.subscribe("pki.rotation.>", receive)
        await asyncio.sleep(0.3)
        assert agent.violation is not None
    finally:
        await agent.close()
        await renewal.close()


async def collect(consumer: PullConsumer, count: int, seconds: float) -> list[Delivery]:
    found: list[Delivery] = []
    async with asyncio.timeout(seconds):
        while len(found) < count:
            await consumer.wait(0.5)
            found += consumer.take(count - len(found))
            await consumer.maintain()
    return found


async def test_a_standing_pull_survives_a_server_restart_and_loses_nothing(
    platform: Platform,
) -> None:
    await declared(platform)
    front = await Bus.connect(platform.bus("est-frontend"), "est-frontend", "test")
    signer = await Bus.connect(platform.bus("ca-signer"), "ca-signer", "test")
    consumer = PullConsumer(signer, topics.EST_REQUESTS, "signer-issuing-low", credit=8)
    try:
        await consumer.start()

        async def publish(first: int) -> None:
            await front.publish_confirmed(
                [
                    Outgoing("est.request.default.issuing.low", b"%d" % n, f"restart-{n}")
                    for n in range(first, first + 20)
                ]
            )

        await publish(0)
        first = await collect(consumer, 20, 10)
        for delivery in first:
            await delivery.ack()
        await platform.nats.stop(kill=True)
        await asyncio.sleep(0.5)
        await platform.nats.start()
        for _ in range(100):
            if front.connected and signer.connected:
                break
            await asyncio.sleep(0.1)
        await publish(20)
        # Acknowledgements of the first twenty may have died with the server: at least once.
        seen: set[int] = set()
        async with asyncio.timeout(20):
            while not set(range(20, 40)) <= seen:
                for delivery in await collect(consumer, 1, 20):
                    seen.add(int(delivery.data))
                    await delivery.ack()
        await publish(40)
        (one,) = await collect(consumer, 1, 10)
        await one.nak(0)
        async with asyncio.timeout(10):
            while True:
                (again,) = await collect(consumer, 1, 10)
                if again.data == one.data:
                    break
                await again.ack()
        assert again.attempt == one.attempt + 1
    finally:
        await front.close()
        await signer.close()


@pytest.mark.parametrize(
    ("reply", "attempt", "sequence"),
    [
        ("$JS.ACK.S.C.3.17.5.1700000000.0", 3, 17),
        ("$JS.ACK.hub.acchash.S.C.3.17.5.1700000000.0", 3, 17),
        ("$JS.ACK.hub.acchash.S.C.3.17.5.1700000000.0.tok", 3, 17),
    ],
)
async def test_both_forms_of_ack_topics_are_read(reply: str, attempt: int, sequence: int) -> None:
    class Message:
        data, subject, headers = b"", "t", None

    message: Any = Message()
    message.reply = reply
    delivery = Delivery(Bus.unconnected("x"), message)
    assert (delivery.attempt, delivery.sequence) == (attempt, sequence)


RIGHTS = {
    "est-frontend": [
        topics.request_topic("default", "issuing", Priority.NORMAL),
        topics.audit_refusal_topic("est-frontend", "default"),
    ],
    "ca-signer": [
        topics.audit_issue_topic("ca-signer"),
        topics.audit_refusal_topic("ca-signer", "test"),
        topics.certificate_topic("issued", "a", "b"),
        topics.cacerts_topic("issuing"),
    ],
    "renewal": [topics.audit_issue_topic("renewal"), topics.rotation_topic("due", "a", "b")],
    "audit": [topics.audit_issue_topic("audit")],
}


@pytest.mark.parametrize("user", RIGHTS)
async def test_rights_are_tried_without_storing_anything(platform: Platform, user: str) -> None:
    await declared(platform)
    bus = await Bus.connect(platform.bus(user), user, "test")
    migrate = await platform.provisioner()
    try:
        before = await stored(migrate)
        await bus.try_rights(RIGHTS[user])
        await bus.client.flush()
        assert bus.ready
        assert await stored(migrate) == before
        await bus.try_rights([*RIGHTS[user], "pki.forbidden.topic"])
        await bus.client.flush()
        await asyncio.sleep(0.1)
        assert not bus.ready
    finally:
        await bus.close()
        await migrate.close()


@pytest.mark.parametrize(
    ("user", "follower", "topic"),
    [
        ("ca-signer", "est-frontend", topics.cacerts_topic("issuing")),
        ("ca-signer", "est-frontend", topics.certificate_topic("pending", "a", "b")),
        ("renewal", "agent", topics.rotation_topic("due", "demo", "web")),
    ],
)
async def test_trying_rights_reaches_no_subscriber(
    platform: Platform, user: str, follower: str, topic: str
) -> None:
    """A probe is no message: a subscriber of the topic sees only what comes after it."""
    await declared(platform)
    sender = await Bus.connect(platform.bus(user), user, "test")
    receiver = await Bus.connect(platform.bus(follower), follower, "test")
    received: asyncio.Queue[Incoming] = asyncio.Queue()
    try:
        await receiver.subscribe(topic, received.put)
        await receiver.client.flush()
        await sender.try_rights([topic])
        await sender.publish_unconfirmed(topic, b"real")
        async with asyncio.timeout(5):
            message = await received.get()
        assert (message.topic, message.payload) == (topic, b"real")
        assert received.empty()
    finally:
        await sender.close()
        await receiver.close()


async def stored(bus: Bus) -> dict[str, int]:
    """How many messages each stream ever took."""
    manager = bus.client.jsm()
    found = {}
    for stream in topics.STREAMS:
        found[stream.name] = (await manager.stream_info(stream.name)).state.last_seq
    return found
