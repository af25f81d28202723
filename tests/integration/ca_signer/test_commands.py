"""Signed commands: who may give them, that each counts once, and that all are on record."""

from __future__ import annotations

import asyncio
import json
import subprocess
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ca_signer.operators.enrollment import decide_operator
from ca_signer.operators.executor import CommandExecutor
from ca_signer.operators.verb import Caller, CommandResult, Verb, table
from estclient.est.keys import make_csr as operator_csr
from estclient.est.keys import make_key
from estclient.operators.client import Operator
from estcore.clock import SystemClock
from estcore.errors import Conflict, NotAuthorized, Unavailable
from estcore.messages.commands import sign_command
from estcore.pki.profile import StrictModel
from estcore.runtime.bus import Bus
from estcore.runtime.database import Connection
from estsuite_testing.e2e_stack import make_csr
from estsuite_testing.operators import TestOperator, operator, policy_with_operators
from estsuite_testing.platform import Platform
from estsuite_testing.signer_stack import SignerStack, signer_stack

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


class Argument(StrictModel):
    number: int
    fail: bool = False


async def _count(connection: Connection, argument: Argument, _: Caller) -> CommandResult:
    """A verb for these tests, in place of one: its effect can be counted in the ledger."""
    await connection.execute(
        "insert into attempt (message_sha256, attempts) values ($1, 1) "
        "on conflict (message_sha256) do update set attempts = attempt.attempts + 1",
        str(argument.number).encode(),
    )
    if argument.fail:
        raise Conflict("not now", code="request.conflict")
    return CommandResult({"number": argument.number})


COUNT = Verb("rollover-rollback", frozenset({"approver"}), Argument, _count)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def signer(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SignerStack]:
    folder: Path = tmp_path_factory.mktemp("signer")
    async with signer_stack(platform, folder, policy_file=policy_with_operators(folder)) as stack:
        executor = stack.operations.executor
        executor.verbs = table(*executor.verbs.values(), COUNT)
        yield stack


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def boss(signer: SignerStack) -> TestOperator:
    return await operator(signer, "CN=boss")


_numbers = iter(range(1, 10_000))


async def counted(signer: SignerStack, number: int) -> int:
    sql = "select attempts from attempt where message_sha256 = $1"
    return int(await signer.value(sql, str(number).encode()) or 0)


@pytest.mark.parametrize("algorithm", ["ec-p256", "ec-p384", "rsa-3072", "ed25519"])
async def test_a_command_delivered_twice_is_carried_out_once(
    signer: SignerStack, algorithm: str
) -> None:
    one, number = await operator(signer, "CN=boss", algorithm), next(_numbers)
    answer = await one.give(signer, COUNT.name, {"number": number})
    assert (answer.outcome, answer.result) == ("done", {"number": number})
    assert await counted(signer, number) == 1


async def test_a_retry_signed_anew_under_its_id_gets_the_answer_of_then(
    signer: SignerStack, boss: TestOperator
) -> None:
    number = next(_numbers)
    command = boss.command(COUNT.name, {"number": number})
    later = command.model_copy(update={"iat": command.iat + 1, "exp": command.exp + 1})
    executor = signer.operations.executor
    first = await executor.execute(COUNT.name, boss.sign(command))
    assert await executor.execute(COUNT.name, boss.sign(later)) == first
    assert await counted(signer, number) == 1


async def test_two_signers_carry_a_command_out_once(
    signer: SignerStack, boss: TestOperator
) -> None:
    number = next(_numbers)
    data = boss.sign(boss.command(COUNT.name, {"number": number}))
    one = signer.operations.executor
    other = CommandExecutor(
        database=signer.database,
        publisher=signer.publisher,
        decision_context=signer.decision_context,
        verbs=table(COUNT),
    )
    answers = await asyncio.gather(
        *(executor.execute(COUNT.name, data) for executor in (one, other) * 5)
    )
    assert {a.outcome for a in answers} == {"done"}
    assert await counted(signer, number) == 1


async def test_a_command_id_is_not_good_for_another_body(
    signer: SignerStack, boss: TestOperator
) -> None:
    number = next(_numbers)
    command = boss.command(COUNT.name, {"number": number})
    other = command.model_copy(update={"arguments": {"number": number + 5_000}})
    executor = signer.operations.executor
    assert (await executor.execute(COUNT.name, boss.sign(command))).outcome == "done"
    assert (await executor.execute(COUNT.name, boss.sign(other))).code == "command.reused"
    assert await counted(signer, number + 5_000) == 0


