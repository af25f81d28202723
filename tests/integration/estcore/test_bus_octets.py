"""Octets that a NATS server passes on and no well-behaved client sends: receivers outlive them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from estcore.errors import BusUnavailable
from estcore.messages import topics
from estcore.runtime.bus import Bus, Incoming, Outgoing
from estcore.runtime.consume import PullConsumer
from estcore.runtime.delivery import Delivery
from estcore.runtime.topology import declare
from estsuite_testing.platform import Platform

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

# White space that the protocol separates by, and what has a meaning in a subject.
_NOT_IN_A_TOKEN = b" \t\r\n.*>"
OCTETS = [bytes([n]) for n in range(256) if n not in _NOT_IN_A_TOKEN]
REFUSALS = "audit.refusal.ca-signer.test"
QUESTIONS = "pki.ocsp.last"

Publish = Callable[..., Awaitable[None]]


@asynccontextmanager
async def parties(
    platform: Platform, sender: str, receiver: str
) -> AsyncIterator[tuple[Bus, Publish, Bus]]:
    """A service, what publishes octets as they are with its rights, and one that receives them."""
    provisioner = await platform.provisioner()
    await declare(provisioner, topics.STREAMS, topics.AUDIT_CONSUMERS, replicas=1)
    await provisioner.close()
    sending = await Bus.connect(platform.bus(sender), sender, "test")
    received_by = await Bus.connect(platform.bus(receiver), receiver, "test")

    async def publish(subject: bytes, *, reply: bytes = b"", headers: bytes | None = None) -> None:
        subjects = b" ".join(part for part in (subject, reply) if part)
        if headers is None:
            line = b"PUB %s 1\r\nx\r\n" % subjects
        else:
            line = b"HPUB %s %d %d\r\n%s\r\n" % (subjects, len(headers), len(headers), headers)
        await sending.client._send_command(line)

    try:
        yield sending, publish, received_by
        assert received_by.client.stats["reconnects"] == 0
        assert received_by.ready
        assert sending.ready
    finally:
        await sending.close()
        await received_by.close()


def headers_of_any_octets() -> list[bytes]:
    """Header blocks with every octet in name, value and status, and some that are none."""
    found = [b"\r\n", b"NATS/1.0", b"NATS/1.0\r\n", b"NATS/1.0 \r\n", b"NATS/1.0 503\r\n\r\n"]
    for octet in (bytes([n]) for n in range(256)):
        found += [
            b"NATS/1.0 %s%s%s no\r\n\r\n" % (octet, octet, octet),
            b"NATS/1.0 404 %s\r\n\r\n" % octet,
            b"NATS/1.0\r\nEst-Signature: %s\r\n\r\n" % octet,
            b"NATS/1.0\r\n%s: v1\r\n\r\n" % octet,
            octet * 12,
        ]
    return found


async def consumed(audit: Bus, last: bytes) -> list[Delivery]:
    """Return what audit's consumer of refusals delivers up to a good message, acknowledged."""
    consumer = PullConsumer(audit, topics.AUDIT_REFUSAL, topics.AUDIT_CONSUMER, credit=500)
    await consumer.start()
    found: list[Delivery] = []
    async with asyncio.timeout(20):
        while not found or found[-1].data != last:
            await consumer.maintain()
            await consumer.wait(0.2)
            for delivery in consumer.take(500):
                found.append(delivery)
                await delivery.ack()
    await consumer.pause()
    return found


async def test_no_octet_in_a_subject_stops_a_consumer(platform: Platform) -> None:
    async with parties(platform, "ca-signer", "audit") as (sending, publish, audit):
        for octet in OCTETS:
            await publish(b"audit.refusal.ca-signer.a" + octet)
        await sending.publish_confirmed([Outgoing(REFUSALS, b"good one")])
        found = await consumed(audit, b"good one")
    assert len(found) == len(OCTETS) + 1
    assert [d.sender is not None for d in found] == [False] * len(OCTETS) + [True]
    assert len({d.topic for d in found}) == len(found)


