"""What a dead signer leaves, what a poisoned request does: leases, fences, stale intents."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography import x509
from pydantic import ValidationError

from ca_signer.issuance.decision import decide
from estcore import ids
from estcore.errors import BusUnavailable, ClockWrong, SerialNumberReused
from estcore.messages.audit import AuditRecord
from estcore.messages.enrollment import Principal
from estcore.messages.envelope import encode
from estcore.runtime.bus import Outgoing
from estsuite_testing.e2e_stack import make_csr
from estsuite_testing.platform import Platform
from estsuite_testing.signer_stack import (
    SignerStack,
    poison,
    signer_settings,
    signer_stack,
)

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

LEASE_OVER_S = 2.2
STALE = [("sign_before", -1), ("not_before", 3600)]
"""Too old, or decided by a clock that was an hour ahead."""


def changed(name: str, seconds: int) -> dict[str, Any]:
    return {name: dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def signer(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SignerStack]:
    folder: Path = tmp_path_factory.mktemp("signer")
    async with signer_stack(platform, folder, lease_s=2, max_attempts=3) as stack:
        yield stack


async def test_the_sweeper_signs_the_stored_tbs_of_a_dead_signer(signer: SignerStack) -> None:
    _, intent = await signer.leave_intent()
    await signer.sweeper.sweep()
    assert (await signer.row_of(intent))["state"] == "intended"  # lease is live
    await signer.expire_lease(intent)
    await signer.sweeper.sweep()
    row = await signer.row_of(intent)
    assert (row["state"], row["fence"]) == ("issued", 2)
    certificate = x509.load_der_x509_certificate(row["certificate"])
    assert certificate.tbs_certificate_bytes == intent.tbs
    assert certificate.serial_number == intent.serial_number


async def test_a_repeated_request_during_a_lease_waits(signer: SignerStack) -> None:
    message, intent = await signer.leave_intent()
    answer = await signer.ask(signer.message(message.csr))
    assert answer.outcome == "pending"
    await signer.expire_lease(intent)
    repeated = signer.message(message.csr)
    answer = await signer.ask(repeated)
    assert answer.outcome == "issued"
    row = await signer.row_of(intent)
    assert row["certificate"] == answer.certificate
    # The outcome is of the first request; this one's answer is on record as well.
    returned = await signer.audited("certificate.returned")
    assert repeated.correlation_id in {r.correlation_id for r in returned}


async def test_the_fence_discards_a_late_signature(signer: SignerStack) -> None:
    """A worker paused for a minute comes back with a signature after another resumed the intent."""
    _, intent = await signer.leave_intent()
    await signer.expire_lease(intent)
    taken = await signer.ledger.take_over(10)
    ours = [t.intent for t in taken if t.intent.issuance_id == intent.issuance_id]
    assert len(ours) == 1
    assert await signer.cycle.sign_and_store([intent]) == []  # fence 1: too late
    stored = await signer.cycle.sign_and_store(ours)
    assert [i.intent.issuance_id for i in stored] == [intent.issuance_id]


async def test_a_lease_is_kept_as_long_as_a_slow_key_store_works(
    signer: SignerStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise another signer would resume what is about to be signed, again and again."""
    keystore = signer.decision_context.issuers["issuing"].keystore
    kept = keystore.sign_many

    async def slow(tbs: Sequence[bytes]) -> list[bytes]:
        signatures: list[bytes] = await kept(tbs)
        await asyncio.sleep(2 * LEASE_OVER_S)
        return signatures

    _, intent = await signer.leave_intent()
    stop = asyncio.Event()
    keeping = asyncio.ensure_future(signer.cycle.keep_leases(stop))
    monkeypatch.setattr(keystore, "sign_many", slow)
    try:
        work = asyncio.ensure_future(signer.cycle.sign_and_store([intent]))
        for _ in range(4):
            await asyncio.sleep(LEASE_OVER_S / 2)
            taken = await signer.ledger.take_over(10)
            assert intent.issuance_id not in {t.intent.issuance_id for t in taken}
        assert [i.intent.issuance_id for i in await work] == [intent.issuance_id]
    finally:
        monkeypatch.undo()
        stop.set()
        await keeping
    assert (await signer.row_of(intent))["fence"] == 1
    # Once its lease has expired, it can be resumed again.
    _, other = await signer.leave_intent()
    await signer.expire_lease(other)
    taken = await signer.ledger.take_over(10)
    assert other.issuance_id in {t.intent.issuance_id for t in taken}


async def test_no_group_of_front_ends_may_ask_for_operators(
    platform: Platform, tmp_path: Path
) -> None:
    groups = {"default": {"labels": ["services"], "profiles": ["operator"]}}
    with pytest.raises(ValidationError, match="is for certificates of the CA itself"):
        signer_settings(platform, tmp_path, groups=groups)