async def test_a_command_id_is_not_good_for_another_operator(
    signer: SignerStack, boss: TestOperator
) -> None:
    command = boss.command(COUNT.name, {"number": next(_numbers)})
    approver = await operator(signer, "CN=approver")
    executor = signer.operations.executor
    assert (await executor.execute(COUNT.name, boss.sign(command))).outcome == "done"
    assert (await executor.execute(COUNT.name, approver.sign(command))).code == "command.reused"


async def test_what_a_refused_command_began_is_undone_and_stays_refused(
    signer: SignerStack, boss: TestOperator
) -> None:
    number = next(_numbers)
    answer = await boss.give(signer, COUNT.name, {"number": number, "fail": True})
    assert (answer.outcome, answer.kind, answer.code) == ("refused", "Conflict", "request.conflict")
    assert await counted(signer, number) == 0


async def test_any_flipped_byte_of_a_command_refuses_it(
    signer: SignerStack, boss: TestOperator
) -> None:
    number = next(_numbers)
    data = boss.sign(boss.command(COUNT.name, {"number": number}))
    executor = signer.operations.executor
    places = {*range(0, len(data), 17), *range(len(data) - 90, len(data))}
    for place in sorted(places):
        tampered = bytearray(data)
        tampered[place] ^= 1
        answer = await executor.execute(COUNT.name, bytes(tampered))
        assert answer.outcome == "refused", place
        assert answer.code in {"command.malformed", "command.signature", "command.operator"}
    assert await counted(signer, number) == 0


@pytest.mark.parametrize(
    ("iat", "exp"), [(-400, -100), (-10, 0), (100, 160), (0, 301), (-600, 10), (10, 5)]
)
async def test_a_command_that_is_not_of_now_is_refused(
    signer: SignerStack, boss: TestOperator, iat: int, exp: int
) -> None:
    now = int(SystemClock().now().timestamp())
    answer = await boss.give(
        signer, COUNT.name, {"number": next(_numbers)}, iat=now + iat, exp=now + exp
    )
    assert (answer.outcome, answer.code) == ("refused", "command.time")


async def test_a_verb_needs_its_role(signer: SignerStack) -> None:
    auditor = await operator(signer, "CN=auditor")
    answer = await auditor.give(signer, COUNT.name, {"number": next(_numbers)})
    assert (answer.kind, answer.code) == ("NotAuthorized", "command.role")


async def test_a_reader_looks_up_certificates_and_nothing_else(signer: SignerStack) -> None:
    reader = await operator(signer, "CN=reader")
    verbs = signer.operations.executor.verbs
    allowed = {name for name, verb in verbs.items() if "reader" in verb.roles}
    assert allowed == {"certificate-list", "certificate-show"}
    answer = await reader.give(signer, "certificate-list", {})
    assert answer.outcome == "done"
    refused = await reader.give(signer, "secret-list", {})
    assert refused.code == "command.role"


@pytest.mark.parametrize("change", [{"service": "renewal"}, {"verb": "certificate-list"}])
async def test_a_command_for_another_topic_is_refused(
    signer: SignerStack, boss: TestOperator, change: dict[str, str]
) -> None:
    command = boss.command(COUNT.name, {"number": 1}).model_copy(update=change)
    answer = await signer.operations.executor.execute(COUNT.name, boss.sign(command))
    assert answer.code == "command.malformed"


async def test_wrong_arguments_are_refused_with_their_place(
    signer: SignerStack, boss: TestOperator
) -> None:
    answer = await boss.give(signer, COUNT.name, {"number": "many"})
    assert answer.code == "command.arguments"
    assert "number" in (answer.reason or "")


async def test_a_revoked_operator_is_refused(signer: SignerStack) -> None:
    gone = await operator(signer, "CN=boss")
    assert (await gone.give(signer, "certificate-list")).outcome == "done"
    await signer.mark_revoked(gone.certificate)
    assert (await gone.give(signer, "certificate-list")).code == "command.operator"


async def test_an_expired_operator_is_refused(signer: SignerStack) -> None:
    gone = await operator(signer, "CN=boss")
    await signer.expire_certificate(gone.certificate)
    assert (await gone.give(signer, "certificate-list")).code == "command.operator"


async def test_a_certificate_of_another_profile_gives_no_commands(signer: SignerStack) -> None:
    """The subject alone does not make an operator: the ledger's row must say so."""
    key, csr = make_csr("dev-ordinary")
    issued = await signer.ask(signer.message(csr))
    assert issued.certificate is not None
    ordinary = TestOperator(key, issued.certificate)
    assert (await ordinary.give(signer, "certificate-list")).code == "command.operator"


