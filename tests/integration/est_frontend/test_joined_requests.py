"""Requests on their way to the stream: a lone one at once, many in few messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from est_frontend.enrollment.joined_requests import MAX_OCTETS, JoinedRequests
from estcore import ids
from estcore.errors import BusUnavailable
from estcore.messages import topics
from estcore.messages.joined import split
from estcore.pki.profile import Priority
from estcore.runtime.bus import Bus
from estcore.runtime.topology import declare
from estsuite_testing.platform import Platform

pytestmark = pytest.mark.integration

TOPIC = topics.request_topic("default", "issuing", Priority.NORMAL)
URGENT = topics.request_topic("default", "issuing", Priority.CRITICAL)


def name() -> str:
    """A request id that no test used before: JetStream drops those it has seen."""
    return ids.uuid7()


@dataclass
class Bench:
    """A front end's side of the request stream."""

    platform: Platform
    requests: JoinedRequests
    bus: Bus

    async def stored(self) -> list[list[bytes]]:
        """The messages of the stream, each as the requests in it."""
        async with self.platform.administrator() as administrator:
            stream = administrator.client.jetstream()
            state = (await stream.stream_info(topics.EST_REQUESTS)).state
            found = [
                await stream.get_msg(topics.EST_REQUESTS, number)
                for number in range(state.first_seq, state.last_seq + 1)
            ]
        return [split(message.data or b"") for message in found]


@pytest.fixture
async def bench(platform: Platform) -> AsyncIterator[Bench]:
    migrating = await platform.provisioner()
    await declare(migrating, topics.owned_by("ca-signer"), (), replicas=1)
    await migrating.close()
    async with platform.administrator() as administrator:
        await administrator.client.jetstream().purge_stream(topics.EST_REQUESTS)
    bus = await Bus.connect(platform.bus("est-frontend"), "est-frontend", "f-0")
    yield Bench(platform, JoinedRequests(bus, timeout_s=2), bus)
    await bus.close()


async def test_a_lone_request_is_sent_in_the_same_turn_of_the_loop(bench: Bench) -> None:
    """It waits for no timer: others may come, or not."""
    sent = bench.bus.client.stats["out_msgs"]
    confirmed = bench.requests.publish(TOPIC, name(), b"{}")
    for _ in range(4):
        await asyncio.sleep(0)
    assert bench.bus.client.stats["out_msgs"] == sent + 1
    await confirmed


async def test_requests_of_a_busy_front_end_travel_together(bench: Bench) -> None:
    first = bench.requests.publish(TOPIC, name(), b'{"n":0}')
    await first  # sent alone, and not answered
    names = [name() for _ in range(40)]
    confirmed = [bench.requests.publish(TOPIC, one, b'{"n":1}') for one in names]
    await asyncio.gather(*confirmed)
    stored = await bench.stored()
    assert [len(requests) for requests in stored] == [1, 40]


async def test_requests_wait_a_few_milliseconds_at_the_most(bench: Bench) -> None:
    """With many unanswered, one more is sent although nothing joins it."""
    for _ in range(20):
        await bench.requests.publish(TOPIC, name(), b"{}")
    async with asyncio.timeout(1):
        await bench.requests.publish(TOPIC, name(), b"{}")


async def test_answers_let_what_waits_go(bench: Bench) -> None:
    names = [name() for _ in range(10)]
    await asyncio.gather(*(bench.requests.publish(TOPIC, n, b"{}") for n in names))
    sent = bench.bus.client.stats["out_msgs"]
    waiting = bench.requests.publish(TOPIC, name(), b"{}")
    for one in names:
        bench.requests.answered(one)
    for _ in range(4):
        await asyncio.sleep(0)
    assert bench.bus.client.stats["out_msgs"] == sent + 1
    await waiting


async def test_a_message_is_no_larger_than_the_stream_takes(bench: Bench) -> None:
    large = b'{"x":"%s"}' % (b"y" * 9000)
    confirmed = [bench.requests.publish(TOPIC, name(), large) for _ in range(20)]
    await asyncio.gather(*confirmed)
    stored = await bench.stored()
    assert sum(len(requests) for requests in stored) == 20
    assert all(sum(map(len, requests)) <= MAX_OCTETS for requests in stored)


async def test_topics_are_not_mixed(bench: Bench) -> None:
    confirmed = [
        bench.requests.publish(topic, name(), topic.encode())
        for _ in range(5)
        for topic in (TOPIC, URGENT)
    ]
    await asyncio.gather(*confirmed)
    stored = await bench.stored()
    assert sum(len(requests) for requests in stored) == 10
    assert all(len(set(requests)) == 1 for requests in stored)


@pytest.mark.logs_errors("bus permission violation")
async def test_every_request_of_a_message_learns_that_the_stream_refused_it(bench: Bench) -> None:
    missing = topics.request_topic("default", "unserved", Priority.NORMAL)
    confirmed = [bench.requests.publish(missing, name(), b"{}") for _ in range(5)]
    results = await asyncio.gather(*confirmed, return_exceptions=True)
    # The front end has no right to that topic: nothing confirms it.
    assert all(isinstance(r, asyncio.CancelledError) for r in results), results
    large = b"x" * (33 * 1024)
    with pytest.raises(Exception, match="maximum"):
        await bench.requests.publish(TOPIC, name(), large)


async def test_without_the_bus_nothing_is_taken(bench: Bench) -> None:
    await bench.bus.close()
    with pytest.raises(BusUnavailable):
        await bench.requests.publish(TOPIC, name(), b"{}")