@pytest.mark.parametrize(("name", "seconds"), STALE)
async def test_a_stale_intent_is_abandoned_and_its_serial_never_used(
    signer: SignerStack, name: str, seconds: int
) -> None:
    message, intent = await signer.leave_intent(**changed(name, seconds))
    await signer.expire_lease(intent)
    await signer.sweeper.sweep()
    assert (await signer.row_of(intent))["state"] == "abandoned"
    answer = await signer.ask(signer.message(message.csr))
    assert answer.outcome == "issued"
    assert answer.certificate is not None
    fresh = x509.load_der_x509_certificate(answer.certificate)
    assert fresh.serial_number != intent.serial_number


@pytest.mark.parametrize(("name", "seconds"), STALE)
async def test_a_clock_that_was_set_after_the_decision_signs_nothing(
    signer: SignerStack, name: str, seconds: int
) -> None:
    """Decided while the clock was wrong, and signed when it was right again."""
    _, intent = await signer.leave_intent(**changed(name, seconds))
    with pytest.raises(ClockWrong):
        await signer.cycle.sign_and_store([intent])
    row = await signer.row_of(intent)
    assert (row["state"], row["certificate"]) == ("intended", None)


async def test_serial_numbers_are_refused_a_second_time(signer: SignerStack) -> None:
    _, intent = await signer.leave_intent()
    candidate = decide(
        signer.message(), "est.request.default.issuing.normal", signer.decision_context, None
    )
    candidate.intent.serial_number = intent.serial_number
    with pytest.raises(SerialNumberReused):
        await signer.ledger.insert([candidate.intent])


async def test_without_an_audit_pubacks_nothing_is_signed(
    signer: SignerStack, platform: Platform
) -> None:
    """G5: no PubAck for the intent, no signature."""
    _, intent = await signer.leave_intent()
    await platform.nats.stop()
    try:
        with pytest.raises(BusUnavailable):
            await signer.cycle.sign_and_store([intent])
        row = await signer.row_of(intent)
        assert row["state"] == "intended"
        assert row["certificate"] is None
    finally:
        await platform.nats.start()
    for _ in range(100):
        if signer.bus.connected and signer.frontend.connected:
            break
        await asyncio.sleep(0.1)
    assert (await signer.ask(signer.message())).outcome == "issued"


# What takes an intent over decides again: a principal that has ended since does not get it.


async def test_an_intent_of_a_revoked_certificate_is_abandoned(signer: SignerStack) -> None:
    name = f"dev-{ids.uuid7()}"
    first_message = signer.message(make_csr(name)[1])
    first = await signer.ask(first_message)
    assert first.certificate is not None
    who = Principal(method="certificate", name=f"issuing/CN={name}", certificate=first.certificate)
    message = signer.message(make_csr(name)[1], operation="simplereenroll", principal=who)
    _, intent = await signer.leave_intent(message)
    await signer.mark_revoked(first_message)
    await signer.expire_lease(intent)
    await signer.sweeper.sweep()
    assert (await signer.row_of(intent))["state"] == "abandoned"
    record = (await signer.audited("certificate.abandoned"))[-1]
    assert (record.target.issuance_id, record.reason_code) == (
        intent.issuance_id,
        "auth.certificate_revoked",
    )


async def test_an_intent_of_a_revoked_secret_is_abandoned(signer: SignerStack) -> None:
    _, intent = await signer.leave_intent()
    await signer.secrets.revoke("load")
    try:
        await signer.expire_lease(intent)
        await signer.sweeper.sweep()
        assert (await signer.row_of(intent))["state"] == "abandoned"
    finally:
        await signer.secrets.create("load", lifetime=dt.timedelta(days=1), one_time=False)


async def test_a_repeat_with_a_revoked_secret_gets_nothing(signer: SignerStack) -> None:
    """Neither the stored certificate of the window nor an intent that was left."""
    issued = signer.message(principal=Principal(method="secret", name="other"))
    assert (await signer.ask(issued)).outcome == "issued"
    left, intent = await signer.leave_intent(
        signer.message(principal=Principal(method="secret", name="other"))
    )
    await signer.expire_lease(intent)
    await signer.secrets.revoke("other")
    try:
        for message in (issued, left):
            answer = await signer.ask(signer.message(message.csr, principal=message.principal))
            assert (answer.outcome, answer.code) == ("rejected", "secret.invalid")
        assert (await signer.row_of(intent))["certificate"] is None
        # But the very request that was granted before keeps its answer when delivered again.
        del signer.answers[issued.id]
        assert (await signer.ask(issued, fresh_id=True)).outcome == "issued"
    finally:
        await signer.secrets.create("other", lifetime=dt.timedelta(days=1), one_time=False)