async def test_an_operator_the_policy_forgot_is_refused(
    signer: SignerStack, boss: TestOperator
) -> None:
    decision_context = signer.decision_context
    policy = decision_context.policy.model_copy(deep=True)
    policy._operators.clear()
    executor = CommandExecutor(
        database=signer.database,
        publisher=signer.publisher,
        decision_context=replace(decision_context, policy=policy),
        verbs=table(COUNT),
    )
    data = boss.sign(boss.command(COUNT.name, {"number": next(_numbers)}))
    assert (await executor.execute(COUNT.name, data)).code == "command.operator"


async def test_only_subjects_of_the_policy_become_operators(signer: SignerStack) -> None:
    with pytest.raises(NotAuthorized) as caught:
        decide_operator(operator_csr(make_key(), "CN=somebody"), "issuing", signer.decision_context)
    assert caught.value.code == "command.operator"


async def test_no_front_end_enrolls_an_operator(signer: SignerStack) -> None:
    """An operator's subject under an ordinary rule gets an ordinary certificate or none."""
    answer = await signer.ask(signer.message(operator_csr(make_key(), "CN=boss")))
    assert (answer.outcome, answer.code) == ("rejected", "policy.subject")


async def test_commands_done_and_refused_are_on_record(
    signer: SignerStack, boss: TestOperator
) -> None:
    done = boss.command(COUNT.name, {"number": next(_numbers)})
    refused = boss.command(COUNT.name, {"number": next(_numbers), "fail": True})
    over = boss.command(COUNT.name, {"number": 1}, exp=int(SystemClock().now().timestamp()) - 1)
    for command in (done, refused, over):
        await signer.operations.executor.execute(COUNT.name, boss.sign(command))
    await signer.operations.outbox.flush()
    await asyncio.sleep(0.5)
    records = {r.correlation_id: r for r in await signer.audited(f"operator.{COUNT.name}")}
    found = {n: records[str(c.command_id)] for n, c in (("done", done), ("refused", refused))}
    assert found["done"].outcome == "success"
    assert found["done"].actor.subject == "certificate:issuing/CN=boss"
    assert found["done"].actor.type == "human"
    assert (found["refused"].phase, found["refused"].reason_code) == ("denied", "request.conflict")
    assert records[str(over.command_id)].reason_code == "command.time"


async def test_commands_over_the_bus_are_answered(
    platform: Platform, signer: SignerStack, boss: TestOperator
) -> None:
    bus = await Bus.connect(platform.bus("operator"), "operator", "estctl")
    key: Any = boss.key
    client = Operator(bus, boss.certificate, key, SystemClock(), timeout_s=10)
    try:
        listed = await client.send("ca-signer", "certificate-list", {"name": "boss"})
        serial = listed["certificates"][0]["serial"]
        shown = await client.send("ca-signer", "certificate-show", {"serial": serial})
        assert shown["subject"] == "CN=boss"
        with pytest.raises(Conflict, match="no such certificate"):
            await client.send("ca-signer", "certificate-show", {"serial": "02" * 18})
        with pytest.raises(Unavailable, match="no ca-signer-upstream process answers"):
            await client.send("ca-signer", "submission-list", {})
    finally:
        await bus.close()


async def test_openssl_agrees_about_the_signature(boss: TestOperator, tmp_path: Path) -> None:
    """Checked independently: ES256 over header.payload by the key in x5c."""
    import base64

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    head, payload, signature = boss.sign(boss.command(COUNT.name, {"number": 1})).split(b".")
    header = json.loads(base64.urlsafe_b64decode(head + b"=="))
    assert header["alg"] == "ES256"
    raw = base64.urlsafe_b64decode(signature + b"==")
    r, s = (int.from_bytes(raw[i : i + 32], "big") for i in (0, 32))
    certificate = x509.load_der_x509_certificate(base64.b64decode(header["x5c"][0]))
    public = certificate.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pem").write_bytes(public)
    (tmp_path / "signature").write_bytes(encode_dss_signature(r, s))
    (tmp_path / "signed").write_bytes(head + b"." + payload)
    command = [
        "openssl",
        "dgst",
        "-sha256",
        "-verify",
        "key.pem",
        "-signature",
        "signature",
        "signed",
    ]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)


async def test_a_key_that_is_not_the_certificates_signs_nothing(boss: TestOperator) -> None:
    with pytest.raises(ValueError, match="not the certificate's"):
        sign_command(
            make_key(), boss.certificate, boss.command(COUNT.name, command_id=uuid.uuid4())
        )