async def test_no_octet_in_headers_stops_a_consumer(platform: Platform) -> None:
    blocks = headers_of_any_octets()
    async with parties(platform, "ca-signer", "audit") as (sending, publish, audit):
        for block in blocks:
            await publish(REFUSALS.encode(), headers=block)
        await sending.publish_confirmed([Outgoing(REFUSALS, b"good two")])
        found = await consumed(audit, b"good two")
    assert len(found) > len(blocks) // 2
    assert [d.sender is not None for d in found] == [False] * (len(found) - 1) + [True]


async def test_no_octet_in_subject_reply_or_headers_ends_a_subscription(platform: Platform) -> None:
    received: list[Incoming] = []
    last = asyncio.Event()

    async def take(message: Incoming) -> None:
        received.append(message)
        if message.topic == QUESTIONS:
            last.set()

    async with parties(platform, "est-frontend", "ca-signer") as (sending, publish, signer):
        await signer.subscribe("pki.ocsp.*", take, of_anyone=True)
        await signer.client.flush()
        for octet in OCTETS:
            await publish(b"pki.ocsp.a" + octet)
            await publish(b"pki.ocsp.b", reply=b"x" + octet)
        for block in headers_of_any_octets():
            await publish(b"pki.ocsp.c", headers=block)
        await sending.publish_unconfirmed(QUESTIONS, b"good")
        async with asyncio.timeout(20):
            await last.wait()
    assert len({m.topic for m in received if m.topic.startswith("pki.ocsp.a")}) == len(OCTETS)
    assert len({m.reply for m in received if m.topic == "pki.ocsp.b"}) == len(OCTETS)
    assert [m for m in received if m.topic == "pki.ocsp.c"]


async def test_a_subject_with_white_space_reaches_no_other_subscription(
    platform: Platform,
) -> None:
    """nats-py took form feed for a separator, and the number after it for the subscription."""
    misled: list[Incoming] = []
    received: list[Incoming] = []
    last = asyncio.Event()

    async def mislead(message: Incoming) -> None:
        misled.append(message)

    async def take(message: Incoming) -> None:
        received.append(message)
        if message.topic == QUESTIONS:
            last.set()

    async with parties(platform, "est-frontend", "ca-signer") as (sending, publish, signer):
        other = await signer.subscribe(topics.FETCHED_TOPIC, mislead, of_anyone=True)
        await signer.subscribe("pki.ocsp.*", take, of_anyone=True)
        await signer.client.flush()
        sid = str(other._id).encode()
        for blank in (b"\v", b"\f", b"\x1c", b"\x1d", b"\x1e", b"\x1f", b"\x85", b"\xa0"):
            await publish(b"pki.ocsp.x" + blank + sid)
        await sending.publish_unconfirmed(QUESTIONS, b"good")
        async with asyncio.timeout(20):
            await last.wait()
    assert not misled
    assert len(received) == 9


async def test_a_message_above_the_limit_of_the_server_is_refused_here(platform: Platform) -> None:
    """The server would end the connection; with headers that is below its limit on payloads."""
    async with parties(platform, "ca-signer", "audit") as (sending, _, audit):
        limit = sending.client.max_payload
        for octets in (limit, limit - 100):
            with pytest.raises(BusUnavailable):
                await sending.publish_confirmed([Outgoing(REFUSALS, b"x" * octets)])
            with pytest.raises(BusUnavailable):
                await sending.publish_unconfirmed(REFUSALS, b"x" * octets)
            with pytest.raises(BusUnavailable):
                await sending.answer(Incoming("t", b"", "_INBOX.x"), b"x" * octets)
            with pytest.raises(BusUnavailable):
                await sending.request(REFUSALS, b"x" * octets, answered_by=(), timeout_s=1)
        await sending.publish_confirmed([Outgoing(REFUSALS, b"good three")])
        assert sending.client.stats["reconnects"] == 0
        await consumed(audit, b"good three")


async def test_a_round_trip_that_was_given_up_does_not_end_the_connection(
    platform: Platform,
) -> None:
    async with parties(platform, "ca-signer", "audit") as (sending, _, audit):
        os.kill(platform.nats.pid, signal.SIGSTOP)
        try:
            waiting = asyncio.ensure_future(audit.client.flush())
            await asyncio.sleep(0.2)
            waiting.cancel()
        finally:
            os.kill(platform.nats.pid, signal.SIGCONT)
        await sending.publish_confirmed([Outgoing(REFUSALS, b"good four")])
        assert await consumed(audit, b"good four")
