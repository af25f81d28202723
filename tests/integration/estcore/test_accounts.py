"""A service with its NKey, and with every reply subject it likes, writes nothing past its rights.

Each user of the suite is tried on a server of its own, without the services. ``nosy`` users have
the right to everything in the account of one service: they show what the account alone refuses.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from estcore.messages import topics
from estcore.messages.signatures import topic_pattern
from estcore.messages.topics import stream_of
from estcore.runtime.consume import PullConsumer
from estcore.runtime.nats_client import Msg
from estsuite_testing.nats_accounts import SERVICES, STATE, STORED, World, running_accounts

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

CONSUMED = {
    "ca-signer": topic_pattern("est.request.>", "pki.rotation.deprecated.>"),
    "ca-signer-upstream": topic_pattern("est.request.*.corporate.*"),
    "renewal": topic_pattern("pki.certificate.>", "pki.ca.window"),
    "audit": topic_pattern("audit.>", "pki.ca.window"),
}
"""What consumers deliver to a service, by user."""
OTHER_TARGETS = (
    "$JS.API.STREAM.PURGE.PKI_STATE",
    "$JS.API.STREAM.DELETE.EST_REQUESTS",
    "$JS.API.CONSUMER.DELETE.PKI_EVENTS.renewal",
    "$JS.ACK.AUDIT_ISSUE.audit.1.1.1.1700000000.0",
    "$JS.ACK._.hash.AUDIT_ISSUE.audit.1.1.1.1700000000.0",
    "_R_.x.y",
    "est.reply.b.x.y",
    "_INBOX_estfrontend.0123456789abcdef012345",
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with running_accounts(tmp_path_factory.mktemp("accounts")) as found:
        yield found


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def something_is_stored(world: World) -> None:
    """Every stream has messages of its own senders, and every consumer one to deliver."""
    async with world.thief("administrator") as (client, _):
        for topic in STORED:
            await client.jetstream().publish(topic, f"good {topic}".encode())
    world.before = await world.state()


def literal(topic: str) -> str:
    """A topic that a pattern of the table matches."""
    return topic.replace("*", "x").replace(">", "x.y")


def asked(topic: str, stream_topic: str) -> bytes:
    """What makes the server, or a service, write something to the reply subject."""
    if topic.startswith("$JS.API.CONSUMER.MSG.NEXT."):
        return json.dumps({"batch": 3, "no_wait": True}).encode()
    if topic.startswith("$JS.API.DIRECT.GET."):
        return json.dumps({"last_by_subj": stream_topic}).encode()
    return b"+NXT" if topic.startswith("$JS.ACK.") else b'{"forged": true}'


def own_topics(user: str) -> list[str]:
    """Everything of a user's table, and its consumers by name."""
    found = []
    for topic in SERVICES[user].publish:
        if topic == f"$JS.API.CONSUMER.MSG.NEXT.{topics.EST_REQUESTS}.*":
            found += [topic.replace("*", c.name) for c in topics.signer_consumers("issuing")]
        elif topic.startswith("$JS.ACK.*.*."):
            continue  # ends like the short form
        elif topic.startswith("$JS.ACK."):
            found.append(topic.replace(">", "x.1.1.1.1700000000.0"))
        else:
            found.append(literal(topic))
    return found


@pytest.mark.parametrize("user", SERVICES)
async def test_no_reply_subject_writes_past_the_rights_of_a_user(world: World, user: str) -> None:
    rights = topic_pattern(*SERVICES[user].publish) if SERVICES[user].publish else None
    values = {t: await world.value(t) for t in (STATE, "pki.state.cacerts.issuing")}
    async with world.thief(user) as (client, _):
        for target in (*STORED, *OTHER_TARGETS):
            for topic in own_topics(user) or ["pki.rotation.due.demo.web"]:
                stored = {"PKI_EVENTS": STORED[4], "CANARY": "canary.est-frontend.default"}
                value = stored.get(topic.rpartition(".")[2], STATE)
                await client.publish(topic, asked(topic, value), reply=target)
                await client.publish(topic, b"x", headers={"Nats-Trace-Dest": target})
            await client.flush()
    new = {
        (stream, topic)
        for stream, topic in await world.new()
        if rights is None or not rights.fullmatch(topic)
    }
    # A message that it consumed the user can have stored again, as it was, in a stream that it may
    # publish to anyway: nats-server keeps the topic of what a consumer delivers.
    allowed = {stream_of(topic) for topic in SERVICES[user].publish}
    for stream, topic in new:
        assert stream in allowed, new
        assert CONSUMED[user].fullmatch(topic), new
    for topic, before in values.items():
        if rights is None or not rights.fullmatch(topic):
            assert await world.value(topic) == before


