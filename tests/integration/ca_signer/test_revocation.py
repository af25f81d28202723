"""Revocation: the row first, everything else from it, and nothing waits for audit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from typing_extensions import override

from ca_signer.ledger import revocations
from ca_signer.publishing.outbox import drain
from ca_signer.revocation.publisher import RevocationPublisher
from estcore.errors import BusUnavailable
from estcore.messages import topics
from estcore.messages.enrollment import EnrollmentAnswered, Principal
from estcore.messages.envelope import decode
from estcore.messages.events import CertificateRevoked
from estcore.messages.state import RevokedShard, revoked_shard
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.stored_messages import last_values, stored_from
from estsuite_testing.e2e_stack import make_csr
from estsuite_testing.operators import TestOperator, operator, policy_with_operators
from estsuite_testing.platform import Platform
from estsuite_testing.signer_stack import SignerStack, signer_stack

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def signer(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SignerStack]:
    folder: Path = tmp_path_factory.mktemp("signer")
    policy = policy_with_operators(folder)
    async with signer_stack(platform, folder, policy_file=policy, lease_s=2) as stack:
        yield stack


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def boss(signer: SignerStack) -> TestOperator:
    return await operator(signer, "CN=boss")


async def events_of(signer: SignerStack, certificate: bytes) -> list[CertificateRevoked]:
    """Return the events that the stream has of a certificate, oldest first."""
    found: list[CertificateRevoked] = []
    sequence = 1
    while sequence:
        stored, sequence = await stored_from(
            signer.bus, topics.PKI_EVENTS, "pki.certificate.revoked.>", sequence
        )
        found += [decode(CertificateRevoked, message.payload) for message in stored]
    return [e for e in found if e.fingerprint_sha256 == one(certificate)["fingerprint"]]


async def issued(signer: SignerStack, name: str) -> bytes:
    answer = await signer.ask(signer.message(make_csr(name)[1]))
    assert answer.certificate is not None
    return answer.certificate


def one(certificate: bytes, **more: Any) -> dict[str, Any]:
    return {"fingerprint": sha256(certificate).hexdigest(), **more}


async def row(signer: SignerStack, certificate: bytes) -> Any:
    return (await signer.rows("select * from issuance where certificate = $1", certificate))[0]


async def renew(signer: SignerStack, certificate: bytes, name: str) -> EnrollmentAnswered:
    who = Principal(method="certificate", name=f"issuing/CN={name}", certificate=certificate)
    message = signer.message(make_csr(name)[1], operation="simplereenroll", principal=who)
    return await signer.ask(message)


async def shard(signer: SignerStack, serial: bytes) -> RevokedShard:
    topic = topics.revoked_topic("issuing", revoked_shard(int.from_bytes(serial, "big")))
    (stored,) = await last_values(signer.frontend, topics.PKI_STATE, topic)
    return decode(RevokedShard, stored.payload)


async def until_announced(signer: SignerStack, certificate: bytes) -> None:
    async with asyncio.timeout(10):
        while (await row(signer, certificate))["revocation_announced_at"] is None:
            await asyncio.sleep(0.05)


async def test_a_revoked_certificate_is_published_and_renews_nothing(
    signer: SignerStack, boss: TestOperator
) -> None:
    certificate = await issued(signer, "dev-lost")
    answer = await boss.give(signer, "certificate-revoke", one(certificate, reason="superseded"))
    assert answer.outcome == "done", answer
    known = await row(signer, certificate)
    assert (known["revocation_reason"], known["revoked_by"]) == ("superseded", "boss")
    refused = await renew(signer, certificate, "dev-lost")
    assert refused.code == "auth.certificate_revoked"
    await until_announced(signer, certificate)
    (event,) = await events_of(signer, certificate)
    assert (event.reason, event.tenant, event.service) == ("superseded", "test", "load")
    assert event.serial in (await shard(signer, known["serial_number"])).serials


async def test_by_serial_number_too(signer: SignerStack, boss: TestOperator) -> None:
    certificate = await issued(signer, "dev-serial")
    serial = (await row(signer, certificate))["serial_number"].hex()
    arguments = {"serial": serial, "issuer": "issuing", "reason": "unspecified"}
    assert (await boss.give(signer, "certificate-revoke", arguments)).outcome == "done"
    assert (await row(signer, certificate))["revoked_at"] is not None


async def test_hold_and_release(signer: SignerStack, boss: TestOperator) -> None:
    certificate = await issued(signer, "dev-held")
    await boss.give(signer, "certificate-hold", one(certificate))
    assert (await renew(signer, certificate, "dev-held")).code == "auth.certificate_revoked"
    await until_announced(signer, certificate)
    serial = (await row(signer, certificate))["serial_number"]
    assert serial.hex() in (await shard(signer, serial)).serials
    assert (await boss.give(signer, "certificate-unhold", one(certificate))).outcome == "done"
    assert (await renew(signer, certificate, "dev-held")).outcome == "issued"
    await until_announced(signer, certificate)
    assert serial.hex() not in (await shard(signer, serial)).serials
    own = [e.reason for e in await events_of(signer, certificate)]
    assert own == ["certificateHold", "removeFromCRL"]


async def test_a_held_certificate_that_is_revoked_was_not_good_since_it_was_held(
    signer: SignerStack, boss: TestOperator
) -> None:
    certificate = await issued(signer, "dev-since")
    await boss.give(signer, "certificate-hold", one(certificate))
    since = (await row(signer, certificate))["revoked_at"]
    await boss.give(signer, "certificate-revoke", one(certificate, reason="keyCompromise"))
    known = await row(signer, certificate)
    assert (known["revoked_at"], known["revocation_reason"]) == (since, "keyCompromise")


@pytest.mark.parametrize(
    ("verb", "more", "code"),
    [
        ("certificate-unhold", {}, "revocation.final"),
        ("certificate-hold", {}, "revocation.final"),
        ("certificate-revoke", {"reason": "superseded"}, "revocation.final"),
        ("certificate-revoke", {"reason": "certificateHold"}, "command.arguments"),
        ("certificate-revoke", {"reason": "cACompromise"}, "command.arguments"),
        ("certificate-revoke", {}, "command.arguments"),
    ],
)
async def test_what_is_revoked_for_good_stays_so(
    signer: SignerStack, boss: TestOperator, verb: str, more: dict[str, Any], code: str
) -> None:
    certificate = await issued(signer, "dev-good")
    reason = "privilegeWithdrawn"
    await boss.give(signer, "certificate-revoke", one(certificate, reason=reason))
    again = await boss.give(signer, "certificate-revoke", one(certificate, reason=reason))
    assert (again.result or {})["changed"] is False
    assert (await boss.give(signer, verb, one(certificate, **more))).code == code
    assert (await row(signer, certificate))["revocation_reason"] == reason


async def test_what_is_not_held_is_not_released(signer: SignerStack, boss: TestOperator) -> None:
    certificate = await issued(signer, "dev-free")
    answer = await boss.give(signer, "certificate-unhold", one(certificate))
    assert answer.code == "revocation.not_held"


@pytest.mark.parametrize("subject", ["CN=approver", "CN=auditor"])
async def test_only_revokers_revoke(signer: SignerStack, subject: str) -> None:
    certificate = await issued(signer, "dev-safe")
    other = await operator(signer, subject)
    for verb in ("certificate-revoke", "certificate-hold", "certificate-unhold"):
        answer = await other.give(signer, verb, one(certificate, reason="superseded"))
        assert answer.code == "command.role"
    assert (await row(signer, certificate))["revoked_at"] is None


async def test_a_lost_key_is_never_certified_again(signer: SignerStack, boss: TestOperator) -> None:
    _, csr = make_csr("dev-stolen")
    first = await signer.ask(signer.message(csr))
    assert first.certificate is not None
    arguments = one(first.certificate, reason="keyCompromise")
    await boss.give(signer, "certificate-revoke", arguments)
    again = await signer.ask(signer.message(csr))
    assert (again.outcome, again.code) == ("rejected", "key.compromised")


async def test_an_intent_with_a_lost_key_is_abandoned(
    signer: SignerStack, boss: TestOperator
) -> None:
    _, csr = make_csr("dev-stolen-late")
    first = await signer.ask(signer.message(csr))
    assert first.certificate is not None
    await signer.age_certificate(first.certificate)
    await signer.value(
        "delete from enrollment where issuance_id = $1",
        (await row(signer, first.certificate))["issuance_id"],
    )
    _, intent = await signer.leave_intent(signer.message(csr))
    await boss.give(signer, "certificate-revoke", one(first.certificate, reason="keyCompromise"))
    await signer.expire_lease(intent)
    await signer.sweeper.sweep()
    assert (await signer.row_of(intent))["state"] == "abandoned"


async def test_a_revoked_operator_gives_no_more_commands(
    signer: SignerStack, boss: TestOperator
) -> None:
    gone = await operator(signer, "CN=revoker")
    certificate = await issued(signer, "dev-kept")
    reason = {"reason": "privilegeWithdrawn"}
    await boss.give(signer, "certificate-revoke", one(gone.certificate, **reason))
    answer = await gone.give(signer, "certificate-revoke", one(certificate, **reason))
    assert answer.code == "command.operator"
    assert (await row(signer, certificate))["revoked_at"] is None


class AuditIsAway(Bus):
    """The bus with a full stream of audit records: JetStream refuses what goes there."""

    @classmethod
    def like(cls, bus: Bus) -> AuditIsAway:
        return cls(bus.client, bus.inbox_prefix)

    @override
    async def publish_confirmed(self, messages: Any, *, timeout_s: float = 5) -> list[int]:
        if any(m.topic.startswith("audit.") for m in messages):
            raise BusUnavailable("stream refused the message", code="bus.full")
        return await super().publish_confirmed(messages, timeout_s=timeout_s)


async def test_revocation_works_while_audit_is_unavailable_and_is_recorded_later(
    signer: SignerStack, boss: TestOperator
) -> None:
    certificate = await issued(signer, "dev-emergency")
    kept = signer.publisher._bus
    signer.publisher._bus = AuditIsAway.like(kept)
    try:
        answer = await boss.give(
            signer, "certificate-revoke", one(certificate, reason="keyCompromise")
        )
        assert answer.outcome == "done"
        await until_announced(signer, certificate)
        waiting = "select count(*) from command where announced_at is null"
        assert await signer.value(waiting) > 0
    finally:
        signer.publisher._bus = kept
    await signer.operations.outbox.flush()
    await asyncio.sleep(0.5)
    assert await signer.value(waiting) == 0
    recorded = [
        r
        for r in await signer.audited("operator.certificate-revoke")
        if r.target.certificate_sha256 == one(certificate)["fingerprint"]
    ]
    assert {r.outcome for r in recorded} == {"success"}
    assert await events_of(signer, certificate)


async def test_the_outbox_publishes_what_a_crashed_signer_left(signer: SignerStack) -> None:
    certificate = await issued(signer, "dev-orphan")
    known = await row(signer, certificate)
    async with signer.database.connection() as connection:
        await revocations.set_revocation(connection, known["issuance_id"], "superseded", None)
    await signer.operations.outbox.flush()
    await until_announced(signer, certificate)
    await asyncio.sleep(0.2)
    assert await events_of(signer, certificate)


async def test_a_change_during_publication_is_published_as_well(signer: SignerStack) -> None:
    certificate = await issued(signer, "dev-quick")
    known = await row(signer, certificate)

    class Slow(Bus):
        """Between publishing and marking, the certificate is released."""

        @override
        async def publish_confirmed(self, messages: Any, *, timeout_s: float = 5) -> list[int]:
            stored = await super().publish_confirmed(messages, timeout_s=timeout_s)
            if isinstance(messages[0], Outgoing) and "certificate.revoked" in messages[0].topic:
                async with signer.database.connection() as connection:
                    await revocations.set_revocation(connection, known["issuance_id"], None, None)
            return stored

    async with signer.database.connection() as connection:
        await revocations.set_revocation(connection, known["issuance_id"], revocations.HOLD, None)
    slow = Slow(signer.bus.client, signer.bus.inbox_prefix)
    slow_source = RevocationPublisher(signer.database, slow, "ca-signer/test").source()
    await drain(signer.database, slow_source)
    await signer.operations.outbox.flush()
    await until_announced(signer, certificate)
    serial = known["serial_number"]
    assert serial.hex() not in (await shard(signer, serial)).serials


async def test_expired_certificates_are_not_published_to_front_ends(signer: SignerStack) -> None:
    certificate = await issued(signer, "dev-over")
    known = await row(signer, certificate)
    async with signer.database.connection() as connection:
        await revocations.set_revocation(connection, known["issuance_id"], "superseded", None)
        await connection.execute(
            "update issuance set not_after = now() where certificate = $1", certificate
        )
    await signer.operations.revocations.publish("issuing")
    serial = known["serial_number"]
    assert serial.hex() not in (await shard(signer, serial)).serials
