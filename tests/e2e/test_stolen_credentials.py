"""A process with the credentials of exactly one service tries what only others may do.

It has that service's NKey seed, so its NATS user and its message key, and speaks to nats-server
itself, without the suite's bus. What remains possible is in ``docs/threat-model.md``.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from estcore import ids
from estcore.errors import ConfigurationError
from estcore.messages import topics
from estcore.messages.audit import Actor, AuditBatch, AuditRecord, Producer
from estcore.messages.commands import Command, CommandAnswered, sign_command
from estcore.messages.envelope import decode, encode
from estcore.messages.signatures import HEADER
from estcore.messages.state import SecretShard, SecretVerifier, secret_shard
from estsuite_testing.e2e_stack import Stack, certificate_in, make_csr
from estsuite_testing.raw_client import Client as ESTClient
from estsuite_testing.raw_client import b64
from estsuite_testing.thief import enrolled, thief

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

SECRET = "a secret of the attacker"
REFUSED = (
    "audit message unreadable",
    "bus permission violation",
    "state message refused",
    "event unreadable, dead-lettered",
)


def record(service: str, action: str, **changes: Any) -> AuditRecord:
    identity = ids.uuid7()
    values: dict[str, Any] = {
        "record_id": identity,
        "producer": Producer(service=service, instance=service, boot_id="thief"),
        "occurred_at": dt.datetime.now(dt.UTC),
        "correlation_id": identity,
        "action": action,
        "phase": "outcome",
        "outcome": "success",
        "actor": Actor(type="human", subject="local operator"),
    }
    return AuditRecord.model_validate(values | changes)


async def logged(stack: Stack, **wanted: Any) -> list[dict[str, Any]]:
    """The records of the log that have these values."""
    found = await stack.records()
    return [r for r in found if all(r.get(name) == value for name, value in wanted.items())]


async def until_logged(stack: Stack, **wanted: Any) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while not (found := await logged(stack, **wanted)):
            await asyncio.sleep(0.5)
    return found[-1]


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def nothing_is_broken(stack: Stack) -> AsyncIterator[None]:
    """After each attempt the suite still issues."""
    yield
    assert await enrolled(stack, "dev-after") == 200


@pytest.mark.logs_errors(*REFUSED)
@pytest.mark.parametrize("service", ["renewal", "audit", "est-frontend"])
async def test_no_other_service_gives_front_ends_a_secret(stack: Stack, service: str) -> None:
    verifier = SecretVerifier(
        secret_id="load",
        sha256=sha256(SECRET.encode()).hexdigest(),
        not_after=dt.datetime.now(dt.UTC) + dt.timedelta(days=9),
        one_time=False,
    )
    shard = secret_shard("load")
    moment = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=50)
    forged = encode(SecretShard(shard=shard, updated_at=moment, secrets=(verifier,)))
    topic = topics.secrets_topic(shard)
    inbox = "_INBOX_estfrontend.0123456789abcdef012345"
    async with thief(stack, service) as found:
        await found.publish(topic, forged)
        await found.publish(inbox, forged, **{"Nats-Subject": topic, "Nats-Sequence": "1"})
        # Where it may write, with an answer of the server on the topic it may not write to.
        own = {
            "renewal": "pki.rotation.due.a.b",
            "audit": "audit.issue.audit",
            "est-frontend": "audit.refusal.est-frontend.default",
        }[service]
        await found.publish(own, forged, reply=topic)
        if service == "est-frontend":
            body = {"last_by_subj": topics.PROFILES_TOPIC}
            await found.ask("$JS.API.DIRECT.GET.PKI_STATE", body, reply=topic)
        else:
            stream = topics.PKI_EVENTS
            await found.ask(
                f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{service}", {"batch": 1}, reply=topic
            )
        await asyncio.sleep(1.5)
        assert found.violations
    assert await enrolled(stack, "dev-thief", SECRET) == 401
    assert await enrolled(stack, "dev-good") == 200


def _pull(stream: str, consumer: str) -> tuple[str, bytes]:
    return f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}", b'{"batch": 2, "no_wait": true}'


_DIRECT = json.dumps({"last_by_subj": topics.PROFILES_TOPIC}).encode()
ASKED: dict[str, tuple[tuple[str, bytes], ...]] = {
    "renewal": (
        *(("pki.rotation.due.a.b", b"{}"), ("audit.issue.renewal", b"{}")),
        *(("canary.renewal", b"{}"), _pull(topics.PKI_EVENTS, "renewal")),
        *((topic, b"{}") for topic in (topics.REANNOUNCE_TOPIC, topics.WINDOWS_TOPIC)),
    ),
    "audit": (
        *(("audit.issue.audit", b"{}"), ("dead.audit.x", b"{}"), ("canary.audit", b"{}")),
        *(_pull(topics.AUDIT_ISSUE, "audit"), _pull(topics.AUDIT_REFUSAL, "audit")),
        (topics.WINDOWS_TOPIC, b"{}"),
    ),
    "est-frontend": (
        *(("est.request.default.issuing.low", b"{}"), ("canary.est-frontend.default", b"{}")),
        *(("$JS.API.DIRECT.GET.PKI_STATE", _DIRECT), ("pki.ocsp.issuing", b"0")),
        *(("pki.ack.default", b"{}"), (topics.FETCHED_TOPIC, b"{}")),
    ),
    "operator": (("pki.command.ca-signer.certificate-list", b"{}"),),
}
"""What NATS, a stream or a service answers, by who may ask it."""


async def stored_secrets(stack: Stack, topic: str) -> tuple[SecretVerifier, ...]:
    async with thief(stack, "est-frontend") as found:
        body = json.dumps({"last_by_subj": topic}).encode()
        answer = await found.client.request("$JS.API.DIRECT.GET.PKI_STATE", body, timeout=5)
    assert answer.headers is not None
    assert HEADER in answer.headers
    return decode(SecretShard, answer.data).secrets


@pytest.mark.logs_errors(*REFUSED, "message dead-lettered")
@pytest.mark.parametrize("service", ASKED)
async def test_a_reply_subject_replaces_no_value_of_the_state(stack: Stack, service: str) -> None:
    topic = topics.secrets_topic(secret_shard("load"))
    secrets = await stored_secrets(stack, topic)
    async with thief(stack, service) as found:
        for target in (topic, "dead.other.x", "$JS.API.STREAM.DELETE.CANARY"):
            for asked, payload in ASKED[service]:
                await found.publish(asked, payload, reply=target)
        await asyncio.sleep(1)
        assert not found.violations
    assert secrets
    assert await stored_secrets(stack, topic) == secrets
    async with thief(stack, "migrate") as found:
        manager = found.client.jsm()
        await manager.stream_info(topics.CANARY)  # it was not deleted
        wrong = await manager.stream_info(topics.DEAD_LETTERS, subjects_filter="dead.other.>")
    assert not wrong.state.subjects


@pytest.mark.logs_errors(*REFUSED)
@pytest.mark.parametrize("service", ["renewal", "audit", "est-frontend"])
async def test_no_other_service_says_what_ca_signer_says(stack: Stack, service: str) -> None:
    async with thief(stack, service) as found:
        for topic in (
            "pki.certificate.issued.demo.web",
            "pki.certificate.revoked.demo.web",
            "pki.ca.window",
            "est.reply.default.est-frontend.x",
            "audit.issue.ca-signer",
        ):
            found.violations.clear()
            await found.publish(topic, b"{}")
            async with asyncio.timeout(5):
                while not found.violations:
                    await asyncio.sleep(0.05)


TOPICS_OF_OTHERS = {
    "to obtain a certificate": ("est.request.default.issuing.normal",),
    "to have one revoked or released": tuple(
        f"pki.command.ca-signer.certificate-{verb}" for verb in ("revoke", "hold", "unhold")
    ),
    "to change what front ends refuse": (
        topics.revoked_topic("issuing", "00"),
        topics.crl_topic("issuing", None),
        topics.cacerts_topic("issuing"),
        topics.POLICY_TOPIC,
    ),
    "to stop a signer": ("pki.certificate.issued.demo.web", "$JS.API.STREAM.DELETE.EST_REQUESTS"),
    "to empty a stream": (
        "$JS.API.STREAM.PURGE.AUDIT_ISSUE",
        "$JS.API.STREAM.MSG.DELETE.AUDIT_ISSUE",
        "$JS.API.CONSUMER.DELETE.PKI_EVENTS.renewal",
    ),
}
OWN = {"est-frontend": {"to obtain a certificate"}}
"""Of these, what a service has the right to: a front end asks for certificates, of its group."""


@pytest.mark.logs_errors(*REFUSED)
@pytest.mark.parametrize("attempt", TOPICS_OF_OTHERS)
@pytest.mark.parametrize("service", ["renewal", "audit", "est-frontend"])
async def test_nats_refuses_each_service_the_topics_of_others(
    stack: Stack, service: str, attempt: str
) -> None:
    if attempt in OWN.get(service, set()):
        return
    async with thief(stack, service) as found:
        for topic in TOPICS_OF_OTHERS[attempt]:
            found.violations.clear()
            await found.publish(topic, b"{}")
            async with asyncio.timeout(5):
                while not found.violations:
                    await asyncio.sleep(0.02)


async def test_the_nats_user_of_operators_is_no_operator(stack: Stack) -> None:
    """A command counts by the certificate that signed it: a key of one's own revokes nothing."""
    key, _ = make_csr("dev-victim")
    answer = await ESTClient.of(stack).enroll(b64(make_csr("dev-victim")[1]))
    assert answer.status == 200
    fingerprint = certificate_in(answer.body).fingerprint(SHA256()).hex()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "local operator")])
    now = dt.datetime.now(dt.UTC)
    own = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, SHA256())
    )
    command = Command(
        command_id=UUID(ids.uuid7()),
        service="ca-signer",
        verb="certificate-revoke",
        iat=int(now.timestamp()),
        exp=int(now.timestamp()) + 60,
        arguments={"fingerprint": fingerprint, "reason": "keyCompromise"},
    )
    signed = sign_command(key, own.public_bytes(Encoding.DER), command).encode()
    async with thief(stack, "operator") as found:
        reply = await found.client.request(
            "pki.command.ca-signer.certificate-revoke", signed, timeout=10
        )
    answered = decode(CommandAnswered, reply.data)
    assert (answered.outcome, answered.code) == ("refused", "command.operator")
    rows = await stack.ledger()
    assert not any(r["revoked"] for r in rows if r["certificate_sha256"] == fingerprint)


