"""Upstream CA: submitted once, every response checked, unknown outcomes resolved by operators.

The upstream CA is a real HTTPS server that behaves as each test sets it (``other_ca``).
"""

from __future__ import annotations

import asyncio
import datetime as dt
import subprocess
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from estclient.operators.client import Operator
from estcore import ids
from estcore.clock import SystemClock
from estcore.messages.enrollment import EnrollmentAnswered, EnrollmentRequested, Principal
from estcore.runtime.bus import Bus
from estsuite_testing.e2e_stack import make_csr
from estsuite_testing.operators import TestOperator, operator
from estsuite_testing.other_ca import DAY, OtherCA, named, new_key, usage
from estsuite_testing.platform import Platform
from estsuite_testing.upstream_stack import ISSUER, UpstreamStack, upstream_stack

pytestmark = [
    pytest.mark.integration,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.logs_errors(
        "upstream outcome unknown, operator action required",
        "upstream certificate quarantined",
        "upstream revocation failed permanently, revoke manually",
        "upstream plug-in failed",
    ),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[UpstreamStack]:
    folder: Path = tmp_path_factory.mktemp("upstream")
    async with (
        OtherCA(folder / "other").running() as other,
        upstream_stack(platform, folder, other) as found,
    ):
        yield found


@pytest.fixture
def other(stack: UpstreamStack) -> OtherCA:
    """The upstream CA, behaving well, without requests so far."""
    stack.other.behaviour = None
    stack.other.seen.clear()
    stack.other.issued.clear()
    return stack.other


async def rested(stack: UpstreamStack) -> None:
    """Let the breaker forget what a test did to it."""
    stack.parts.issuers[ISSUER].succeeded()


async def until_asked_again(
    stack: UpstreamStack, message: EnrollmentRequested
) -> EnrollmentAnswered:
    """What a client does with 202: the same CSR again, until it gets something else."""
    async with asyncio.timeout(15):
        while True:
            answer = await stack.ask(stack.message(message.csr, principal=message.principal))
            if answer.outcome != "pending":
                return answer
            await asyncio.sleep(0.3)


async def until_audited(stack: UpstreamStack, action: str, message: EnrollmentRequested) -> Any:
    async with asyncio.timeout(10):
        while True:
            for record in await stack.signer.audited(action):
                if record.causation_id == message.id:
                    return record
            await asyncio.sleep(0.1)


async def test_an_upstream_ca_signs_what_was_decided_here(
    stack: UpstreamStack, other: OtherCA
) -> None:
    message = stack.message()
    answer = await stack.ask(message)
    assert answer.outcome == "issued", answer
    # The client's own request went on, under our certificate.
    assert other.seen == [message.csr]
    assert other.peers[-1] == "our-ra"
    (made,) = other.issued
    assert answer.certificate == made.public_bytes(Encoding.DER)
    (row,) = await stack.issuances(message)
    assert (row["state"], row["issuer_id"]) == ("issued", ISSUER)
    assert int.from_bytes(row["serial_number"], "big") == made.serial_number
    assert row["not_after"] == made.not_valid_after_utc
    submission = await stack.row(message.id)
    assert (submission["state"], submission["sendings"]) == ("issued", 1)
    assert submission["csr_sha256"] == sha256(message.csr).digest()


async def test_intent_and_outcome_are_on_record_under_one_issuance(
    stack: UpstreamStack, other: OtherCA
) -> None:
    message = stack.message()
    await stack.ask(message)
    records: list[Any] = []
    async with asyncio.timeout(5):
        while len(records) < 2:
            found = await stack.signer.audited("certificate.issue")
            records = [r for r in found if r.causation_id == message.id]
            await asyncio.sleep(0.05)
    assert [r.phase for r in records] == ["intent", "outcome"]
    intent, outcome = records
    assert intent.target.issuance_id == outcome.target.issuance_id
    # The serial number was unknown when it was submitted.
    assert intent.target.serial is None
    assert intent.target.csr_sha256 == sha256(message.csr).hexdigest()
    assert outcome.target.serial == ids.serial_hex(other.issued[0].serial_number)


async def test_a_repeated_request_gets_the_stored_certificate_without_a_submission(
    stack: UpstreamStack, other: OtherCA
) -> None:
    message = stack.message()
    first = await stack.ask(message)
    second = await stack.ask(stack.message(message.csr))
    assert first.certificate == second.certificate
    assert len(other.seen) == 1


async def test_every_request_delivered_twice_is_sent_once(
    stack: UpstreamStack, other: OtherCA
) -> None:
    messages = [stack.message() for _ in range(10)]
    for message in messages:
        await stack.signer.send(message)
        await stack.signer.send(message, fresh_id=True)
    for message in messages:
        async with asyncio.timeout(20):
            assert (await stack.signer.answers[message.id]).outcome == "issued"
    await asyncio.sleep(0.5)
    assert sorted(other.seen) == sorted(m.csr for m in messages)


async def test_a_renewal_is_of_its_predecessors_issuer(
    stack: UpstreamStack, other: OtherCA
) -> None:
    name = f"dev-{ids.uuid7()}"
    first = await stack.ask(stack.message(make_csr(name)[1]))
    who = Principal(method="certificate", name=f"{ISSUER}/CN={name}", certificate=first.certificate)
    message = stack.message(make_csr(name)[1], operation="simplereenroll", principal=who)
    answer = await stack.ask(message)
    assert answer.outcome == "issued", answer
    (row,) = await stack.issuances(message)
    assert row["predecessor_sha256"] == sha256(first.certificate or b"").digest()
    assert len(other.seen) == 2


async def test_a_key_of_another_owner_is_never_sent(stack: UpstreamStack, other: OtherCA) -> None:
    _, csr = make_csr("dev-bound-upstream")
    await stack.ask(stack.message(csr))
    thief = Principal(method="secret", name="other")
    answer = await stack.ask(stack.message(csr, principal=thief))
    assert (answer.outcome, answer.code) == ("rejected", "key.bound")
    assert len(other.seen) == 1


async def test_what_the_policy_refuses_is_never_sent(stack: UpstreamStack, other: OtherCA) -> None:
    answer = await stack.ask(stack.message(make_csr("not-allowed")[1]))
    assert (answer.outcome, answer.code) == ("rejected", "policy.subject")
    assert other.seen == []


async def test_an_extension_that_cannot_be_stripped_is_never_sent(
    stack: UpstreamStack, other: OtherCA
) -> None:
    builder = x509.CertificateSigningRequestBuilder(named(f"dev-{ids.uuid7()}"))
    builder = builder.add_extension(WINDOWS_SID, critical=False)
    csr = builder.sign(new_key(), SHA256()).public_bytes(Encoding.DER)
    answer = await stack.ask(stack.message(csr))
    assert (answer.outcome, answer.code) == ("rejected", "upstream.extensions")
    assert other.seen == []


# Every response is checked.

WINDOWS_SID = x509.UnrecognizedExtension(
    x509.ObjectIdentifier("1.3.6.1.4.1.311.25.2"), bytes.fromhex("3000")
)
POLICIES = x509.CertificatePolicies(
    [x509.PolicyInformation(x509.ObjectIdentifier("1.3.6.1.4.1.99999.9.9"), None)]
)


def wrong(name: str, other: OtherCA) -> dict[str, Any]:
    """The ways an upstream CA may answer wrongly."""
    server = ExtendedKeyUsageOID.SERVER_AUTH
    changes: dict[str, dict[str, Any]] = {
        "key": {"key": new_key().public_key()},
        "subject": {"subject": named("dev-somebody-else")},
        "san": {"san": [x509.DNSName("extra.test")]},
        "ca": {"ca": True},
        "lifetime": {"lifetime": 31 * DAY},
        "not_before": {"backdated": DAY, "lifetime": 2 * DAY},
        "key_usage": {"key_usage": usage(digital_signature=True, key_cert_sign=True)},
        "extended_key_usage": {"purposes": (server, ExtendedKeyUsageOID.CODE_SIGNING)},
        "extended_key_usage_missing": {"purposes": None},
        "critical": {"critical": True},
        "extension": {"further": (WINDOWS_SID,)},
        "policies": {"further": (POLICIES,)},
        "issuer": {"signer": (other.root, other.root_key)},
    }
    return changes[name]


@pytest.mark.parametrize(
    "case",
    [
        "key",
        "subject",
        "san",
        "ca",
        "lifetime",
        "not_before",
        "key_usage",
        "extended_key_usage",
        "extended_key_usage_missing",
        "critical",
        "extension",
        "policies",
        "issuer",
    ],
)
async def test_a_wrong_certificate_is_quarantined_and_no_client_gets_it(
    stack: UpstreamStack, other: OtherCA, case: str
) -> None:
    other.behaviour = other.doing(**wrong(case, other))
    message = stack.message()
    answer = await stack.ask(message)
    await rested(stack)
    assert (answer.outcome, answer.code) == ("rejected", "upstream.wrong_certificate")
    assert answer.certificate is None
    assert await stack.issuances(message) == []
    row = await stack.row(message.id)
    assert row["state"] == "quarantined"
    (kept,) = await stack.signer.rows(
        "select * from quarantine where issuance_id = $1", row["issuance_id"]
    )
    check = case.removesuffix("_missing")
    assert kept["check_failed"] == check
    assert kept["certificate"] == other.issued[0].public_bytes(Encoding.DER)
    record = await until_audited(stack, "submission.quarantined", message)
    assert (record.severity, record.details["check"]) == ("critical", check)
    # The upstream CA is to revoke it, if it is the one that made it.
    due = await stack.signer.rows(
        "select * from upstream_revocation where issuance_id = $1", row["issuance_id"]
    )
    assert len(due) == (0 if case == "issuer" else 1)
    # Delivered again, the same answer; and nothing is asked again.
    del stack.signer.answers[message.id]
    assert (await stack.ask(message, fresh_id=True)).code == "upstream.wrong_certificate"
    assert len(other.seen) == 1


async def test_a_narrower_certificate_is_good(stack: UpstreamStack, other: OtherCA) -> None:
    """Fewer purposes and a shorter life than were allowed."""
    other.behaviour = other.doing(lifetime=dt.timedelta(hours=1))
    assert (await stack.ask(stack.message())).outcome == "issued"


async def test_a_serial_number_used_twice_is_set_aside_and_not_revoked(
    stack: UpstreamStack, other: OtherCA
) -> None:
    """Revoking it by its number would revoke the good one."""
    await stack.ask(stack.message())
    other.behaviour = other.doing(serial_number=other.issued[0].serial_number)
    message = stack.message()
    assert (await stack.ask(message)).code == "upstream.wrong_certificate"
    await rested(stack)
    row = await stack.row(message.id)
    sql = "select count(*) from upstream_revocation where issuance_id = $1"
    assert await stack.signer.value(sql, row["issuance_id"]) == 0


async def test_an_old_answer_to_the_same_request_is_neither_new_nor_wrong(
    stack: UpstreamStack, other: OtherCA
) -> None:
    """The upstream CA repeats its certificate after our window: it is in use, so it stays good."""
    message = stack.message()
    first = await stack.ask(message)
    made = other.issued[0]

    async def again(_: web.Request, __: bytes) -> web.StreamResponse:
        from estsuite_testing.other_ca import certs_only

        return certs_only(made)

    other.behaviour = again
    await stack.signer.age_certificate(message, dt.timedelta(days=2))
    answer = await stack.ask(stack.message(message.csr))
    assert (answer.outcome, answer.code) == ("rejected", "upstream.repeated")
    sql = "select count(*) from upstream_revocation where certificate_sha256 = $1"
    assert await stack.signer.value(sql, sha256(first.certificate or b"").digest()) == 0


# No, later, not yet.


async def test_a_refusal_is_the_clients_and_final(stack: UpstreamStack, other: OtherCA) -> None:
    other.behaviour = other.answering(400, "this name is not for you")
    message = stack.message()
    answer = await stack.ask(message)
    assert (answer.outcome, answer.code) == ("rejected", "upstream.refused")
    assert "this name is not for you" in (answer.reason or "")
    assert (await stack.row(message.id))["state"] == "refused"
    record = await until_audited(stack, "certificate.issue", message)
    denied = [
        r
        for r in await stack.signer.audited("certificate.issue")
        if r.causation_id == message.id and r.phase == "denied"
    ]
    assert record is not None
    assert [r.reason_code for r in denied] == ["upstream.refused"]
    # A new request of the same client is a new question.
    other.behaviour = None
    assert (await stack.ask(stack.message(message.csr))).outcome == "issued"


async def test_a_refusal_gives_the_one_time_secret_back(
    stack: UpstreamStack, other: OtherCA
) -> None:
    await stack.signer.secrets.create("once", lifetime=DAY, one_time=True)
    who = Principal(method="secret", name="once")
    other.behaviour = other.answering(403)
    assert (await stack.ask(stack.message(principal=who))).code == "upstream.refused"
    other.behaviour = None
    assert (await stack.ask(stack.message(principal=who))).outcome == "issued"
    assert (await stack.ask(stack.message(principal=who))).code == "secret.spent"


@pytest.mark.parametrize("status", [503, 429, 401, 404])
async def test_what_was_not_done_is_asked_again_without_anybody(
    stack: UpstreamStack, other: OtherCA, status: int
) -> None:
    other.behaviour = other.answering(status)
    message = stack.message()
    await stack.signer.send(message)
    async with asyncio.timeout(10):
        while not other.seen:
            await asyncio.sleep(0.05)
    other.behaviour = None
    async with asyncio.timeout(15):
        assert (await stack.signer.answers[message.id]).outcome == "issued"
    await rested(stack)
    assert len(other.issued) == 1


async def test_202_is_passed_on_and_the_same_request_asks_again(
    stack: UpstreamStack, other: OtherCA
) -> None:
    other.behaviour = other.answering(202, retry_after="1")
    message = stack.message()
    answer = await stack.ask(message)
    assert (answer.outcome, answer.retry_after_s) == ("pending", 1)
    assert (await stack.row(message.id))["state"] == "pending"
    # Sooner than Retry-After: nothing is sent.
    assert (await stack.ask(stack.message(message.csr))).outcome == "pending"
    assert len(other.seen) == 1
    other.behaviour = None
    answer = await until_asked_again(stack, message)
    assert answer.outcome == "issued"
    assert other.seen == [message.csr] * 2
    assert len(await stack.issuances(message)) == 1


async def test_a_generated_key_does_not_wait_for_an_upstream_ca(
    stack: UpstreamStack, other: OtherCA
) -> None:
    other.behaviour = other.answering(202, Retry_After="60")
    answer = await stack.ask(stack.message(operation="serverkeygen"))
    assert (answer.outcome, answer.code) == ("rejected", "upstream.pending_keygen")


async def test_a_generated_key_asked_for_again_revokes_the_undelivered_certificate_there(
    stack: UpstreamStack, other: OtherCA
) -> None:
    name = f"dev-{ids.uuid7()}"
    first = stack.message(make_csr(name)[1], operation="serverkeygen")
    assert (await stack.ask(first)).outcome == "issued"
    second = stack.message(make_csr(name)[1], operation="serverkeygen")
    assert (await stack.ask(second)).outcome == "issued"
    (row,) = await stack.issuances(first)
    assert row["revocation_reason"] == "superseded"
    async with asyncio.timeout(5):
        while not await stack.signer.value(
            "select true from upstream_revocation where certificate_sha256 = $1",
            row["certificate_sha256"],
        ):
            await asyncio.sleep(0.1)


# The outcome is unknown: never a second submission.


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def approver(stack: UpstreamStack) -> TestOperator:
    return await operator(stack.signer, "CN=approver")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def auditor(stack: UpstreamStack) -> TestOperator:
    return await operator(stack.signer, "CN=auditor")


async def give(stack: UpstreamStack, who: TestOperator, verb: str, **arguments: Any) -> Any:
    return await stack.parts.executor.execute(verb, who.sign(who.command(verb, arguments)))


async def lost_answer(stack: UpstreamStack, other: OtherCA) -> EnrollmentRequested:
    """A request whose answer got lost after the upstream CA had issued."""
    other.behaviour = other.silent
    message = stack.message()
    answer = await stack.ask(message)
    await rested(stack)
    assert answer.outcome == "pending"
    other.behaviour = None
    return message


@pytest.mark.parametrize("how", ["lost", "slow", 500, 502, "nonsense"])
async def test_an_unknown_outcome_is_never_sent_again_and_waits_for_an_operator(
    stack: UpstreamStack, other: OtherCA, how: str | int
) -> None:
    async def slow(request: web.Request, octets: bytes) -> web.StreamResponse:
        await asyncio.sleep(2.5)
        return await other.issue(request, octets)

    async def nonsense(_: web.Request, __: bytes) -> web.StreamResponse:
        return web.Response(body=b"bm90IGEgY2VydGlmaWNhdGU=", content_type="application/pkcs7-mime")

    behaviours = {"lost": other.silent, "slow": slow, "nonsense": nonsense}
    codes = {"lost": "upstream.lost", "slow": "upstream.timeout", "nonsense": "upstream.unreadable"}
    other.behaviour = behaviours[how] if isinstance(how, str) else other.answering(how)
    message = stack.message()
    answer = await stack.ask(message)
    await rested(stack)
    assert answer.outcome == "pending"
    row = await stack.row(message.id)
    code = codes[how] if isinstance(how, str) else "upstream.broken"
    assert (row["state"], row["code"]) == ("unknown", code)
    other.behaviour = None
    for _ in range(2):
        assert (await stack.ask(stack.message(message.csr))).outcome == "pending"
        await asyncio.sleep(0.5)
    assert len(other.seen) == 1
    record = await until_audited(stack, "submission.unknown", message)
    assert (record.outcome, record.severity, record.reason_code) == ("unknown", "error", code)


async def test_an_operator_sees_and_adopts_what_was_issued(
    stack: UpstreamStack, other: OtherCA, approver: TestOperator, auditor: TestOperator
) -> None:
    message = await lost_answer(stack, other)
    submission = str((await stack.row(message.id))["issuance_id"])
    listed = await give(stack, auditor, "submission-list")
    (mine,) = [s for s in listed.result["submissions"] if s["id"] == submission]
    assert mine["csr_sha256"] == sha256(message.csr).hexdigest()
    made = other.issued[0].public_bytes(Encoding.DER)
    adopted = await give(
        stack, approver, "submission-adopt", id=submission, certificate=made.hex(), reason="seen"
    )
    assert adopted.outcome == "done", adopted
    # The client gets it, however late it comes back.
    await stack.signer.age_certificate(message, dt.timedelta(days=2))
    answer = await until_asked_again(stack, message)
    assert (answer.outcome, answer.certificate) == ("issued", made)
    assert len(other.seen) == 1


async def test_a_certificate_to_adopt_is_linted_like_an_answer(
    stack: UpstreamStack, other: OtherCA, approver: TestOperator
) -> None:
    message = await lost_answer(stack, other)
    submission = str((await stack.row(message.id))["issuance_id"])
    csr = x509.load_der_x509_csr(message.csr)
    foreign = other.sign(csr, subject=named("dev-somebody-else")).public_bytes(Encoding.DER)
    answer = await give(
        stack, approver, "submission-adopt", id=submission, certificate=foreign.hex()
    )
    assert (answer.outcome, answer.code) == ("refused", "upstream.wrong_certificate")
    assert (await stack.row(message.id))["state"] == "unknown"


async def test_an_operator_retries_and_it_is_sent_once_more(
    stack: UpstreamStack, other: OtherCA, approver: TestOperator
) -> None:
    message = await lost_answer(stack, other)
    submission = str((await stack.row(message.id))["issuance_id"])
    assert (await give(stack, approver, "submission-retry", id=submission)).outcome == "done"
    answer = await until_asked_again(stack, message)
    assert answer.outcome == "issued"
    assert other.seen == [message.csr] * 2
    again = await give(stack, approver, "submission-retry", id=submission)
    assert (again.outcome, again.code) == ("refused", "submission.resolved")


async def test_what_an_operator_abandons_makes_room_for_a_new_request(
    stack: UpstreamStack, other: OtherCA, approver: TestOperator
) -> None:
    message = await lost_answer(stack, other)
    submission = str((await stack.row(message.id))["issuance_id"])
    done = await give(stack, approver, "submission-abandon", id=submission, reason="not needed")
    assert done.outcome == "done"
    row = await stack.row(message.id)
    assert (row["state"], row["decided_by"]) == ("abandoned", "approver")
    assert (await stack.ask(stack.message(message.csr))).outcome == "issued"


async def test_commands_about_submissions_go_to_the_process_that_can(
    stack: UpstreamStack, other: OtherCA, approver: TestOperator, platform: Platform
) -> None:
    """Over the bus, as ``estctl submissions`` sends them: the rights on it are enough."""
    message = await lost_answer(stack, other)
    submission = str((await stack.row(message.id))["issuance_id"])
    bus = await Bus.connect(platform.bus("operator"), "operator", "test")
    try:
        sender = Operator(bus, approver.certificate, approver.key, SystemClock(), timeout_s=6)
        listed = await sender.send("ca-signer", "submission-list", {"issuer": ISSUER})
        assert submission in [one["id"] for one in listed["submissions"]]
        result = await sender.send("ca-signer", "submission-abandon", {"id": submission})
        assert result["state"] == "abandoned"
    finally:
        await bus.close()


async def test_a_plug_ins_mistake_counts_as_sent(stack: UpstreamStack, other: OtherCA) -> None:
    """How far it came is unknown, so it is not sent again."""
    issuer = stack.parts.issuers[ISSUER]
    honest = issuer.plugin

    class Broken:
        repeatable_s, can_revoke, files = 0.0, True, ()

        async def submit(self, wanted: Any) -> Any:
            raise RuntimeError("a bug")

        async def revoke(self, certificate: bytes, reason: str) -> None:
            raise RuntimeError("a bug")

    issuer.plugin = Broken()  # type: ignore[assignment]
    message = stack.message()
    try:
        answer = await stack.ask(message)
    finally:
        issuer.plugin = honest
        await rested(stack)
    assert answer.outcome == "pending"
    row = await stack.row(message.id)
    assert (row["state"], row["code"]) == ("unknown", "upstream.plugin_failed")


async def test_only_approvers_resolve_submissions(
    stack: UpstreamStack, other: OtherCA, auditor: TestOperator
) -> None:
    message = await lost_answer(stack, other)
    submission = str((await stack.row(message.id))["issuance_id"])
    answer = await give(stack, auditor, "submission-retry", id=submission)
    assert (answer.outcome, answer.code) == ("refused", "command.role")


async def test_a_late_answer_resolves_an_unknown_outcome(
    stack: UpstreamStack, other: OtherCA
) -> None:
    """Its process was slow, not dead; no other has sent it, so its certificate is the one."""
    gate, entered = asyncio.Event(), asyncio.Event()

    async def held(request: web.Request, octets: bytes) -> web.StreamResponse:
        entered.set()
        await gate.wait()
        return await other.issue(request, octets)

    other.behaviour = held
    message = stack.message()
    await stack.signer.send(message)
    await asyncio.wait_for(entered.wait(), 5)
    await stack.expire_lease(message)
    answer = await stack.ask(stack.message(message.csr))
    assert answer.outcome == "pending"
    gate.set()
    assert (await until_asked_again(stack, message)).outcome == "issued"
    from estcore.pki.csr import parse_csr

    print(
        "SEEN",
        [parse_csr(c).subject_text for c in other.seen],
        [c == message.csr for c in other.seen],
    )
    print(
        await stack.signer.rows(
            "select request_id,state,fence,sendings,code,answered_at,submitted_at,created_at from submission where issuance_id in (select issuance_id from submission where csr=$1)",
            message.csr,
        )
    )
    assert other.seen == [message.csr]
    (row,) = await stack.issuances(message)
    assert row["certificate"] == other.issued[0].public_bytes(Encoding.DER)


# Crashes.


async def test_what_was_recorded_and_not_sent_is_sent_after_a_crash(
    stack: UpstreamStack, other: OtherCA
) -> None:
    message = stack.message()
    await stack.resolve(message)
    assert (await stack.ask(stack.message(message.csr))).outcome == "pending"  # the lease is live
    await stack.expire_lease(message)
    answer = await stack.ask(stack.message(message.csr))
    assert answer.outcome == "issued"
    assert len(other.seen) == 1


async def test_what_was_being_sent_at_a_crash_is_unknown(
    stack: UpstreamStack, other: OtherCA
) -> None:
    message = stack.message()
    held: Any = await stack.resolve(message)
    assert await stack.parts.submissions.begin(held)
    await stack.expire_lease(message)
    answer = await stack.ask(stack.message(message.csr))
    assert answer.outcome == "pending"
    assert (await stack.row(message.id))["state"] == "unknown"
    assert other.seen == []


async def test_the_sweeper_finds_requests_without_a_retry(
    stack: UpstreamStack, other: OtherCA
) -> None:
    sent, unsent, forgotten = stack.message(), stack.message(), stack.message()
    other.behaviour = other.answering(202, retry_after="1")
    assert (await stack.ask(forgotten)).outcome == "pending"
    other.seen.clear()
    await stack.age_submission(forgotten, dt.timedelta(days=8))
    held: Any = await stack.resolve(sent)
    assert await stack.parts.submissions.begin(held)
    await stack.resolve(unsent)
    for message in (sent, unsent):
        await stack.expire_lease(message)
    await stack.signer.value(
        "update submission set sign_before = now() where request_id = $1", unsent.id
    )
    async with asyncio.timeout(5):
        while (await stack.row(sent.id))["state"] != "unknown":
            await asyncio.sleep(0.1)
        for message in (unsent, forgotten):
            while (await stack.row(message.id))["state"] != "abandoned":
                await asyncio.sleep(0.1)
    assert other.seen == []


async def test_an_answer_outlives_a_short_outage_of_the_ledger(
    stack: UpstreamStack, other: OtherCA, platform: Platform
) -> None:
    """The certificate arrives while PostgreSQL is unavailable: it would not be sent again."""
    gate, entered = asyncio.Event(), asyncio.Event()

    async def held(request: web.Request, octets: bytes) -> web.StreamResponse:
        entered.set()
        await gate.wait()
        return await other.issue(request, octets)

    other.behaviour = held
    message = stack.message()
    await stack.signer.send(message)
    await asyncio.wait_for(entered.wait(), 5)
    await platform.postgres.stop(immediate=True)
    try:
        gate.set()
        await asyncio.sleep(1.5)
    finally:
        await platform.postgres.start()
    async with asyncio.timeout(30):
        answer = await stack.signer.answers[message.id]
    assert answer.outcome == "issued"
    assert answer.certificate == other.issued[0].public_bytes(Encoding.DER)
    assert other.seen == [message.csr]


async def test_without_an_audit_puback_nothing_is_sent(
    stack: UpstreamStack, other: OtherCA, platform: Platform
) -> None:
    from estcore.errors import BusUnavailable

    message = stack.message()
    held: Any = await stack.resolve(message)
    await platform.nats.stop()
    try:
        with pytest.raises(BusUnavailable):
            await stack.parts.cycle._submit(held)
        assert (await stack.row(message.id))["state"] == "recorded"
    finally:
        await platform.nats.start()
    assert other.seen == []
    for _ in range(100):
        if stack.signer.bus.connected and stack.signer.frontend.connected:
            break
        await asyncio.sleep(0.1)
    assert (await until_asked_again(stack, message)).outcome == "issued"


async def test_openssl_verifies_what_a_client_gets(
    stack: UpstreamStack, other: OtherCA, tmp_path: Path
) -> None:
    answer = await stack.ask(stack.message())
    leaf = tmp_path / "leaf.pem"
    certificate = x509.load_der_x509_certificate(answer.certificate or b"")
    leaf.write_bytes(certificate.public_bytes(Encoding.PEM))
    root, issuing = other.path("root.pem"), other.path("issuing.pem")
    done = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-CAfile", root, "-untrusted", issuing, leaf],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
