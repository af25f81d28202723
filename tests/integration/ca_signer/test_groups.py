"""Limits of a group of front ends, for any principal it reports."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
import pytest_asyncio

from estcore.messages import topics
from estcore.pki.profile import Priority
from estcore.runtime.nats_client import nats
from estsuite_testing.platform import Platform
from estsuite_testing.signer_stack import signer_stack

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
LIMITS = {"labels": ["services"], "profiles": ["service-mtls"]}
CAPPED = {"default": LIMITS | {"max_per_minute": 3}}


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def no_earlier_requests(platform: Platform) -> None:
    """What a test left waiting would use up the limit of the next."""
    async with platform.administrator() as administrator:
        with contextlib.suppress(nats.js.errors.NotFoundError):
            await administrator.client.jetstream().purge_stream(topics.EST_REQUESTS)


async def test_a_group_that_asks_too_often_waits(platform: Platform, tmp_path: Path) -> None:
    """A compromised front end gets no more than its limit."""
    async with signer_stack(platform, tmp_path, groups=CAPPED) as signer:
        asked = [asyncio.ensure_future(signer.ask(signer.message())) for _ in range(10)]
        for _ in range(120):
            if sum(one.done() for one in asked) >= 3:
                break
            await asyncio.sleep(0.1)
        await asyncio.sleep(2)
        answers = [one.result() for one in asked if one.done() and not one.exception()]
        for one in asked:
            one.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    # Another minute may have begun in between.
    assert 3 <= len(answers) <= 6
    assert {answer.outcome for answer in answers} == {"issued"}


@pytest.mark.parametrize(
    ("own", "named", "refused_at_once"),
    [(1000, 3, 10), (3, 1000, 3)],
    ids=["not the group that it names", "its own group"],
)
async def test_a_request_counts_for_the_group_of_its_topic(
    platform: Platform, tmp_path: Path, own: int, named: int, refused_at_once: int
) -> None:
    """NATS lets a group publish on its own topics only; a message may name any group."""
    groups = {"default": LIMITS | {"max_per_minute": own}, "ra": LIMITS | {"max_per_minute": named}}
    async with signer_stack(platform, tmp_path, groups=groups) as signer:
        topic = topics.request_topic("default", "issuing", Priority.NORMAL)
        count = "select count(*) from request where code = 'frontend.route'"
        before = await signer.value(count)
        for _ in range(10):
            await signer.send(signer.message(group="ra"), topic=topic)
        for _ in range(30):
            await asyncio.sleep(0.1)
            if await signer.value(count) - before >= refused_at_once:
                break
        await asyncio.sleep(0.3)
        refused = await signer.value(count) - before
        for future in signer.answers.values():
            future.cancel()
    # Another minute may have begun in between.
    assert refused_at_once <= refused <= 2 * refused_at_once