@pytest.mark.logs_errors(*REFUSED)
async def test_a_front_end_writes_no_record_of_a_different_service(stack: Stack) -> None:
    topic = "audit.refusal.est-frontend.default"
    async with thief(stack, "est-frontend") as found:
        invented = record("ca-signer", "operator.certificate-unhold")
        misnamed = record("est-frontend", "operator.certificate-unhold")
        other = record("est-frontend", "est.simpleenroll").model_copy(
            update={"producer": Producer(service="est-frontend", instance="other", boot_id="b")}
        )
        for one in (invented, misnamed, other):
            await found.publish(topic, encode(AuditBatch(records=(one,))))
        unsigned = encode(AuditBatch(records=(record("est-frontend", "est.simpleenroll"),)))
        await found.client.publish(topic, unsigned)
        await found.client.flush()
    await until_logged(stack, action="audit.dead_letter", reason_code="unsigned")
    for fault in ("producer", "action"):
        await until_logged(stack, action="audit.dead_letter", reason_code=fault)
    assert await logged(stack, action="operator.certificate-unhold") == []
    for one in (invented, misnamed, other):
        assert await logged(stack, record_id=one.record_id) == []


@pytest.mark.logs_errors("audit record id in use")
async def test_no_record_is_hidden_behind_an_id_used_before(stack: Stack) -> None:
    topic = "audit.refusal.est-frontend.default"
    identity = ids.uuid7()
    first = record("est-frontend", "est.cacerts", record_id=identity)
    second = record("est-frontend", "est.simpleenroll", record_id=identity, outcome="failure")
    async with thief(stack, "est-frontend") as found:
        for one in (first, second, second):
            await found.publish(topic, encode(AuditBatch(records=(one,))))
    conflict = await until_logged(stack, action="audit.conflict")
    assert conflict["details"]["id"] == identity
    assert json.loads(conflict["details"]["record"])["action"] == "est.simpleenroll"
    assert len(await logged(stack, action="audit.conflict")) == 1
    with pytest.raises(ConfigurationError, match="verify"):
        await stack.verify_cross()


@pytest.mark.logs_errors(*REFUSED)
async def test_a_front_end_fills_no_stream_for_the_others(stack: Stack) -> None:
    async with thief(stack, "est-frontend") as found:
        await found.publish("est.request.default.nobody.normal", b"{}")
        await found.publish("est.request.other.issuing.normal", b"{}")
        async with asyncio.timeout(5):
            while len(found.violations) < 2:
                await asyncio.sleep(0.05)


@pytest.mark.logs_errors(*REFUSED)
async def test_no_service_acknowledges_what_others_consume(stack: Stack) -> None:
    for service, consumer in (("renewal", "audit"), ("audit", "renewal")):
        async with thief(stack, service) as found:
            await found.client.publish(
                f"$JS.ACK.{topics.PKI_EVENTS}.{consumer}.1.1.1.1700000000.0", b"+ACK"
            )
            await found.client.flush()
            async with asyncio.timeout(5):
                while not found.violations:
                    await asyncio.sleep(0.05)
