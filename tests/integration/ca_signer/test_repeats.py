"""A fleet that lost its answers asks again at once: stored certificates, each on record once."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from estcore import ids
from estcore.messages import topics
from estcore.messages.enrollment import EnrollmentRequested
from estsuite_testing.e2e_stack import make_csr
from estsuite_testing.platform import Platform
from estsuite_testing.signer_stack import SignerStack, signer_stack

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

FLEET = 8


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def signer(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SignerStack]:
    folder: Path = tmp_path_factory.mktemp("signer")
    async with signer_stack(platform, folder, lease_s=2, max_attempts=3) as stack:
        yield stack


async def enrolled(signer: SignerStack) -> dict[bytes, bytes]:
    """Certificates of a fleet, by CSR."""
    messages = [signer.message(make_csr(f"dev-{ids.uuid7()}")[1]) for _ in range(FLEET)]
    await signer.send_joined(*messages)
    found = {}
    for message in messages:
        answer = await signer.answer_to(message)
        assert answer.certificate is not None
        found[message.csr] = answer.certificate
    return found


def repeats(signer: SignerStack, fleet: dict[bytes, bytes]) -> list[EnrollmentRequested]:
    return [signer.message(csr) for csr in fleet]


async def test_a_fleet_that_repeats_gets_what_it_has_in_few_messages(signer: SignerStack) -> None:
    fleet = await enrolled(signer)
    before = await signer.value("select count(*) from issuance")
    signer.answered_together.clear()
    again = repeats(signer, fleet)
    await signer.send_joined(*again)
    await signer.send_joined(*again)  # as a stream delivers them twice
    for message in again:
        answer = await signer.answer_to(message)
        assert (answer.outcome, answer.certificate) == ("issued", fleet[message.csr])
    assert max(signer.answered_together) == FLEET
    assert await signer.value("select count(*) from issuance") == before
    asked = {message.id for message in again}
    returned = [r for r in await signer.audited("certificate.returned") if r.causation_id in asked]
    assert Counter(r.correlation_id for r in returned) == {m.correlation_id: 1 for m in again}
    assert {r.reason_code for r in returned} == {"enrollment.repeated"}


@contextlib.asynccontextmanager
async def full_stream(platform: Platform) -> AsyncIterator[None]:
    """The stream of audit records takes none; afterwards as many as ever."""
    provisioner = await platform.provisioner()
    jetstream = provisioner.client.jetstream()
    info = await jetstream.stream_info(topics.AUDIT_ISSUE)
    try:
        await jetstream.update_stream(replace(info.config, max_msgs=info.state.messages))
        yield
    finally:
        await jetstream.update_stream(info.config)
        await provisioner.close()


async def test_a_repeat_whose_record_was_refused_is_on_record_when_it_is_answered(
    platform: Platform, signer: SignerStack
) -> None:
    fleet = await enrolled(signer)
    await asyncio.sleep(1)  # their outcomes are on record
    again = repeats(signer, fleet)
    noted = "select count(*) from request where request_id = any($1::uuid[])"
    async with full_stream(platform):
        await signer.send_joined(*again)
        async with asyncio.timeout(10):
            while await signer.value(noted, [message.id for message in again]) < FLEET:
                await asyncio.sleep(0.1)
        await asyncio.sleep(0.3)
        assert not any(signer.answers[message.id].done() for message in again)
    for message in again:
        assert (await signer.answer_to(message)).certificate == fleet[message.csr]
    returned = {r.causation_id for r in await signer.audited("certificate.returned")}
    assert {message.id for message in again} <= returned


async def test_what_was_revoked_or_is_over_its_window_is_issued_anew(signer: SignerStack) -> None:
    fleet = await enrolled(signer)
    csrs = list(fleet)
    await signer.mark_revoked(fleet[csrs[0]])
    await signer.age_certificate(fleet[csrs[1]], dt.timedelta(days=30))
    again = repeats(signer, fleet)
    await signer.send_joined(*again)
    for message in again:
        answer = await signer.answer_to(message)
        assert answer.outcome == "issued"
        assert (answer.certificate == fleet[message.csr]) == (message.csr not in csrs[:2])


async def test_a_revoked_secret_gets_nothing_back(signer: SignerStack) -> None:
    fleet = await enrolled(signer)
    await signer.rows("update secret set revoked_at = now() where secret_id = 'load'")
    try:
        again = repeats(signer, fleet)
        await signer.send_joined(*again)
        for message in again:
            answer = await signer.answer_to(message)
            assert (answer.outcome, answer.code) == ("rejected", "secret.invalid")
    finally:
        await signer.rows("update secret set revoked_at = null where secret_id = 'load'")


async def test_a_presented_certificate_that_was_revoked_gets_nothing_back(
    signer: SignerStack,
) -> None:
    fleet = await enrolled(signer)
    presented = next(iter(fleet.values()))
    principal = signer.message().principal.model_copy(
        update={"certificate": presented, "certificate_issuer": "issuing"}
    )
    first = [signer.message(make_csr(f"dev-{ids.uuid7()}")[1], principal=principal) for _ in "ab"]
    await signer.send_joined(*first)
    outcomes = {(await signer.answer_to(message)).outcome for message in first}
    await signer.mark_revoked(presented)
    again = [signer.message(message.csr, principal=principal) for message in first]
    await signer.send_joined(*again)
    for message in again:
        answer = await signer.answer_to(message)
        assert (answer.outcome, answer.code) == ("rejected", "auth.certificate_revoked"), outcomes


async def test_two_copies_of_a_request_in_one_message_make_one_certificate(
    signer: SignerStack,
) -> None:
    _, csr = make_csr(f"dev-{ids.uuid7()}")
    copies = [signer.message(csr) for _ in range(3)]
    await signer.send_joined(*copies)
    certificates = {(await signer.answer_to(message)).certificate for message in copies}
    assert len(certificates) == 1
