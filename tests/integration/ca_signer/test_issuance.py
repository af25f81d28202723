"""One enrollment, one certificate: the rules of the ledger, each with the fault behind it."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from estcore import ids
from estcore.errors import LedgerUnavailable
from estcore.messages.enrollment import Principal
from estcore.messages.envelope import decode, encode
from estcore.messages.events import (
    ReannounceAnswered,
    ReannounceRequested,
    WindowsAnswered,
    WindowsRequested,
    window_digest,
)
from estcore.pki.profile import Priority
from estsuite_testing.e2e_stack import make_csr
from estsuite_testing.platform import Platform
from estsuite_testing.signer_stack import SignerStack, signer_stack

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def signer(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SignerStack]:
    folder: Path = tmp_path_factory.mktemp("signer")
    async with signer_stack(platform, folder, lease_s=2) as stack:
        yield stack


async def test_every_request_delivered_twice_gives_one_certificate(signer: SignerStack) -> None:
    messages = [signer.message() for _ in range(20)]
    for message in messages:
        await signer.send(message)
        await signer.send(message, fresh_id=True)
    for message in messages:
        async with asyncio.timeout(15):
            await signer.answers[message.id]
    await asyncio.sleep(1)
    for message in messages:
        count = await signer.value(
            "select count(*) from issuance where request_id = $1", message.id
        )
        assert count == 1
        answers = {a.certificate for a in signer.seen if a.request_id == message.id}
        assert len(answers) == 1


async def test_E12_F11_a_repeat_with_another_request_id_gets_the_stored_certificate(
    signer: SignerStack,
) -> None:
    _, csr = make_csr("dev-repeat")
    first = await signer.ask(signer.message(csr))
    second = await signer.ask(signer.message(csr))
    assert first.outcome == second.outcome == "issued"
    assert first.certificate == second.certificate


async def test_after_the_window_the_same_key_is_a_new_generation(signer: SignerStack) -> None:
    _, csr = make_csr("dev-window")
    message = signer.message(csr)
    first = await signer.ask(message)
    await signer.age_certificate(message)
    second = await signer.ask(signer.message(csr))
    assert second.outcome == "issued"
    assert second.certificate != first.certificate


async def test_a_redelivery_after_the_window_still_gets_its_own_certificate(
    signer: SignerStack,
) -> None:
    """``request_id`` is unique for ever, whatever the window says."""
    message = signer.message()
    first = await signer.ask(message)
    await signer.age_certificate(message)
    del signer.answers[message.id]
    again = await signer.ask(message, fresh_id=True)
    assert again.certificate == first.certificate


async def test_a_revoked_certificate_is_not_returned_again(signer: SignerStack) -> None:
    _, csr = make_csr("dev-revoked")
    message = signer.message(csr)
    first = await signer.ask(message)
    await signer.mark_revoked(message)
    second = await signer.ask(signer.message(csr))
    assert second.outcome == "issued"
    assert second.certificate != first.certificate


def presented(certificate: bytes, name: str) -> Principal:
    return Principal(method="certificate", name=f"issuing/CN={name}", certificate=certificate)


async def test_reenrollment_inherits_the_owner_and_names_its_predecessor(
    signer: SignerStack,
) -> None:
    first = await signer.ask(signer.message(make_csr("dev-heir")[1]))
    assert first.certificate is not None
    message = signer.message(
        make_csr("dev-heir")[1],
        operation="simplereenroll",
        principal=presented(first.certificate, "dev-heir"),
    )
    second = await signer.ask(message)
    assert second.outcome == "issued", second
    row = (await signer.rows("select * from issuance where request_id = $1", message.id))[0]
    assert row["predecessor_sha256"] == sha256(first.certificate).digest()
    assert (row["tenant"], row["service"]) == ("test", "load")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"name": "dev-thief"}, "reenroll.subject_differs"),
        ({"label": "demo"}, "reenroll.label"),
        ({"certificate": "unknown"}, "auth.certificate_unknown"),
        ({"revoked": True}, "auth.certificate_revoked"),
    ],
)
async def test_F5_F8_reenrollment_is_refused(
    signer: SignerStack, change: dict[str, Any], code: str
) -> None:
    name = f"dev-own-{ids.uuid7()}"
    message = signer.message(make_csr(name)[1])
    first = await signer.ask(message)
    certificate = first.certificate
    assert certificate is not None
    if change.get("certificate"):
        certificate = certificate[:-1] + bytes((certificate[-1] ^ 1,))
    if change.get("revoked"):
        await signer.mark_revoked(message)
    answer = await signer.ask(
        signer.message(
            make_csr(change.get("name", name))[1],
            operation="simplereenroll",
            label=change.get("label", "services"),
            principal=presented(certificate, name),
        )
    )
    assert (answer.outcome, answer.code) == ("rejected", code)


@pytest.mark.parametrize(
    ("changes", "topic", "code"),
    [
        ({}, "est.request.default.issuing.high", "frontend.route"),
        ({"group": "other"}, None, "frontend.route"),
        ({"label": "nosuch"}, None, "frontend.label"),
        ({"priority": Priority.HIGH}, None, "frontend.priority"),
        ({"label": "strict"}, None, "frontend.authentication"),
        ({"principal": Principal(method="secret", name="unknown")}, None, "policy.no_rule"),
    ],
)
async def test_a_front_end_cannot_ask_beyond_its_rights(
    signer: SignerStack, changes: dict[str, Any], topic: str | None, code: str
) -> None:
    message = signer.message(**changes)
    where = topic or f"est.request.default.issuing.{message.priority}"
    before = await signer.value("select count(*) from issuance")
    answer = await signer.ask(message, topic=where) if message.group == "default" else None
    if answer is None:
        await signer.send(message, topic=where)
        rows = []
        for _ in range(50):
            rows = await signer.rows("select code from request where request_id = $1", message.id)
            if rows:
                break
            await asyncio.sleep(0.1)
        assert rows[0]["code"] == code
    else:
        assert (answer.outcome, answer.code) == ("rejected", code)
    assert await signer.value("select count(*) from issuance") == before


async def test_a_key_belongs_to_one_owner_for_ever(signer: SignerStack) -> None:
    _, csr = make_csr("dev-bound")
    await signer.ask(signer.message(csr))
    answer = await signer.ask(
        signer.message(csr, principal=Principal(method="secret", name="other"))
    )
    assert (answer.outcome, answer.code, answer.kind) == ("rejected", "key.bound", "Conflict")


async def test_two_owners_racing_for_one_key_get_one_certificate(signer: SignerStack) -> None:
    for _ in range(10):
        _, csr = make_csr(f"dev-race-{ids.uuid7()}")
        answers = await asyncio.gather(
            signer.ask(signer.message(csr)),
            signer.ask(signer.message(csr, principal=Principal(method="secret", name="other"))),
        )
        assert sorted(a.outcome for a in answers) == ["issued", "rejected"]


async def test_a_one_time_secret_gives_one_enrollment(signer: SignerStack) -> None:
    await signer.secrets.create("once", lifetime=dt.timedelta(days=1), one_time=True)
    who = Principal(method="secret", name="once")
    csrs = [make_csr(f"dev-once-{n}")[1] for n in range(8)]
    answers = await asyncio.gather(*(signer.ask(signer.message(c, principal=who)) for c in csrs))
    won = [n for n, a in enumerate(answers) if a.outcome == "issued"]
    assert len(won) == 1
    assert {a.code for a in answers if a.outcome == "rejected"} == {"secret.spent"}
    again = await signer.ask(signer.message(csrs[won[0]], principal=who))
    assert again.certificate == answers[won[0]].certificate


async def test_a_revoked_secret_is_refused_at_once(signer: SignerStack) -> None:
    await signer.secrets.revoke("other")
    answer = await signer.ask(signer.message(principal=Principal(method="secret", name="other")))
    assert answer.code == "secret.invalid"
    await signer.secrets.create("other", lifetime=dt.timedelta(days=1), one_time=False)
    answer = await signer.ask(signer.message(principal=Principal(method="secret", name="other")))
    assert answer.outcome == "issued"


async def test_a_refused_request_delivered_again_is_refused_with_one_record(
    signer: SignerStack,
) -> None:
    message = signer.message(make_csr("not-allowed")[1])
    first = await signer.ask(message)
    assert first.code == "policy.subject"
    del signer.answers[message.id]
    assert (await signer.ask(message, fresh_id=True)).code == "policy.subject"
    assert await signer.value("select count(*) from request where request_id = $1", message.id) == 1


@pytest.mark.logs_errors(
    "message dead-lettered",
)
async def test_an_unreadable_message_is_a_dead_letter_and_blocks_no_other(
    signer: SignerStack,
) -> None:
    from estcore.runtime.bus import Outgoing

    good = [signer.message() for _ in range(5)]
    for message in good:
        await signer.frontend.publish_confirmed(
            [Outgoing("est.request.default.issuing.normal", b'{"no":"request"}')]
        )
        await signer.send(message)
    for message in good:
        async with asyncio.timeout(15):
            assert (await signer.answers[message.id]).outcome == "issued"


async def test_unannounced_certificates_are_announced_by_the_sweeper(signer: SignerStack) -> None:
    message = signer.message()
    await signer.ask(message)
    await signer.cycle.flush_unpublished()
    await signer.cycle.flush_published_marks()
    issuance_id = await signer.value(
        "update issuance set issued_at = issued_at - interval '10 seconds' "
        "where request_id = $1 returning issuance_id",
        message.id,
    )
    waiting = "select count(*) from unannounced where issuance_id = $1"
    assert await signer.value(waiting, issuance_id) == 0
    await signer.value("insert into unannounced values ($1)", issuance_id)
    await signer.sweeper.sweep()
    assert await signer.value(waiting, issuance_id) == 0


async def test_windows_are_published_again_on_request(
    signer: SignerStack, platform: Platform
) -> None:
    """Anti-entropy: renewal asks for a window, and gets every certificate of it again."""
    from estcore.runtime.bus import Bus

    await signer.ask(signer.message())
    start = await signer.value(
        "select date_bin('5 seconds', max(issued_at), 'epoch'::timestamptz) from issuance"
    )
    renewal = await Bus.connect(platform.bus("renewal"), "renewal", "test")
    try:
        asked = ReannounceRequested(requester="renewal", windows=(start,))
        octets = await renewal.request(
            "pki.command.ca-signer.reannounce", encode(asked), answered_by=("ca-signer",)
        )
        assert decode(ReannounceAnswered, octets).announced >= 1
        closed = "select now() > $1::timestamptz + interval '7 seconds'"
        while not await signer.value(closed, start):
            await asyncio.sleep(0.2)
        wanted = WindowsRequested(
            requester="renewal", start=start, end=start + dt.timedelta(hours=1), length_s=5
        )
        octets = await renewal.request(
            "pki.command.ca-signer.windows", encode(wanted), answered_by=("ca-signer",)
        )
        first = decode(WindowsAnswered, octets).windows[0]
        ids = await signer.value(
            "select array_agg(issuance_id::text) from issuance where issued_at >= $1 "
            "and issued_at < $1 + interval '5 seconds' and state = 'issued'",
            start,
        )
        assert (first.start, first.count, first.digest) == (start, len(ids), window_digest(ids))
        assert first.end - first.start == dt.timedelta(seconds=5)
    finally:
        await renewal.close()


async def test_an_outage_of_postgres_returns_requests_and_loses_none(
    signer: SignerStack, platform: Platform
) -> None:
    await platform.postgres.stop(immediate=True)
    message = signer.message()
    await signer.send(message)
    await asyncio.sleep(1)
    with pytest.raises(LedgerUnavailable):
        await signer.ledger.unannounced(older_than_s=1, limit=1)
    await platform.postgres.start()
    async with asyncio.timeout(40):
        assert (await signer.answers[message.id]).outcome == "issued"