@pytest.mark.parametrize(("name", "seconds"), STALE)
async def test_a_repeat_of_a_stale_intent_abandons_it_on_record(
    signer: SignerStack, name: str, seconds: int
) -> None:
    message, intent = await signer.leave_intent(**changed(name, seconds))
    await signer.expire_lease(intent)
    answer = await signer.ask(signer.message(message.csr))
    assert answer.outcome == "issued"
    assert (await signer.row_of(intent))["state"] == "abandoned"
    record = (await signer.audited("certificate.abandoned"))[-1]
    assert (record.target.issuance_id, record.reason_code) == (
        intent.issuance_id,
        "request.expired",
    )


# Poison.


@pytest.mark.logs_errors(
    "intent not finished",
    "internal check failed, nothing was signed",
)
async def test_a_poisoned_intent_does_not_stop_the_sweeper(signer: SignerStack) -> None:
    """Its TBS names another signature algorithm: the key store's signature cannot verify."""
    _, bad = await signer.leave_intent()
    _, good = await signer.leave_intent()
    await signer.value(
        "update issuance set issuer_id = issuer_id, tbs = $2 where issuance_id = $1",
        bad.issuance_id,
        b"\x30\x03\x02\x01\x00",
    )
    await signer.expire_lease(bad, good)
    await signer.sweeper.sweep()
    assert (await signer.row_of(good))["state"] == "issued"
    assert (await signer.row_of(bad))["state"] == "intended"
    await signer.make_stale(bad)
    await signer.sweeper.sweep()
    assert (await signer.row_of(bad))["state"] == "abandoned"


# Whatever ends a request answers it.


@pytest.mark.parametrize(
    ("change", "outcome", "code"),
    [
        ("sign_before = now() - interval '1 s'", "pending", None),
        ("not_before = now() + interval '1 hour'", "pending", None),
        (
            'context = (context::jsonb || \'{"principal": "secret:gone"}\')::text',
            "rejected",
            "secret.invalid",
        ),
        ("profile = 'gone'", "rejected", "profile.unknown"),
    ],
)
async def test_an_abandoned_intent_answers_its_request(
    signer: SignerStack, change: str, outcome: str, code: str | None
) -> None:
    """An expired request may be sent again; any other is refused."""
    message, intent = await signer.leave_intent()
    await signer.value(
        f"update issuance set {change}, lease_until = now() - interval '1 s' "
        "where issuance_id = $1",
        intent.issuance_id,
    )
    await signer.sweeper.sweep()
    assert (await signer.row_of(intent))["state"] == "abandoned"
    answer = await signer.answer_to(message)
    assert (answer.outcome, answer.code) == (outcome, code)
    assert (answer.retry_after_s is not None) == (outcome == "pending")


@pytest.mark.logs_errors(
    "message dead-lettered",
)
@pytest.mark.parametrize("missing", ["csr", "label", "operation", "principal", "priority"])
async def test_an_unreadable_request_that_says_who_asked_is_answered(
    signer: SignerStack, missing: str
) -> None:
    """For example one of a front end of another version."""
    message = signer.message()
    body = json.loads(encode(message))
    del body[missing]
    signer.expect_answer(message)
    await signer.frontend.publish_confirmed(
        [Outgoing("est.request.default.issuing.normal", json.dumps(body).encode())]
    )
    answer = await signer.answer_to(message)
    assert (answer.outcome, answer.code) == ("rejected", "request.given_up")


@pytest.mark.logs_errors(
    "ledger refused a request",
    "message dead-lettered",
)
async def test_a_request_the_ledger_cannot_take_ends_as_a_dead_letter_on_record(
    signer: SignerStack, platform: Platform
) -> None:
    """The worker lives on, the others are served, the poisoned one is counted and put aside."""
    poisoned = signer.message()
    await poison(platform, poisoned)
    await signer.send(poisoned)
    others = [signer.message() for _ in range(5)]
    for answer in await asyncio.gather(*(signer.ask(message) for message in others)):
        assert answer.outcome == "issued"

    async def given_up() -> list[AuditRecord]:
        records = await signer.audited("request.dead_letter")
        return [r for r in records if r.correlation_id == poisoned.correlation_id]

    async with asyncio.timeout(20):
        while not await given_up():
            await asyncio.sleep(0.05)
    (record,) = await given_up()
    assert record.reason_code == "request.too_many_attempts"
    assert record.details is not None
    assert record.details["topic"] == "est.request.default.issuing.normal"
    answer = await signer.answer_to(poisoned)
    assert (answer.outcome, answer.code) == ("rejected", "request.given_up")
    assert (await signer.ask(signer.message())).outcome == "issued"
