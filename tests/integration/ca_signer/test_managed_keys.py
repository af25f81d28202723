"""Managed renewal with keys that ca-signer makes: sealed for one recipient, opened by openssl."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from cryptography.x509.oid import NameOID

from ca_signer.managed.key_generator import KeyGenerator
from ca_signer.revocation.after_rotation import RevokeAfterRotation
from estcore import ids
from estcore.est.cms.algorithms import AES128_CBC, AES128_WRAP, AES256_CBC, AES256_WRAP
from estcore.est.cms.envelope import SIGNED_DATA_OID, content_info
from estcore.est.cms.open import unseal
from estcore.est.serverkeygen import Capability, encode_capabilities
from estcore.messages.enrollment import Principal
from estcore.pki import der
from estcore.pki.profile import ManagedRenewal
from estsuite_testing.e2e_stack import same_key
from estsuite_testing.managed_stack import Managed, managed_stack
from estsuite_testing.platform import Platform
from estsuite_testing.rotation_events import publish_rotation

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def managed(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Managed]:
    folder = tmp_path_factory.mktemp("managed-keys")
    rules = {"same_key": False, "max_key_age": None, "server_key": True}
    async with managed_stack(platform, folder, **rules) as stack:
        signer = stack.signer
        stop = asyncio.Event()
        proofs = RevokeAfterRotation(
            signer.bus, signer.database, signer.publisher, signer.decision_context
        )
        running = asyncio.ensure_future(proofs.run(stop))
        try:
            yield stack
        finally:
            stop.set()
            await running


def allow(managed: Managed, *key_usage: str, **rules: Any) -> None:
    """Let certificates of the profile have these key usages, and managed renewal these rules."""
    context = managed.signer.decision_context
    profiles = dict(context.profiles.profiles)
    plain = profiles["service-mtls"]
    changes: dict[str, Any] = {"key_usage": key_usage}
    if rules:
        managed_rules = ManagedRenewal.model_validate(rules)
        changes["renewal"] = plain.renewal.model_copy(update={"managed": managed_rules})
    profiles["service-mtls"] = plain.model_copy(update=changes)
    changed = context.profiles.model_copy(update={"profiles": profiles})
    context.replace_rules(context.policy, changed, context.groups)


async def enroll(managed: Managed, key: Key, name: str = "", **changes: Any) -> bytes:
    common_name = name or f"dev-{ids.uuid7()}"
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    csr = x509.CertificateSigningRequestBuilder(subject).sign(key, SHA256())
    message = managed.signer.message(csr.public_bytes(Encoding.DER), **changes)
    certificate = (await managed.signer.ask(message)).certificate
    assert certificate is not None
    return certificate


def new_key(kind: str) -> Key:
    if kind == "ec":
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(65537, 2048)


async def by_openssl(
    sealed: bytes, key: Key, recipient: bytes, managed: Managed, folder: Path
) -> bytes:
    """Decrypt and verify as a client with openssl; returns the PKCS#8 inside."""
    await asyncio.to_thread(_write, folder, sealed, key, recipient)
    issuer = managed.signer.settings.issuers[0]
    authorities = issuer.certificate_file.read_bytes() + issuer.chain_file.read_bytes()
    (folder / "roots.pem").write_bytes(authorities)
    await _openssl(
        folder, "cms", "-decrypt", "-binary", "-inform", "DER", "-in", "sealed.der",
        "-recip", "recipient.pem", "-inkey", "key.pem", "-out", "signed.der",
    )  # fmt: skip
    signed = content_info(SIGNED_DATA_OID, (folder / "signed.der").read_bytes())
    (folder / "message.der").write_bytes(signed)
    await _openssl(
        folder, "cms", "-verify", "-binary", "-inform", "DER", "-in", "message.der",
        "-CAfile", "roots.pem", "-purpose", "any", "-out", "package.der",
    )  # fmt: skip
    (private_key,) = der.children((folder / "package.der").read_bytes())
    return private_key


def _write(folder: Path, sealed: bytes, key: Key, recipient: bytes) -> None:
    (folder / "sealed.der").write_bytes(sealed)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(pem)
    certificate = x509.load_der_x509_certificate(recipient)
    (folder / "recipient.pem").write_bytes(certificate.public_bytes(Encoding.PEM))