async def test_a_reply_subject_acknowledges_nothing_of_others(world: World) -> None:
    jetstream = world.administrator.client.jetstream()
    before = await jetstream.consumer_info("AUDIT_ISSUE", "audit")
    audit = await world.bus("audit")
    consumer = PullConsumer(audit, "AUDIT_ISSUE", "audit", credit=4)
    try:
        await consumer.start()
        assert await consumer.wait(5)
        (delivery,) = consumer.take(1)
        for user in ("est-frontend", "renewal", "ca-signer"):
            async with world.thief(user) as (client, violations):
                for topic in own_topics(user):
                    missing = asked(topic, "pki.state.missing")
                    await client.publish(topic, missing, reply=delivery.reply)
                await client.flush()
                await asyncio.sleep(0.3)
                assert "reply" in violations[0]
        after = await jetstream.consumer_info("AUDIT_ISSUE", "audit")
        assert after.ack_floor == before.ack_floor
        assert after.num_ack_pending
    finally:
        await audit.close()


@pytest.mark.parametrize("user", SERVICES)
async def test_an_account_alone_gives_no_more_than_the_table(world: World, user: str) -> None:
    """Without the permissions of its user, a service still reaches its own rights only."""
    rights = topic_pattern(*SERVICES[user].publish) if SERVICES[user].publish else None
    answers = []

    async def answered(message: Msg) -> None:
        if message.subject.startswith("_INBOX.answers"):
            answers.append(message.headers or message.data)

    async with world.thief(f"nosy-{user}") as (client, violations):
        await client.subscribe("_INBOX.answers.*", cb=answered)
        await client.flush()
        for topic in (*STORED, *OTHER_TARGETS[:5]):
            if rights is None or not rights.fullmatch(topic):
                await client.publish(topic, b"+ACK")
        for topic in (
            "$JS.API.INFO",
            "$JS.API.STREAM.NAMES",
            "$JS.API.STREAM.PURGE.PKI_STATE",
            "$JS.API.CONSUMER.CREATE.PKI_STATE",
        ):
            await client.publish(topic, b"", reply="_INBOX.answers.x")
        await client.flush()
        await asyncio.sleep(0.3)
    assert await world.new() == set()
    # No responders, or JetStream is not enabled for the account.
    assert all("10039" in str(a) or "503" in str(a) for a in answers), answers
    assert not violations


async def test_an_account_receives_what_its_service_may_and_nothing_else(world: World) -> None:
    received: dict[str, set[str]] = {}

    def into(name: str) -> Callable[[Msg], Awaitable[None]]:
        async def collect(message: Msg) -> None:
            received.setdefault(name, set()).add(message.subject)

        return collect

    sent = {
        "ca-signer": ("est.reply.default.x.y", "est.reply.b.x.y", STATE),
        "renewal": ("pki.rotation.due.demo.web", "pki.rotation.due.demo.other"),
        "est-frontend": ("est.request.default.issuing.normal", "pki.ack.default"),
    }
    async with contextlib.AsyncExitStack() as stack:
        for user in ("est-frontend", "est-frontend-b", "agent", "operator", "audit"):
            client, _ = await stack.enter_async_context(world.thief(f"nosy-{user}"))
            await client.subscribe(">", cb=into(user))
            await client.flush()
            await asyncio.sleep(0.1)  # nats-py's PING may overtake the subscription
        for user, found in sent.items():
            client, _ = await stack.enter_async_context(world.thief(user))
            for topic in found:
                await client.publish(topic, b"x")
            await client.flush()
        await asyncio.sleep(0.5)
    own = set(sent["est-frontend"])
    assert received.pop("est-frontend") - own == {"est.reply.default.x.y", STATE}
    assert received == {
        "est-frontend-b": {"est.reply.b.x.y", STATE},
        "agent": {"pki.rotation.due.demo.web"},
    }


@pytest.mark.parametrize("user", SERVICES)
async def test_the_server_refuses_each_user_what_is_the_systems(world: World, user: str) -> None:
    async with world.thief(user) as (client, violations):
        for topic in (
            "$SYS.REQ.SERVER.PING",
            "$SYS.REQ.ACCOUNT.PING.CONNZ",
            "$JS.API.INFO",
            "$JS.API.STREAM.CREATE.X",
            "$JS.API.ACCOUNT.PURGE.x",
        ):
            violations.clear()
            await client.publish(topic, b"", reply="x")
            async with asyncio.timeout(5):
                while not violations:
                    await client.flush()
                    await asyncio.sleep(0.02)
