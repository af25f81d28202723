"""Requests that travel in one message: each is answered, recorded and given up by itself."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from estcore import ids
from estcore.messages import topics
from estcore.messages.audit import AuditRecord
from estcore.messages.enrollment import EnrollmentRequested
from estcore.messages.envelope import encode
from estcore.messages.joined import join
from estcore.runtime.bus import Outgoing
from estsuite_testing.e2e_stack import make_csr
from estsuite_testing.platform import Platform
from estsuite_testing.signer_stack import SignerStack, poison, signer_stack

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

OLDER = 1
"""Schema version of a front end that reads no joined answers."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SignerStack]:
    folder: Path = tmp_path_factory.mktemp("signer")
    async with signer_stack(platform, folder, lease_s=2, max_attempts=3) as stack:
        yield stack


@pytest.fixture
def signer(stack: SignerStack) -> SignerStack:
    """The signer, whose front end has got nothing yet."""
    stack.answered_together.clear()
    stack.records.clear()
    return stack


async def certificates(signer: SignerStack, *messages: EnrollmentRequested) -> Counter[str]:
    """Certificates in the ledger for each request."""
    sql = "select request_id from issuance where request_id = any($1::uuid[]) and state = 'issued'"
    return Counter(str(r["request_id"]) for r in await signer.rows(sql, [m.id for m in messages]))


async def given_up(signer: SignerStack, message: EnrollmentRequested) -> list[AuditRecord]:
    records = await signer.audited("request.dead_letter")
    return [r for r in records if r.correlation_id == message.correlation_id]


async def test_joined_requests_are_issued_once_each_and_answered_together(
    signer: SignerStack,
) -> None:
    messages = [signer.message() for _ in range(12)]
    await signer.send_joined(*messages)
    await signer.send_joined(*messages)  # as a stream delivers them twice
    for message in messages:
        assert (await signer.answer_to(message)).outcome == "issued"
    assert max(signer.answered_together) > 1
    assert await certificates(signer, *messages) == {m.id: 1 for m in messages}
    assert not await signer.audited("certificate.returned")


async def test_an_older_front_end_gets_one_answer_a_message(signer: SignerStack) -> None:
    messages = [signer.message(schema_version=OLDER) for _ in range(6)]
    await signer.send_joined(*messages)
    for message in messages:
        assert (await signer.answer_to(message)).outcome == "issued"
    assert set(signer.answered_together) == {1}


@pytest.mark.logs_errors("message dead-lettered")
async def test_a_request_that_cannot_be_read_harms_no_other_of_its_message(
    signer: SignerStack,
) -> None:
    good = [signer.message() for _ in range(3)]
    bad = signer.message()
    lines = [encode(m) for m in good]
    broken = encode(bad).replace(b'"simpleenroll"', b'"simplerenroll"')
    for message in (*good, bad):
        signer.expect_answer(message)
    topic = topics.request_topic("default", "issuing", good[0].priority)
    payload = join([lines[0], broken, b"{", *lines[1:]])
    await signer.frontend.publish_confirmed([Outgoing(topic, payload, ids.uuid7())])
    for message in good:
        assert (await signer.answer_to(message)).outcome == "issued"
    answer = await signer.answer_to(bad)
    assert (answer.outcome, answer.code) == ("rejected", "request.given_up")
    async with asyncio.timeout(10):
        while len(await signer.audited("request.dead_letter")) < 2:
            await asyncio.sleep(0.05)
    codes = {r.reason_code for r in await signer.audited("request.dead_letter")}
    assert codes == {"message.malformed"}


@pytest.mark.logs_errors("ledger refused a request", "message dead-lettered")
async def test_a_poisoned_request_harms_no_other_of_its_message(
    signer: SignerStack, platform: Platform
) -> None:
    """It is counted and put aside; the others are issued once, and given up never."""
    before = [signer.message() for _ in range(3)]
    poisoned = signer.message()
    after = [signer.message() for _ in range(3)]
    await poison(platform, poisoned)
    await signer.send_joined(*before, poisoned, *after)
    for message in (*before, *after):
        assert (await signer.answer_to(message)).outcome == "issued"
    async with asyncio.timeout(30):
        while not await given_up(signer, poisoned):
            await asyncio.sleep(0.05)
    answer = await signer.answer_to(poisoned)
    assert (answer.outcome, answer.code) == ("rejected", "request.given_up")
    assert await certificates(signer, *before, *after) == {m.id: 1 for m in (*before, *after)}
    for message in (*before, *after):
        assert not await given_up(signer, message)
    assert not await signer.audited("certificate.returned")
    assert await signer.value("select count(*) from attempt where attempts > 1") <= 1
    # What is done is not done again each time that the message comes back.
    answered = Counter(answer.request_id for answer in signer.seen)
    assert {answered[m.id] for m in (*before, *after)} == {1}
    assert (await signer.ask(signer.message())).outcome == "issued"


async def test_a_refused_request_is_answered_beside_issued_ones(signer: SignerStack) -> None:
    good, refused = signer.message(), signer.message(make_csr("forbidden.example.org")[1])
    await signer.send_joined(refused, good)
    assert (await signer.answer_to(good)).outcome == "issued"
    assert (await signer.answer_to(refused)).outcome == "rejected"


@pytest.mark.logs_errors("message dead-lettered")
async def test_more_requests_than_a_message_may_have_are_not_taken(signer: SignerStack) -> None:
    line = b'{"id":"x"}'
    topic = topics.request_topic("default", "issuing", signer.message().priority)
    before = await signer.value("select count(*) from issuance")
    await signer.frontend.publish_confirmed([Outgoing(topic, join([line] * 65), ids.uuid7())])
    async with asyncio.timeout(10):
        while not await signer.audited("request.dead_letter"):
            await asyncio.sleep(0.05)
    assert len(await signer.audited("request.dead_letter")) == 1
    assert await signer.value("select count(*) from issuance") == before
