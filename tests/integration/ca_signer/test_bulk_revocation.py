"""Bulk revocations: many certificates revoked by two operators, at a pace, each on record."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ca_signer.pace import allowance
from ca_signer.revocation.bulk import LIFETIME, BulkRevocationJob
from estcore import ids
from estcore.messages.commands import CommandAnswered
from estcore.messages.enrollment import Principal
from estcore.policy.internal_profiles import INTERNAL_PROFILES
from estsuite_testing.e2e_stack import make_csr
from estsuite_testing.operators import TestOperator, operator, policy_with_operators
from estsuite_testing.platform import Platform
from estsuite_testing.signer_stack import SignerStack, signer_stack

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


def rule(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "principal": {"secret": name},
        "owner": {"tenant": "test", "service": name, "team": "cardiology"},
        "labels": ["services"],
        "profiles": ["service-mtls"],
        "names": {"common_names": ["dev-*"]},
    }


OWNERS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def signer(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SignerStack]:
    folder: Path = tmp_path_factory.mktemp("signer")
    policy = policy_with_operators(folder, *map(rule, OWNERS))
    async with signer_stack(platform, folder, policy_file=policy) as stack:
        for name in OWNERS:
            await stack.secrets.create(name, lifetime=dt.timedelta(days=1), one_time=False)
        yield stack


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def boss(signer: SignerStack) -> TestOperator:
    return await operator(signer, "CN=boss")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def revoker(signer: SignerStack) -> TestOperator:
    return await operator(signer, "CN=revoker")


async def enroll(signer: SignerStack, owner: str, count: int) -> None:
    principal = Principal(method="secret", name=owner)
    messages = [
        signer.message(make_csr(f"dev-{ids.uuid7()}")[1], principal=principal) for _ in range(count)
    ]
    answers = await asyncio.gather(*map(signer.ask, messages))
    assert {a.outcome for a in answers} == {"issued"}


async def step(signer: SignerStack, times: int = 1) -> None:
    """What the job does, by two signers at once."""
    other = BulkRevocationJob(signer.database, changed=lambda: None)
    for _ in range(times):
        await asyncio.gather(signer.operations.bulk_revocations.step(), other.step())


def result_of(answer: CommandAnswered) -> dict[str, Any]:
    assert answer.result is not None, answer
    return dict(answer.result)


async def proposed(signer: SignerStack, boss: TestOperator, **selector: Any) -> dict[str, Any]:
    wanted = {"reason": "keyCompromise", "per_minute": 12_000, **selector}
    answer = result_of(await boss.give(signer, "bulk-revocation-propose", wanted))
    assert (answer["state"], answer["count"]) == ("selecting", None)
    await step(signer)
    return result_of(await boss.give(signer, "bulk-revocation-show", {"id": answer["id"]}))


async def revoked_of(signer: SignerStack, service: str) -> int:
    sql = "select count(*) from issuance where service = $1 and revoked_at is not null"
    return int(await signer.value(sql, service))


async def finish(signer: SignerStack, boss: TestOperator, proposal: str) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while True:
            await asyncio.sleep(0.05)
            await step(signer)
            found = result_of(await boss.give(signer, "bulk-revocation-show", {"id": proposal}))
            if found["state"] != "running":
                return found


@pytest.mark.parametrize("by", ["issuer", "age"])
async def test_certificates_of_the_ca_itself_are_members_only_by_their_profile(
    signer: SignerStack, boss: TestOperator, by: str
) -> None:
    """Without operators it could not be stopped, without OCSP responders not be published."""
    await enroll(signer, "ninth", 1)
    for profile in INTERNAL_PROFILES:
        await signer.value(
            "update issuance set profile = $1 where issuance_id = (select issuance_id "
            "from issuance where service = 'ninth' and profile = 'service-mtls' limit 1)",
            profile,
        )
        await enroll(signer, "ninth", 1)
    wide = {"issuer": "issuing"} if by == "issuer" else {"issued_before": "2100-01-01T00:00:00Z"}
    shown = await proposed(signer, boss, **wide)
    assert {o["profile"] for o in shown["owners"]} == {"service-mtls"}
    for profile in INTERNAL_PROFILES:
        named = await proposed(signer, boss, profile=profile, service="ninth")
        assert named["count"] >= 1
        assert {o["profile"] for o in named["owners"]} == {profile}


async def test_two_operators_revoke_what_the_selector_names_and_nothing_else(
    signer: SignerStack, boss: TestOperator, revoker: TestOperator
) -> None:
    # 1. One proposes; members are fixed and shown, nothing is revoked.
    await enroll(signer, "first", 7)
    await enroll(signer, "second", 2)
    shown = await proposed(signer, boss, service="first", issuer="issuing", team="cardiology")
    assert (shown["state"], shown["count"], shown["revoked"]) == ("proposed", 7, 0)
    assert shown["owners"] == [
        {"tenant": "test", "service": "first", "profile": "service-mtls", "count": 7, "revoked": 0}
    ]
    assert len(shown["some"]) == 7
    await enroll(signer, "first", 1)
    assert await revoked_of(signer, "first") == 0
    # 2. The same operator cannot confirm, and no operator another number.
    confirm = {"id": shown["id"], "count": 7}
    refused = await boss.give(signer, "bulk-revocation-confirm", confirm)
    assert (refused.outcome, refused.code) == ("refused", "bulk_revocation.dual")
    wrong = await revoker.give(signer, "bulk-revocation-confirm", {**confirm, "count": 8})
    assert (wrong.outcome, wrong.code) == ("refused", "bulk_revocation.count")
    # 3. Another one does; twice is once.
    assert (
        result_of(await revoker.give(signer, "bulk-revocation-confirm", confirm))["state"]
        == "running"
    )
    again = await revoker.give(signer, "bulk-revocation-confirm", confirm)
    assert result_of(again)["confirmed_by"] == "revoker"
    done = await finish(signer, boss, shown["id"])
    assert (done["state"], done["revoked"], done["skipped"]) == ("done", 7, 0)
    # 4. The one enrolled after the proposal, and other owners', stay good.
    assert await revoked_of(signer, "first") == 7
    assert await revoked_of(signer, "second") == 0
    rows = await signer.rows(
        "select revocation_reason, revoked_by, revocation_seq from issuance "
        "where service = 'first' and revoked_at is not null"
    )
    assert {tuple(r) for r in rows} == {("keyCompromise", f"bulk-revocation:{shown['id']}", 1)}
    good = "select count(*) from certificate where service = 'first' and revoked_at is null"
    async with asyncio.timeout(10):
        while await signer.value(good) != 1:
            await asyncio.sleep(0.1)
    # 5. Each is published and audited once.
    for _ in range(2):
        await signer.operations.outbox.flush()
    await asyncio.sleep(0.5)
    records = [
        r for r in await signer.audited("certificate.revoked") if r.correlation_id == shown["id"]
    ]
    assert len({r.record_id for r in records}) == 7
    details = [r.details or {} for r in records]
    assert {(d["proposed_by"], d["confirmed_by"]) for d in details} == {("boss", "revoker")}
    ends = [
        r for r in await signer.audited("bulk_revocation.done") if r.correlation_id == shown["id"]
    ]
    assert {(r.record_id, (r.details or {})["revoked"]) for r in ends} == {(ends[0].record_id, 7)}
    unannounced = (
        "select count(*) from issuance where service = 'first' and revoked_at is not null "
        "and revocation_announced_at is null"
    )
    assert await signer.value(unannounced) == 0


async def test_one_that_is_revoked_meanwhile_is_skipped(
    signer: SignerStack, boss: TestOperator, revoker: TestOperator
) -> None:
    await enroll(signer, "third", 3)
    shown = await proposed(signer, boss, service="third")
    one = shown["some"][0]["serial"]
    await boss.give(signer, "certificate-revoke", {"serial": one, "reason": "superseded"})
    await revoker.give(signer, "bulk-revocation-confirm", {"id": shown["id"], "count": 3})
    done = await finish(signer, boss, shown["id"])
    assert (done["revoked"], done["skipped"]) == (2, 1)
    reasons = await signer.rows("select revocation_reason from issuance where service = 'third'")
    assert sorted(r[0] for r in reasons) == ["keyCompromise", "keyCompromise", "superseded"]


async def test_a_bulk_revocation_stopped_on_its_way_goes_no_further(
    signer: SignerStack, boss: TestOperator, revoker: TestOperator
) -> None:
    await enroll(signer, "fourth", 5)
    shown = await proposed(signer, boss, service="fourth", per_minute=60)
    await revoker.give(signer, "bulk-revocation-confirm", {"id": shown["id"], "count": 5})
    await step(signer)
    assert await revoked_of(signer, "fourth") == 0
    async with asyncio.timeout(20):
        while await revoked_of(signer, "fourth") == 0:
            await asyncio.sleep(0.1)
            await step(signer)
    # The proposer may stop it as well.
    assert (
        result_of(await boss.give(signer, "bulk-revocation-stop", {"id": shown["id"]}))["state"]
        == "stopped"
    )
    before = await revoked_of(signer, "fourth")
    assert 0 < before < 5
    await asyncio.sleep(1.1)
    await step(signer, times=2)
    assert await revoked_of(signer, "fourth") == before
    refused = await revoker.give(signer, "bulk-revocation-confirm", {"id": shown["id"], "count": 5})
    assert refused.code == "bulk_revocation.state"


async def test_a_slow_bulk_revocation_keeps_no_other_one_back(
    signer: SignerStack, boss: TestOperator, revoker: TestOperator
) -> None:
    slow_and_fast = []
    for owner, per_minute in (("seventh", 1), ("eighth", 12_000)):
        await enroll(signer, owner, 2)
        shown = await proposed(signer, boss, service=owner, per_minute=per_minute)
        await revoker.give(signer, "bulk-revocation-confirm", {"id": shown["id"], "count": 2})
        slow_and_fast.append(shown["id"])
    done = await finish(signer, boss, slow_and_fast[1])
    assert (done["state"], await revoked_of(signer, "seventh")) == ("done", 0)
    await boss.give(signer, "bulk-revocation-stop", {"id": slow_and_fast[0]})


async def test_operators_and_responders_are_concerned_only_by_name(
    signer: SignerStack, boss: TestOperator
) -> None:
    await enroll(signer, "sixth", 1)
    everything = await proposed(signer, boss, issuer="issuing")
    assert everything["count"] > 0
    assert "operator" not in {o["profile"] for o in everything["owners"]}
    named = await proposed(signer, boss, profile="operator")
    assert {o["profile"] for o in named["owners"]} == {"operator"}
    for shown in (everything, named):
        await boss.give(signer, "bulk-revocation-stop", {"id": shown["id"]})


async def test_an_unconfirmed_proposal_expires(
    signer: SignerStack, boss: TestOperator, revoker: TestOperator
) -> None:
    await enroll(signer, "fifth", 1)
    shown = await proposed(signer, boss, service="fifth")
    await signer.rows(
        "update bulk_revocation set proposed_at = proposed_at - $2::interval where bulk_revocation_id = $1",
        shown["id"],
        LIFETIME,
    )
    late = await revoker.give(signer, "bulk-revocation-confirm", {"id": shown["id"], "count": 1})
    assert late.code == "bulk_revocation.state"
    await step(signer)
    found = result_of(await boss.give(signer, "bulk-revocation-show", {"id": shown["id"]}))
    assert found["state"] == "expired"
    assert await revoked_of(signer, "fifth") == 0


@pytest.mark.parametrize(
    ("key", "value", "count"),
    [
        ("key_algorithm", "ec-p256", 1),
        ("key_algorithm", "rsa-2048", 0),
        ("issued_after", "2020-01-01T00:00:00Z", 1),
        ("issued_before", "2020-01-01T00:00:00Z", 0),
        ("profile", "demo", 0),
        ("cluster", "nowhere", 0),
    ],
)
async def test_every_condition_selects(
    signer: SignerStack, boss: TestOperator, key: str, value: str, count: int
) -> None:
    if not await signer.value("select true from issuance where service = 'sixth'"):
        await enroll(signer, "sixth", 1)
    shown = await proposed(signer, boss, service="sixth", **{key: value})
    good = "select count(*) from issuance where service = 'sixth' and revoked_at is null"
    assert shown["count"] == (await signer.value(good) if count else 0)
    await boss.give(signer, "bulk-revocation-stop", {"id": shown["id"]})


async def test_key_and_name_select_one(signer: SignerStack, boss: TestOperator) -> None:
    if not await signer.value("select true from issuance where service = 'sixth'"):
        await enroll(signer, "sixth", 1)
    sql = (
        "select subject, spki_sha256 from issuance join certificate c using (issuance_id) "
        "where c.service = 'sixth' and c.revoked_at is null limit 1"
    )
    async with asyncio.timeout(10):
        while not (rows := await signer.rows(sql)):
            await asyncio.sleep(0.1)
    row = rows[0]
    name = row["subject"].removeprefix("CN=")
    for wanted in ({"key_sha256": row["spki_sha256"].hex()}, {"name": name.upper()}):
        shown = await proposed(signer, boss, **wanted)
        assert shown["count"] == 1
        await boss.give(signer, "bulk-revocation-stop", {"id": shown["id"]})


@pytest.mark.parametrize(
    "arguments",
    [
        {"reason": "superseded"},
        {"service": "first"},
        {"service": "first", "reason": "cACompromise"},
        {"service": "first", "reason": "superseded", "per_minute": 0},
        {"key_sha256": "00", "reason": "superseded"},
    ],
)
async def test_a_proposal_without_selector_or_reason_is_refused(
    signer: SignerStack, boss: TestOperator, arguments: dict[str, Any]
) -> None:
    answer = await boss.give(signer, "bulk-revocation-propose", arguments)
    assert (answer.outcome, answer.code) == ("refused", "command.arguments")


@pytest.mark.parametrize(
    "verb", ["bulk-revocation-propose", "bulk-revocation-confirm", "bulk-revocation-stop"]
)
async def test_only_revokers_have_a_say(signer: SignerStack, verb: str) -> None:
    auditor = await operator(signer, "CN=auditor")
    answer = await auditor.give(signer, verb, {"service": "first", "reason": "superseded"})
    assert answer.code == "command.role"
    assert (await auditor.give(signer, "bulk-revocation-list")).outcome == "done"


@pytest.mark.parametrize(
    ("seconds", "per_minute", "allowed"),
    [(0, 600, 0), (1, 600, 10), (0.05, 600, 0), (60, 1, 1), (59, 1, 0), (3600, 600, 100),
     (3600, 1, 1), (-0.1, 12_000, 0)],
)  # fmt: skip
async def test_the_pace_is_kept_and_a_pause_is_not_made_up_for(
    seconds: float, per_minute: int, allowed: int
) -> None:
    assert allowance(dt.timedelta(seconds=seconds), per_minute) == allowed
