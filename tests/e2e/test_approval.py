"""Manual approval end to end: curl-like clients poll, an operator decides with ``estctl``."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from estclient.est.keys import make_csr as operator_csr
from estclient.est.keys import make_key
from estcore.errors import ConfigurationError
from estcore.runtime.service import executable
from estdev.local import admin_get
from estdev.operator import make_operator
from estsuite_testing.e2e_stack import (
    POLICY,
    Stack,
    certificate_in,
    make_csr,
    same_key,
    start_stack,
    stop_stack,
)
from estsuite_testing.raw_client import BASE, Answer, Client, b64

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    folder: Path = tmp_path_factory.mktemp("approval")
    policy = yaml.safe_load(POLICY.read_text())
    policy["rules"][0]["approval"] = True
    policy["labels"]["services"]["operations"] = ["simpleenroll", "serverkeygen"]
    policy["operators"] = [
        {
            "name": "boss",
            "certificate_issuer": "issuing",
            "certificate_subject": "CN=boss",
            "roles": ["approver", "revoker", "auditor", "siem"],
        }
    ]
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump(policy))
    overrides = {"ca-signer": {"approval_retry_after_s": 1}}
    stack = await start_stack(folder, policy=path, overrides=overrides)
    try:
        await stack.suite.start_service("est-frontend", "est-frontend-2", wait=True)
        await stack.suite.start_service("ca-signer", "ca-signer-2", wait=True)
        yield stack
    finally:
        await stop_stack(stack)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def settings(stack: Stack) -> Path:
    return await make_operator(stack.suite, "CN=boss")


async def estctl(stack: Stack, settings: Path, *arguments: str) -> Any:
    out = await stack.suite.run("estctl", *arguments, "--config", str(settings), "--json")
    return json.loads(out)


async def waiting(stack: Stack, settings: Path, name: str) -> dict[str, Any]:
    listed = await estctl(stack, settings, "requests", "list")
    (one,) = [r for r in listed["requests"] if r["subject"] == f"CN={name}"]
    return dict(one)


async def poll(client: Client, body: bytes, *, path: str = f"{BASE}/simpleenroll") -> Answer:
    """What a script with curl does: the same request on a new connection until it is not 202."""
    async with asyncio.timeout(30):
        while True:
            answer = await client.enroll(body, path=path)
            if answer.status != 202:
                return answer
            await asyncio.sleep(int(answer.headers["Retry-After"]))


async def test_G1_E13_a_request_that_waits_is_202_with_seconds(
    stack: Stack, settings: Path
) -> None:
    """RFC 7030 4.2.3: "the server MUST include a Retry-After header" """
    client = Client.of(stack)
    key, csr = make_csr("dev-polling")
    first = await client.enroll(b64(csr))
    assert first.status == 202
    assert first.headers["Retry-After"].isdigit()
    polling = asyncio.ensure_future(poll(client, b64(csr)))
    one = await waiting(stack, settings, "dev-polling")
    assert (one["principal"], one["key"]) == ("secret:load", "ec-p256")
    await estctl(stack, settings, "requests", "approve", "--id", one["id"], "--reason", "known")
    answer = await polling
    assert answer.status == 200, answer.text
    assert same_key(certificate_in(answer.body), key)
    again = await client.enroll(b64(csr))
    assert certificate_in(again.body) == certificate_in(answer.body)


async def test_G3_a_csr_bound_to_another_session_is_the_same_ticket(
    stack: Stack, settings: Path
) -> None:
    client = Client.of(stack)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "dev-signed-twice")])
    csrs = [
        x509.CertificateSigningRequestBuilder(subject)
        .sign(key, SHA256())
        .public_bytes(Encoding.DER)
        for _ in range(2)
    ]
    assert csrs[0] != csrs[1]
    assert (await client.enroll(b64(csrs[0]))).status == 202
    one = await waiting(stack, settings, "dev-signed-twice")
    assert (await client.enroll(b64(csrs[1]))).status == 202
    await estctl(stack, settings, "requests", "approve", "--id", one["id"])
    assert (await poll(client, b64(csrs[1]))).status == 200


async def test_G5_a_rejected_request_is_403_with_the_reason(stack: Stack, settings: Path) -> None:
    client = Client.of(stack)
    _, csr = make_csr("dev-rejected")
    assert (await client.enroll(b64(csr))).status == 202
    one = await waiting(stack, settings, "dev-rejected")
    reject = ["requests", "reject", "--id", one["id"], "--reason", "not ours"]
    await estctl(stack, settings, *reject)
    answer = await poll(client, b64(csr))
    assert answer.status == 403
    assert "not ours" in answer.text
    assert "[approval.rejected]" in answer.text


async def test_G8_a_ticket_survives_restarts_of_everything(stack: Stack, settings: Path) -> None:
    client = Client.of(stack)
    _, csr = make_csr("dev-lasting")
    assert (await client.enroll(b64(csr))).status == 202
    one = await waiting(stack, settings, "dev-lasting")
    for name in ("ca-signer", "ca-signer-2"):
        await stack.suite.stop_service(name, kill=True)
    await stack.suite.stop_service("est-frontend-2", kill=True)
    await stack.suite.start_service("ca-signer", "ca-signer", wait=True)
    await estctl(stack, settings, "requests", "approve", "--id", one["id"])
    assert (await poll(client, b64(csr))).status == 200


async def test_H18_a_generated_key_waits_for_approval_too(stack: Stack, settings: Path) -> None:
    """Each poll makes a new key; the ticket is about who asks for which name."""
    client = Client.of(stack)
    _, csr = make_csr("dev-keyless")
    path = f"{BASE}/serverkeygen"
    assert (await client.enroll(b64(csr), path=path)).status == 202
    one = await waiting(stack, settings, "dev-keyless")
    assert (one["operation"], one["key_sha256"]) == ("serverkeygen", None)
    await estctl(stack, settings, "requests", "approve", "--id", one["id"])
    answer = await poll(client, b64(csr), path=path)
    assert answer.status == 200, answer.text
    assert b"application/pkcs8" in answer.body


async def test_estctl_prints_lines_for_people_and_says_why_not(
    stack: Stack, settings: Path
) -> None:
    client = Client.of(stack)
    assert (await client.enroll(b64(make_csr("dev-printed")[1]))).status == 202
    out = await stack.suite.run("estctl", "requests", "list", "--config", str(settings))
    assert "subject=CN=dev-printed" in out
    unknown = "01a20145-3116-73c5-b56a-9d56a820824b"
    with pytest.raises(ConfigurationError, match=r"command\.unknown"):
        await estctl(stack, settings, "requests", "approve", "--id", unknown)


async def test_G1_a_poll_at_another_front_end_that_comes_too_early_is_not_queued(
    stack: Stack,
) -> None:
    """While a ticket is open no front end publishes a copy of its request."""
    client = Client.of(stack)
    _, csr = make_csr("dev-impatient")
    assert (await client.enroll(b64(csr))).status == 202
    before = await early_polls(stack)
    for _ in range(20):
        answer = await client.enroll(b64(csr))
        assert answer.status == 202
        assert 1 <= int(answer.headers["Retry-After"]) <= 10
    # Retry-After is a second here, so some of them come when the ticket is over.
    assert await early_polls(stack) - before >= 5


async def early_polls(stack: Stack) -> float:
    found = 0.0
    for running in stack.suite.services.values():
        if running.service == "est-frontend":
            text = await admin_get(running.admin_port, "/metrics")
            line = re.search(r"^est_frontend_early_polls_total (\S+)$", text, re.M)
            found += float(line[1]) if line else 0
    return found


async def enroll_operator(stack: Stack, *arguments: str, given: bytes = b"") -> bytes:
    """Run ``ca-signer operator enroll``; returns what it prints."""
    config = str(stack.layout.config_file("ca-signer"))
    process = await asyncio.create_subprocess_exec(
        *(executable("ca-signer"), "operator", "enroll", "--config", config, *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await process.communicate(given)
    assert process.returncode == 0
    return printed


async def test_a_container_makes_its_operator_through_pipes_and_keeps_a_good_certificate(
    stack: Stack, settings: Path, tmp_path: Path
) -> None:
    request, out = tmp_path / "operator.csr", tmp_path / "operator.pem"
    request.write_bytes(operator_csr(make_key(), "CN=boss"))
    printed = await enroll_operator(stack, "--csr", "-", "--out", "-", given=request.read_bytes())
    assert x509.load_pem_x509_certificate(printed).subject.rfc4514_string() == "CN=boss"

    to_file = ("--csr", str(request), "--out", str(out), "--if-due")
    assert b"certificate of operator boss" in await enroll_operator(stack, *to_file)
    kept = out.read_bytes()
    assert b"kept" in await enroll_operator(stack, *to_file)
    assert out.read_bytes() == kept
    # Another key: the certificate is of no use to it.
    request.write_bytes(operator_csr(make_key(), "CN=boss"))
    assert b"certificate of operator boss" in await enroll_operator(stack, *to_file)
    assert out.read_bytes() != kept


async def test_an_auditor_finds_who_asked_who_approved_and_who_looked(
    stack: Stack, settings: Path, tmp_path: Path
) -> None:
    """Journey of an auditor: search, prove, verify offline, and be on record."""
    client = Client.of(stack)
    _, csr = make_csr("dev-audited")
    assert (await client.enroll(b64(csr))).status == 202
    one = await waiting(stack, settings, "dev-audited")
    await estctl(stack, settings, "requests", "approve", "--id", one["id"], "--reason", "known")
    assert (await poll(client, b64(csr))).status == 200

    async def search(*conditions: str) -> list[dict[str, Any]]:
        config = ("--config", str(settings), "--format", "json")
        out = await stack.suite.run("estctl", "audit", "search", *conditions, *config)
        return [json.loads(line) for line in out.splitlines()]

    wanted = {"certificate.issue", "operator.request-approve"}
    async with asyncio.timeout(30):
        while not wanted <= {row["action"] for row in await search("--name", "dev-audited")}:
            await asyncio.sleep(0.5)
    issue = ("--action", "certificate.issue", "--phase", "outcome")
    (issued,) = await search("--name", "dev-audited", *issue)
    assert issued["serial"] in {row["serial"] for row in await search("--serial", issued["serial"])}
    (approved,) = await search("--principal", "boss", "--action", "operator.request-approve",
                               "--name", "dev-audited")  # fmt: skip
    assert approved["principal"] == "certificate:issuing/CN=boss"
    async with asyncio.timeout(30):
        while not (looks := await search("--action", "operator.audit-search")):
            await asyncio.sleep(0.5)
    assert {row["principal"] for row in looks} == {"certificate:issuing/CN=boss"}

    proof, vkey = tmp_path / "issued.tlog-proof", stack.layout.config / "audit.vkey"
    prove = ["audit", "prove", "--index", str(issued["log_index"]), "--out", str(proof)]
    async with asyncio.timeout(90):
        while not proof.exists():
            try:
                await stack.suite.run("estctl", *prove, "--config", str(settings))
            except ConfigurationError as exc:
                assert "proof.unsealed" in str(exc)
                await asyncio.sleep(2)
    shown = await stack.suite.run(
        "estctl", "audit", "verify-proof", "--proof", str(proof), "--vkey", str(vkey)
    )
    assert "CN=dev-audited" in shown
    assert shown.endswith("verified\n")

    # A period that is over and under a checkpoint, and the log it is compared with.
    times = ("--from", "2026-01-01", "--to", issued["recorded_at"])
    report, log = tmp_path / "report", tmp_path / "log.jsonl"
    config = ("--config", str(settings))
    await stack.suite.run("estctl", "audit", "report", *times, "--out", str(report), *config)
    written = await stack.suite.run("estctl", "audit", "export", "--out", str(log), *config)
    assert re.fullmatch(r"\d+ lines, \d+ records\n", written)
    check = ("audit", "verify-report", "--report", str(report), "--vkey", str(vkey))
    compared = await stack.suite.run("estctl", *check, "--export", str(log))
    assert "the export gives the same report" in compared
    verify = ("audit", "verify", "--export", str(log), "--vkey", str(vkey))
    assert "verified:" in await stack.suite.run("estctl", *verify)


async def test_an_operator_looks_after_the_siem_with_lines_that_say_what_was_done(
    stack: Stack, settings: Path
) -> None:
    async def sinks(*arguments: str) -> str:
        return await stack.suite.run("estctl", "sinks", *arguments, "--config", str(settings))

    async with asyncio.timeout(60):
        while (row := json.loads(await sinks("status", "--json"))[0])["next"] < 1:
            await asyncio.sleep(0.5)
    assert (row["sink"], row["kind"], row["dead_letters"]) == ("local-siem", "syslog", 0)
    assert "local-siem" in await sinks("status")
    assert await sinks("test", "--sink", "local-siem") == "local-siem: reached\n"
    sent = await sinks("test", "--sink", "local-siem", "--send")
    assert sent == "local-siem: was sent the entry\n"
    assert await sinks("dead-letters", "--sink", "local-siem") == "0 records\n"
    delivered = await sinks("dead-letters", "--sink", "local-siem", "--deliver")
    assert delivered == "0 of 0 delivered\n"
    moved = await sinks("replay", "--sink", "local-siem", "--from", "0")
    assert re.fullmatch(r"local-siem: cursor moved from \d+ to 0\n", moved)
    with pytest.raises(ConfigurationError, match="no sink has the name none"):
        await sinks("test", "--sink", "none")