async def _openssl(folder: Path, *arguments: str) -> None:
    run = await asyncio.to_thread(
        subprocess.run, ["openssl", *arguments], cwd=folder, capture_output=True, check=False
    )
    assert run.returncode == 0, run.stderr.decode()


def identifier(certificate: bytes) -> bytes:
    parsed = x509.load_der_x509_certificate(certificate)
    return parsed.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest


@pytest.mark.parametrize(("kind", "usage"), [("ec", "key_agreement"), ("rsa", "key_encipherment")])
async def test_a_new_key_is_sealed_for_the_certificate_that_is_renewed(
    managed: Managed, kind: str, usage: str, tmp_path: Path
) -> None:
    with managed.other_rules():
        allow(managed, "digital_signature", usage)
        key = new_key(kind)
        old = await enroll(managed, key)
        event = await managed.event(old)
        await managed.request(event, times=2)
        new = await managed.renewed(old)
        await managed.request(await managed.event(old, fence=2))
        answers = [await managed.fetch(old), await managed.fetch(old)]
    assert len(await managed.successors(old)) == 1
    assert answers[0] == answers[1]
    sealed = answers[0].sealed_key
    assert sealed is not None
    assert answers[0].certificate == new
    private = await by_openssl(sealed, key, old, managed, tmp_path)
    generated = load_der_private_key(private, None)
    certificate = x509.load_der_x509_certificate(new)
    assert same_key(certificate, generated)
    assert not same_key(certificate, key)
    assert type(generated) is type(key)
    assert certificate.subject == x509.load_der_x509_certificate(old).subject
    # Nothing of the key is readable in the ledger.
    dump = await managed.signer.rows("select i::text from issuance i")
    dump += await managed.signer.rows("select m::text from managed_issuance m")
    assert len(dump) > 2
    assert not any(_secret(generated) in row[0] for row in dump)
    signed = unseal(sealed, key_identifier=identifier(old), opening_key=key)
    usages = signed.signer.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [u.dotted_string for u in usages] == ["1.3.6.1.5.5.7.3.32"]


async def test_a_new_key_is_sealed_for_the_certificate_that_the_enrollment_named(
    managed: Managed, tmp_path: Path
) -> None:
    """The device enrolled with a certificate that can decrypt; those it gets here cannot."""
    with managed.other_rules():
        allow(managed, "digital_signature", "key_agreement")
        device = new_key("ec")
        identity = await enroll(managed, device, "dev-identity")
        allow(managed, "digital_signature")
        wanted = (Capability(AES128_CBC), Capability(AES128_WRAP))
        first = await enroll(
            managed,
            new_key("ec"),
            operation="serverkeygen",
            principal=_holder(identity),
            key_capabilities=encode_capabilities(wanted),
        )
        current, sealed = first, b""
        for _ in range(2):  # the recipient stays for all rotations
            await managed.request(await managed.event(current))
            renewed = await managed.renewed(current)
            answer = await managed.fetch(current)
            assert answer.sealed_key is not None
            sealed = answer.sealed_key
            private = await by_openssl(sealed, device, identity, managed, tmp_path)
            assert same_key(
                x509.load_der_x509_certificate(renewed), load_der_private_key(private, None)
            )
            current = renewed
        assert der.oid(AES128_CBC) in sealed
        assert der.oid(AES256_CBC) not in sealed
        assert der.oid(AES256_WRAP) not in sealed


