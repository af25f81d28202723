"""The metric by which KEDA scales ca-signer: read from a real NATS as KEDA reads it, under load.

KEDA asks ``/jsz`` of the monitoring port for the account of the trigger, and takes num_pending +
num_ack_pending of its consumer. KEDA itself does not run here.
"""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from estcore.messages import topics
from estcore.messages.permissions import STREAMS_ACCOUNT
from estcore.pki.profile import Priority
from estcore.runtime.bus import Outgoing
from estdev.ports import free_port
from estsuite_testing.nats_accounts import World, running_accounts

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
ROOT = Path(__file__).parents[3]
COMPONENT = ROOT / "deploy" / "k8s" / "components" / "keda" / "scaled-objects.yaml"
COUNT = 250
Trigger = dict[str, str]


def scaled_object() -> dict[str, Any]:
    found = yaml.safe_load(COMPONENT.read_text(encoding="utf-8"))
    spec: dict[str, Any] = found["spec"]
    return spec


def triggers() -> list[Trigger]:
    return [trigger["metadata"] for trigger in scaled_object()["triggers"]]


def the_trigger(priority: str) -> Trigger:
    return next(t for t in triggers() if t["consumer"].endswith(priority))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with running_accounts(tmp_path_factory.mktemp("keda"), monitor_port=free_port()) as found:
        yield found


async def lag(world: World, trigger: Trigger) -> int:
    """Return the metric of a trigger, from this server."""
    query = f"acc={trigger['account']}&consumers=true&config=true"
    url = f"http://127.0.0.1:{world.server.monitor_port}/jsz?{query}"
    body = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read())
    (account,) = json.loads(body)["account_details"]
    assert account["name"] == trigger["account"]
    (stream,) = [s for s in account["stream_detail"] if s["name"] == trigger["stream"]]
    (consumer,) = [c for c in stream["consumer_detail"] if c["name"] == trigger["consumer"]]
    return int(consumer["num_pending"]) + int(consumer["num_ack_pending"])


async def test_every_trigger_names_a_consumer_that_is_there(world: World) -> None:
    """One that is not would count as every message that the stream ever had."""
    named = {(t["stream"], t["consumer"]) for t in triggers()}
    assert named == {(c.stream, c.name) for c in topics.signer_consumers("issuing")}
    assert {t["account"] for t in triggers()} == {STREAMS_ACCOUNT}
    assert [await lag(world, trigger) for trigger in triggers()] == [0] * len(named)


async def test_the_metric_rises_with_what_waits_and_falls_with_what_is_done(world: World) -> None:
    trigger = the_trigger("normal")
    front = await world.bus("est-frontend")
    topic = topics.request_topic("default", "issuing", Priority.NORMAL)
    await front.publish_confirmed([Outgoing(topic, b"x") for _ in range(COUNT)])
    assert await lag(world, trigger) == COUNT
    assert -(-COUNT // int(trigger["lagThreshold"])) > scaled_object()["minReplicaCount"]
    assert await lag(world, the_trigger("high")) == 0

    # What a signer has in hand counts too, until it acknowledges.
    jetstream = world.administrator.client.jetstream()
    consumer = await jetstream.pull_subscribe_bind(trigger["consumer"], trigger["stream"])
    in_hand = await consumer.fetch(100, timeout=10)
    assert await lag(world, trigger) == COUNT
    for message in in_hand:
        await message.ack_sync()
    assert await lag(world, trigger) == COUNT - len(in_hand)
    while await lag(world, trigger):
        for message in await consumer.fetch(100, timeout=10):
            await message.ack_sync()
