"""Completing a restored ledger: what comes back, what is refused, and that it may be repeated."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from ca_signer.recovery.audit_log import AuditLogContents, check_issued, read_records
from ca_signer.recovery.event_stream import announced
from ca_signer.recovery.restore import Restored, Restorer
from estcore.errors import Conflict, MalformedRequest
from estcore.messages.audit import AuditRecord
from estcore.messages.enrollment import EnrollmentRequested
from estsuite_testing.e2e_stack import make_csr
from estsuite_testing.operators import TestOperator, operator, policy_with_operators
from estsuite_testing.platform import Platform
from estsuite_testing.signer_stack import SignerStack, signer_stack

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def signer(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SignerStack]:
    folder: Path = tmp_path_factory.mktemp("reconcile")
    async with signer_stack(platform, folder, policy_file=policy_with_operators(folder)) as stack:
        yield stack


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def boss(signer: SignerStack) -> TestOperator:
    return await operator(signer, "CN=boss")


async def issued(signer: SignerStack, name: str) -> tuple[EnrollmentRequested, bytes]:
    message = signer.message(make_csr(name)[1])
    answer = await signer.ask(message)
    assert answer.certificate is not None
    return message, answer.certificate


async def records(signer: SignerStack, name: str) -> list[dict[str, Any]]:
    """What is on record of a subject, as an export has it."""
    await signer.operations.outbox.flush()
    await signer.cycle.flush_unpublished()
    async with asyncio.timeout(10):
        while True:
            await signer.audited("")
            # Published twice, as may be; the log keeps one of each.
            once = {r.record_id: r for r in signer.records}.values()
            found = [r for r in once if r.target.subject == f"CN={name}"]
            if any(r.action == "certificate.issue" and r.phase == "outcome" for r in found):
                return [r.model_dump(mode="json", exclude_none=True) for r in found]
            await asyncio.sleep(0.02)


def read(signer: SignerStack, found: list[dict[str, Any]]) -> AuditLogContents:
    return read_records(found, signer.decision_context.profiles)


async def restored(signer: SignerStack, outcomes: AuditLogContents) -> Restored:
    return await Restorer(signer.bus, signer.database).restore(outcomes)


async def forget(platform: Platform, name: str) -> None:
    """Make the ledger one from before a subject was enrolled."""
    connection = await platform.postgres.superuser()
    try:
        await connection.execute("set search_path to ca_signer")
        which = "(select {} from issuance where subject = $1)"
        subject = f"CN={name}"
        for table, column in (
            ("enrollment", "issuance_id"),
            ("fingerprint", "issuance_id"),
            ("key_binding", "spki_sha256"),
            ("unannounced", "issuance_id"),
        ):
            sql = f"delete from {table} where {column} in {which.format(column)}"
            await connection.execute(sql, subject)
        await connection.execute("delete from issuance where subject = $1", subject)
    finally:
        await connection.close()


async def test_what_was_lost_comes_back_as_it_was(
    signer: SignerStack, platform: Platform, boss: TestOperator
) -> None:
    message, certificate = await issued(signer, "dev-lost")
    fingerprint = sha256(certificate).hexdigest()
    await boss.give(signer, "certificate-hold", {"fingerprint": fingerprint})
    sql = "select * from issuance where subject = 'CN=dev-lost'"
    (before,) = await signer.rows(sql)
    found = read(signer, await records(signer, "dev-lost"))
    for one in found.issued.values():
        check_issued(one, signer.decision_context.issuers)
    assert await restored(signer, found) == Restored()
    await forget(platform, "dev-lost")

    done = await restored(signer, found)
    assert (done.issued, done.given_up, done.revocations) == (1, 0, 1)
    (after,) = await signer.rows(sql)
    same = set(before.keys()) - {
        "context", "created_at", "fence", "lease_until", "revocation_announced_at",
        "revocation_changed_at", "revoked_at", "sign_before",
    }  # fmt: skip
    assert {k: after[k] for k in same} == {k: before[k] for k in same}
    assert abs((after["revoked_at"] - before["revoked_at"]).total_seconds()) < 5
    assert await restored(signer, found) == Restored()
    # Released again, the same request is answered with the same certificate.
    await boss.give(signer, "certificate-unhold", {"fingerprint": fingerprint})
    again = await signer.ask(signer.message(message.csr))
    assert again.certificate == certificate


async def test_the_last_of_hold_and_release_counts(
    signer: SignerStack, platform: Platform, boss: TestOperator
) -> None:
    for name, verbs in {
        "dev-held": ["hold"],
        "dev-free": ["hold", "unhold"],
        "dev-gone": ["hold", "unhold", "revoke"],
    }.items():
        _, certificate = await issued(signer, name)
        for verb in verbs:
            arguments = {"fingerprint": sha256(certificate).hexdigest()}
            more = {"reason": "superseded"} if verb == "revoke" else {}
            await boss.give(signer, f"certificate-{verb}", arguments | more)
        found = read(signer, await records(signer, name))
        await forget(platform, name)
        await restored(signer, found)
        sql = "select revocation_reason from issuance where subject = $1"
        reason = {"dev-held": "certificateHold", "dev-gone": "superseded"}.get(name)
        assert await signer.value(sql, f"CN={name}") == reason


async def test_a_revocation_that_was_only_announced_comes_back_too(
    signer: SignerStack, platform: Platform, boss: TestOperator
) -> None:
    """Where the audit log lost or never had the record."""
    _, certificate = await issued(signer, "dev-incident")
    arguments = {"fingerprint": sha256(certificate).hexdigest(), "reason": "keyCompromise"}
    await boss.give(signer, "certificate-revoke", arguments)
    kept = [r for r in await records(signer, "dev-incident") if "operator" not in r["action"]]
    found = read(signer, kept)
    assert not found.changes
    await forget(platform, "dev-incident")
    assert (await restored(signer, found)).revocations == 1
    sql = "select revocation_reason from issuance where subject = 'CN=dev-incident'"
    assert await signer.value(sql) == "keyCompromise"


async def test_what_a_bulk_revocation_revoked_comes_back(
    signer: SignerStack, platform: Platform, boss: TestOperator
) -> None:
    _, certificate = await issued(signer, "dev-incident-member")
    revoker = await operator(signer, "CN=revoker")
    sql = "select encode(spki_sha256, 'hex') from issuance where subject = 'CN=dev-incident-member'"
    wanted = {"key_sha256": await signer.value(sql), "reason": "keyCompromise"}
    proposed = await boss.give(signer, "bulk-revocation-propose", wanted)
    assert proposed.result is not None
    await signer.operations.bulk_revocations.step()
    confirm = {"id": proposed.result["id"], "count": 1}
    assert (await revoker.give(signer, "bulk-revocation-confirm", confirm)).outcome == "done"
    await asyncio.sleep(0.3)
    await signer.operations.bulk_revocations.step()
    await signer.operations.outbox.flush()
    await asyncio.sleep(0.5)
    found = read(signer, await records(signer, "dev-incident-member"))
    assert [c.reason for c in found.changes.values()] == ["keyCompromise"]
    # A ledger that has the certificate and forgot that it was revoked.
    connection = await platform.postgres.superuser()
    for sql in (
        "update ca_signer.issuance set revoked_at = null, revocation_reason = null, "
        "revocation_changed_at = null, revocation_announced_at = null "
        "where certificate_sha256 = $1",
        "update ca_signer.certificate set revoked_at = null where issuance_id = "
        "(select issuance_id from ca_signer.issuance where certificate_sha256 = $1)",
    ):
        await connection.execute(sql, sha256(certificate).digest())
    await connection.close()
    assert (await restored(signer, found)).revocations == 1
    sql = (
        "select i.revocation_reason, i.revoked_by, c.revoked_at is not null as listed "
        "from issuance i join certificate c using (issuance_id) where certificate_sha256 = $1"
    )
    (row,) = await signer.rows(sql, sha256(certificate).digest())
    assert tuple(row) == ("keyCompromise", f"bulk-revocation:{confirm['id']}", True)


async def test_an_intent_without_outcome_keeps_its_serial_number_until_the_outcome_comes(
    signer: SignerStack, platform: Platform
) -> None:
    _, certificate = await issued(signer, "dev-half")
    everything = await records(signer, "dev-half")
    intents = [r for r in everything if r["phase"] == "intent"]
    await forget(platform, "dev-half")
    sql = "select state, serial_number, certificate from issuance where subject = 'CN=dev-half'"
    assert (await restored(signer, read(signer, intents))).given_up == 1
    (row,) = await signer.rows(sql)
    assert row["state"] == "abandoned"
    serial = x509.load_der_x509_certificate(certificate).serial_number
    assert int.from_bytes(row["serial_number"], "big") == serial
    assert (await restored(signer, read(signer, intents))).given_up == 0
    # A later export has the outcome.
    assert (await restored(signer, read(signer, everything))).issued == 1
    (row,) = await signer.rows(sql)
    assert (row["state"], row["certificate"]) == ("issued", certificate)


async def test_records_of_before_come_back_without_their_enrollment(
    signer: SignerStack, platform: Platform
) -> None:
    message, certificate = await issued(signer, "dev-old")
    found = await records(signer, "dev-old")
    for record in found:
        record.pop("details", None)
    await forget(platform, "dev-old")
    assert (await restored(signer, read(signer, found))).issued == 1
    again = await signer.ask(signer.message(message.csr))
    assert again.certificate not in {None, certificate}


async def test_a_key_of_another_owner_is_refused(signer: SignerStack, platform: Platform) -> None:
    await issued(signer, "dev-theirs")
    found = read(signer, await records(signer, "dev-theirs"))
    await forget(platform, "dev-theirs")
    (name,) = found.issued
    spki = found.issued[name].intent.spki_sha256
    async with signer.database.connection() as connection:
        sql = "insert into key_binding (spki_sha256, tenant, service) values ($1, 'x', 'y')"
        await connection.execute(sql, spki)
    with pytest.raises(Conflict) as refused:
        await restored(signer, found)
    assert refused.value.code == "reconcile.owner"
    assert await signer.value("select count(*) from issuance where subject = 'CN=dev-theirs'") == 0


async def test_another_issuance_of_the_same_request_is_not_overwritten(
    signer: SignerStack, platform: Platform
) -> None:
    await issued(signer, "dev-twice")
    found = read(signer, await records(signer, "dev-twice"))
    (name,) = found.issued
    one = found.issued.pop(name)
    other = "01900000-0000-7000-8000-000000000000"
    found.issued[other] = replace(one, intent=replace(one.intent, issuance_id=other))
    with pytest.raises(Conflict) as refused:
        await restored(signer, found)
    assert refused.value.code == "reconcile.conflict"


@pytest.mark.parametrize(
    "change", ["serial", "spki_sha256", "not_after", "certificate", "issuer_id"]
)
async def test_a_certificate_that_is_not_what_its_record_says_is_refused(
    signer: SignerStack, change: str
) -> None:
    await issued(signer, "dev-forged")
    found = [r for r in await records(signer, "dev-forged") if r["phase"] == "outcome"][-1:]
    wrong = {
        "serial": "0102",
        "spki_sha256": "00" * 32,
        "not_after": "2099-01-01T00:00:00Z",
        "certificate": base64.b64encode(_self_signed(found[0]["target"]["certificate"])).decode(),
        "issuer_id": "foreign",
    }
    found[0]["target"][change] = wrong[change]
    (one,) = read(signer, found).issued.values()
    with pytest.raises(MalformedRequest) as refused:
        check_issued(one, signer.decision_context.issuers)
    assert refused.value.code.startswith("reconcile.")


def _self_signed(certificate: str) -> bytes:
    """The same names and times, signed by a different CA."""
    like = x509.load_der_x509_certificate(base64.b64decode(certificate))
    builder = x509.CertificateBuilder(
        like.issuer,
        like.subject,
        like.public_key(),
        like.serial_number,
        like.not_valid_before_utc,
        like.not_valid_after_utc,
    )
    return builder.sign(ec.generate_private_key(ec.SECP256R1()), SHA256()).public_bytes(
        Encoding.DER
    )


@pytest.mark.parametrize("gone", ["issuance_id", "tenant", "serial", "certificate", "issued_at"])
async def test_a_record_that_lacks_something_stops_everything(
    signer: SignerStack, gone: str
) -> None:
    await issued(signer, "dev-gap")
    found = [r for r in await records(signer, "dev-gap") if r["phase"] == "outcome"][-1:]
    AuditRecord.model_validate(found[0])
    del found[0]["target"][gone]
    with pytest.raises(MalformedRequest) as refused:
        read(signer, found)
    assert refused.value.code == "reconcile.record"


async def test_the_bus_has_certificates_that_the_log_has_lost_too(
    signer: SignerStack, platform: Platform
) -> None:
    message, certificate = await issued(signer, "dev-both")
    name = await signer.value("select issuance_id from issuance where subject = 'CN=dev-both'")
    sql = "select {} from issuance where subject = 'CN=dev-both'"
    columns = "tenant, service, slot_id, profile, certificate, issued_at, request_id, san"
    before = await signer.rows(sql.format(columns))
    async with asyncio.timeout(10):
        while not (
            found := [i for i in await announced(signer.bus, ()) if i.certificate == certificate]
        ):
            await asyncio.sleep(0.1)
    assert str(name) not in {i.intent.issuance_id for i in await announced(signer.bus, {str(name)})}
    for one in found:
        check_issued(one, signer.decision_context.issuers)
    await forget(platform, "dev-both")
    lost = AuditLogContents(issued={str(name): found[0]})
    assert (await restored(signer, lost)).issued == 1
    assert await signer.rows(sql.format(columns)) == before
    # It does not know which request it was for: that one gets another certificate.
    again = await signer.ask(signer.message(message.csr))
    assert again.certificate not in {None, certificate}