def _secret(key: object) -> str:
    """The part of a private key that is in no public key, as PostgreSQL prints octets."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.private_numbers().private_value.to_bytes(32, "big").hex()
    assert isinstance(key, rsa.RSAPrivateKey)
    return key.private_numbers().p.to_bytes(128, "big").hex()


def _holder(certificate: bytes) -> Principal:
    subject = x509.load_der_x509_certificate(certificate).subject.rfc4514_string()
    return Principal(
        method="certificate",
        name=f"issuing/{subject}",
        certificate=certificate,
        certificate_issuer="issuing",
    )


@pytest.mark.parametrize(("age_d", "reason"), [(1, "lifetime"), (101, "lifetime"), (1, "incident")])
async def test_with_both_a_key_is_replaced_when_it_is_too_old_or_after_an_incident(
    managed: Managed, age_d: int, reason: str
) -> None:
    with managed.other_rules():
        allow(
            managed, "digital_signature", "key_agreement",
            same_key=True, max_key_age="100d", server_key=True,
        )  # fmt: skip
        key = new_key("ec")
        old = await enroll(managed, key)
        await managed.signer.value(
            "update key_binding set created_at = now() - make_interval(days => $2) "
            "where spki_sha256 = (select spki_sha256 from issuance where certificate_sha256 = $1)",
            sha256(old).digest(),
            age_d,
        )
        event = (await managed.event(old)).model_copy(update={"reason": reason})
        await managed.request(event)
        new = x509.load_der_x509_certificate(await managed.renewed(old))
        answer = await managed.fetch(old)
    replaced = age_d > 100 or reason == "incident"
    assert same_key(new, key) is not replaced
    assert (answer.sealed_key is not None) is replaced


@pytest.mark.parametrize(
    "code", ["managed.recipient", "managed.keygen", "managed.recipient_ended", "keygen.algorithms"]
)
async def test_a_key_that_cannot_be_sealed_as_it_must_is_not_made(
    managed: Managed, code: str
) -> None:
    with managed.other_rules() as context:
        allow(managed, "digital_signature", "key_agreement")
        identity = await enroll(managed, new_key("ec"), "dev-identity")
        weak = (Capability("1.2.840.113549.3.7"), Capability(AES128_CBC))  # no key wrap
        changes: dict[str, Any] = {}
        if code == "managed.recipient":
            allow(managed, "digital_signature")
        if code in {"managed.recipient_ended", "keygen.algorithms"}:
            changes = {
                "operation": "serverkeygen",
                "principal": _holder(identity),
                "key_capabilities": encode_capabilities(weak),
            }
        old = await enroll(managed, new_key("ec"), **changes)
        if code == "managed.recipient_ended":
            await managed.signer.mark_revoked(identity)
        if code == "managed.keygen":
            labels = dict(context.policy.labels)
            operations = ("simpleenroll", "simplereenroll")
            labels["services"] = labels["services"].model_copy(update={"operations": operations})
            context.policy = context.policy.model_copy(update={"labels": labels})
        event = await managed.event(old)
        await managed.request(event)
        refused = await managed.refused(event)
        assert refused.code == code
        assert not await managed.successors(old)


async def test_an_intent_with_a_sealed_key_is_finished_after_a_crash(
    managed: Managed, tmp_path: Path
) -> None:
    """The key that was sealed with the intent is the one of the certificate."""
    signer = managed.signer
    with managed.other_rules():
        allow(managed, "digital_signature", "key_agreement")
        key = new_key("ec")
        old = await enroll(managed, key)
        event = await managed.event(old)
        generator = KeyGenerator(signer.decision_context, signer.resolver, signer.cycle)
        left = await managed.leave_intent(event, old, generator)
        await managed.request(event)
        await signer.expire_lease(left)
        new = x509.load_der_x509_certificate(await managed.renewed(old))
        assert new.serial_number == left.serial_number
        answer = await managed.fetch(old)
    assert answer.sealed_key is not None
    private = await by_openssl(answer.sealed_key, key, old, managed, tmp_path)
    assert same_key(new, load_der_private_key(private, None))


async def test_a_sealed_key_is_deleted_when_its_certificate_is_proven_or_expires(
    managed: Managed,
) -> None:
    with managed.other_rules():
        allow(managed, "digital_signature", "key_agreement")
        old, other = [await enroll(managed, new_key("ec")) for _ in range(2)]
        renewed = []
        for certificate in (old, other):
            await managed.request(await managed.event(certificate))
            renewed.append(await managed.renewed(certificate))
            assert (await managed.fetch(certificate)).sealed_key is not None
        await publish_rotation(managed.renewal, old, renewed[0], "activated")

        async def sealed(certificate: bytes) -> bool:
            sql = (
                "select m.sealed_key is not null from managed_issuance m "
                "join issuance using (issuance_id) where certificate_sha256 = $1"
            )
            return bool(await managed.signer.value(sql, sha256(certificate).digest()))

        async with asyncio.timeout(10):
            while await sealed(renewed[0]):
                await asyncio.sleep(0.05)
        answer = await managed.fetch(old)
        assert (answer.outcome, answer.code) == ("rejected", "renewed.key_deleted")
        assert await sealed(renewed[1])
        # Whose key is that of the new certificate asks for no key.
        assert (await managed.fetch(renewed[0], named=old)).certificate == renewed[0]
        await managed.signer.expire_certificate(renewed[1])
        await managed.renewals.store.forget_expired_keys()
        assert not await sealed(renewed[1])
