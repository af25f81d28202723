"""Manual approval (RFC 7030 section 4.2.3): a request waits, an operator decides, once."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ca_signer.issuance.approvals import ApprovalStore
from ca_signer.issuance.decision import decide
from ca_signer.issuance.idempotency import InProgress, IntendedIssuances, RequestResolver, Resume
from estcore.messages import topics
from estcore.messages.enrollment import EnrollmentAnswered, Principal
from estsuite_testing.e2e_stack import make_csr
from estsuite_testing.operators import TestOperator, operator, policy_with_operators
from estsuite_testing.platform import Platform
from estsuite_testing.signer_stack import SignerStack, signer_stack

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

CAREFUL = {
    "name": "careful",
    "principal": {"secret": "careful"},
    "owner": {"tenant": "test", "service": "careful"},
    "labels": ["services"],
    "profiles": ["service-mtls"],
    "names": {"common_names": ["dev-*"]},
    "approval": True,
}
SAME_NAMES = CAREFUL | {
    "name": "somebody-else",
    "principal": {"secret": "somebody-else"},
    "owner": {"tenant": "test", "service": "somebody-else"},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def signer(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SignerStack]:
    folder: Path = tmp_path_factory.mktemp("signer")
    policy = policy_with_operators(folder, CAREFUL, SAME_NAMES)
    async with signer_stack(
        platform, folder, policy_file=policy, approval_retry_after_s=3, lease_s=2
    ) as stack:
        for name in ("careful", "somebody-else"):
            await stack.secrets.create(name, lifetime=dt.timedelta(days=1), one_time=False)
        yield stack


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def boss(signer: SignerStack) -> TestOperator:
    return await operator(signer, "CN=boss")


async def ask(
    signer: SignerStack, csr: bytes, who: str = "careful", **more: Any
) -> EnrollmentAnswered:
    principal = Principal(method="secret", name=who)
    message = signer.message(csr, principal=principal, **more)
    await signer.send(message, fresh_id=True)  # every message is delivered twice
    return await signer.ask(message, fresh_id=True)


async def ticket(signer: SignerStack, boss: TestOperator, name: str) -> dict[str, Any]:
    answer = await boss.give(signer, "request-list", {"limit": 500})
    assert answer.result is not None
    listed: Any = answer.result["requests"]
    (found,) = [r for r in listed if r["subject"] == f"CN={name}"]
    return dict(found)


async def decide_on(signer: SignerStack, boss: TestOperator, name: str, verb: str) -> None:
    one = await ticket(signer, boss, name)
    answer = await boss.give(signer, f"request-{verb}", {"id": one["id"], "reason": "by phone"})
    assert answer.outcome == "done", answer


async def test_G2_a_request_waits_and_after_approval_its_repeat_is_issued(
    signer: SignerStack, boss: TestOperator
) -> None:
    """RFC 7030 4.2.3: "the client MUST wait at least the specified 'retry-after' time"."""
    _, csr = make_csr("dev-patient")
    waiting = await ask(signer, csr)
    assert (waiting.outcome, waiting.retry_after_s) == ("pending", 3)
    assert (await ask(signer, csr)).outcome == "pending"
    assert await signer.value("select count(*) from issuance where subject = 'CN=dev-patient'") == 0
    await decide_on(signer, boss, "dev-patient", "approve")
    issued = await ask(signer, csr)
    assert issued.outcome == "issued"
    assert (await ask(signer, csr)).certificate == issued.certificate
    row = (await signer.rows("select * from approval where subject = 'CN=dev-patient'"))[0]
    assert (row["state"], row["decided_by"]) == ("used", "boss")


async def test_the_list_shows_what_an_operator_must_decide(
    signer: SignerStack, boss: TestOperator
) -> None:
    _, csr = make_csr("dev-shown")
    await ask(signer, csr)
    one = await ticket(signer, boss, "dev-shown")
    expected = {
        "state": "waiting",
        "key": "ec-p256",
        "principal": "secret:careful",
        "profile": "service-mtls",
        "label": "services",
        "operation": "simpleenroll",
        "tenant": "test",
        "service": "careful",
    }
    assert expected.items() <= one.items()
    assert one["age_s"] < 60


async def test_G5_a_rejected_request_is_refused_with_the_operators_words(
    signer: SignerStack, boss: TestOperator
) -> None:
    _, csr = make_csr("dev-unwanted")
    await ask(signer, csr)
    await decide_on(signer, boss, "dev-unwanted", "reject")
    for _ in range(2):
        answer = await ask(signer, csr)
        assert (answer.outcome, answer.code) == ("rejected", "approval.rejected")
        assert "by phone" in (answer.reason or "")


async def test_G5_a_ticket_that_is_over_makes_room_for_a_new_one(
    signer: SignerStack, boss: TestOperator
) -> None:
    _, csr = make_csr("dev-late")
    await ask(signer, csr)
    old = await ticket(signer, boss, "dev-late")
    await signer.expire_approval("CN=dev-late")
    late = await boss.give(signer, "request-approve", {"id": old["id"]})
    assert late.code == "approval.expired"
    assert (await ask(signer, csr)).outcome == "pending"
    new = await ticket(signer, boss, "dev-late")
    assert new["id"] != old["id"]
    assert (await boss.give(signer, "request-approve", {"id": old["id"]})).code == "command.unknown"


async def test_an_unused_approval_expires(signer: SignerStack, boss: TestOperator) -> None:
    _, csr = make_csr("dev-forgetful")
    await ask(signer, csr)
    await decide_on(signer, boss, "dev-forgetful", "approve")
    await signer.expire_approval("CN=dev-forgetful")
    assert (await ask(signer, csr)).outcome == "pending"


async def test_G4_another_identity_with_the_same_csr_gets_nothing(
    signer: SignerStack, boss: TestOperator
) -> None:
    _, csr = make_csr("dev-copied")
    await ask(signer, csr)
    await decide_on(signer, boss, "dev-copied", "approve")
    assert (await ask(signer, csr, who="somebody-else")).outcome == "pending"
    assert (await ask(signer, csr)).outcome == "issued"


async def test_an_approval_is_good_for_one_certificate(
    signer: SignerStack, boss: TestOperator
) -> None:
    _, csr = make_csr("dev-once")
    await ask(signer, csr)
    await decide_on(signer, boss, "dev-once", "approve")
    answer = await ask(signer, csr)
    assert answer.outcome == "issued"
    assert answer.certificate is not None
    await signer.age_certificate(answer.certificate)
    assert (await ask(signer, csr)).outcome == "pending"


async def test_a_decision_is_made_once(signer: SignerStack, boss: TestOperator) -> None:
    _, csr = make_csr("dev-decided")
    await ask(signer, csr)
    one = await ticket(signer, boss, "dev-decided")
    await decide_on(signer, boss, "dev-decided", "approve")
    approver = await operator(signer, "CN=approver")
    again = await approver.give(signer, "request-reject", {"id": one["id"]})
    assert (again.code, again.reason) == (
        "approval.decided",
        "the request was approved by boss before",
    )


async def test_only_approvers_decide(signer: SignerStack) -> None:
    _, csr = make_csr("dev-guarded")
    await ask(signer, csr)
    auditor = await operator(signer, "CN=auditor")
    one = await ticket(signer, auditor, "dev-guarded")
    refused = await auditor.give(signer, "request-approve", {"id": one["id"]})
    assert refused.code == "command.role"
    revoker = await operator(signer, "CN=revoker")
    assert (await revoker.give(signer, "request-list")).code == "command.role"


async def test_two_signers_use_an_approval_once(signer: SignerStack, boss: TestOperator) -> None:
    _, csr = make_csr("dev-race")
    await ask(signer, csr)
    await decide_on(signer, boss, "dev-race", "approve")
    messages = [
        signer.message(csr, principal=Principal(method="secret", name="careful")) for _ in range(8)
    ]
    topic = topics.request_topic("default", "issuing", messages[0].priority)
    candidates = [decide(m, topic, signer.decision_context, None) for m in messages]
    others = [
        RequestResolver(signer.ledger, IntendedIssuances(signer.ledger), ApprovalStore())
        for _ in messages
    ]
    resolutions = await asyncio.gather(
        *(r.resolve(c) for r, c in zip(others, candidates, strict=True))
    )
    assert sum(isinstance(s, Resume) for s in resolutions) == 1
    assert sum(isinstance(s, InProgress) for s in resolutions) == len(messages) - 1


async def test_G8_an_approval_survives_a_signer_that_died_after_the_intent(
    signer: SignerStack, boss: TestOperator
) -> None:
    """The intent is given up as stale; what the operator said still holds."""
    _, csr = make_csr("dev-unlucky")
    await ask(signer, csr)
    await decide_on(signer, boss, "dev-unlucky", "approve")
    message = signer.message(csr, principal=Principal(method="secret", name="careful"))
    topic = topics.request_topic("default", "issuing", message.priority)
    resolution = await signer.resolver.resolve(
        decide(message, topic, signer.decision_context, None)
    )
    assert isinstance(resolution, Resume)  # and then it dies
    await signer.make_stale(resolution.intent)
    await signer.sweeper.sweep()
    assert (await ask(signer, csr)).outcome == "issued"


async def test_an_owner_has_a_number_of_requests_waiting_at_most(signer: SignerStack) -> None:
    tickets = ApprovalStore(max_waiting=1)
    signer.resolver._approvals, kept = tickets, signer.resolver._approvals
    try:
        await ask(signer, make_csr("dev-first")[1], who="somebody-else")
        answer = await ask(signer, make_csr("dev-second")[1], who="somebody-else")
    finally:
        signer.resolver._approvals = kept
    assert (answer.outcome, answer.code) == ("rejected", "approval.too_many")


async def test_G6_the_pause_grows_with_the_age_and_has_an_end() -> None:
    """G6: bounded; libest takes 48 hours at most."""
    tickets = ApprovalStore(retry_after_s=10)
    pauses = [tickets._pause(age) for age in (0, 100, 1000, 10_000, 1e9)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (10, 3600)


async def test_waiting_and_deciding_are_on_record(signer: SignerStack, boss: TestOperator) -> None:
    _, csr = make_csr("dev-noted")
    await ask(signer, csr)
    await decide_on(signer, boss, "dev-noted", "approve")
    await signer.operations.outbox.flush()
    await asyncio.sleep(0.5)
    (waiting,) = {
        r.record_id: r
        for r in await signer.audited("approval.waiting")
        if r.target.subject == "CN=dev-noted"
    }.values()
    assert waiting.actor.subject == "secret:careful"
    (approved,) = {
        r.record_id: r
        for r in await signer.audited("operator.request-approve")
        if r.target.subject == "CN=dev-noted"
    }.values()
    assert approved.actor.subject == "certificate:issuing/CN=boss"
    assert approved.target.csr_sha256 == waiting.target.csr_sha256
    assert (approved.details or {})["request_correlation_id"] == waiting.correlation_id
