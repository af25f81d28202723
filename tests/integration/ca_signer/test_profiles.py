"""Profiles at work: what the ledger holds and the certificate says, and what the ledger limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from estcore import ids
from estcore.messages.enrollment import EnrollmentAnswered, EnrollmentRequested, Principal
from estcore.pki.names import parse_name
from estsuite_testing.platform import Platform
from estsuite_testing.signer_stack import EVERY_FEATURE, SignerStack, signer_stack

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def signer(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SignerStack]:
    folder: Path = tmp_path_factory.mktemp("signer")
    policy = folder / "policy.yaml"
    policy.write_text(
        """
default_label: services
labels:
  services: {issuer: issuing, profiles: [service-mtls]}
  careful: {issuer: issuing, profiles: [demo]}
rules:
  - name: load
    principal: {secret: load}
    owner: {tenant: test, service: load}
    labels: [services, careful]
    profiles: [service-mtls, demo]
    names: {common_names: ["dev-*"]}
"""
    )
    groups = {"default": {"labels": ["services", "careful"], "profiles": ["service-mtls", "demo"]}}
    async with signer_stack(
        platform, folder, policy_file=policy, profiles_file=EVERY_FEATURE, groups=groups
    ) as stack:
        yield stack


def csr(common_name: str, *extensions: x509.ExtensionType, subject: str = "") -> bytes:
    name = parse_name(subject or f"CN={common_name},O=Whatever")
    builder = x509.CertificateSigningRequestBuilder(name)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    made = builder.sign(ec.generate_private_key(ec.SECP256R1()), SHA256())
    return made.public_bytes(Encoding.DER)


def certificate(answer: EnrollmentAnswered) -> x509.Certificate:
    assert answer.certificate is not None, answer
    return x509.load_der_x509_certificate(answer.certificate)


def renewal(signer: SignerStack, current: x509.Certificate) -> EnrollmentRequested:
    """A renewal as RFC 7030 section 4.2.2 wants it: subject and SAN of the certificate."""
    san = current.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    builder = x509.CertificateSigningRequestBuilder(current.subject)
    builder = builder.add_extension(san, critical=False)
    made = builder.sign(ec.generate_private_key(ec.SECP256R1()), SHA256())
    principal = Principal(
        method="certificate",
        name=f"issuing/{current.subject.rfc4514_string()}",
        certificate=current.public_bytes(Encoding.DER),
        certificate_issuer="issuing",
    )
    return signer.message(
        made.public_bytes(Encoding.DER), operation="simplereenroll", principal=principal
    )


async def test_templates_make_the_names_and_renewal_keeps_names_and_slot(
    signer: SignerStack,
) -> None:
    name = f"dev-{ids.uuid7()}"
    first = certificate(await signer.ask(signer.message(csr(name))))
    assert first.subject == parse_name(f"O=Clinic,OU=load,CN={name}")
    san = first.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.UniformResourceIdentifier) == [
        "spiffe://clinic.example/test/load"
    ]
    second = certificate(await signer.ask(renewal(signer, first)))
    assert (second.subject, second.serial_number) != (first.subject, first.serial_number)
    assert second.subject == first.subject
    rows = await signer.rows(
        "select slot_id, subject, san from issuance where subject like $1", f"%{name}%"
    )
    assert len(rows) == 2
    assert len({(r["slot_id"], r["subject"], r["san"]) for r in rows}) == 1
    assert rows[0]["subject"] == f"O=Clinic,OU=load,CN={name}"


async def test_a_requested_usage_is_given_where_it_may_be_asked(signer: SignerStack) -> None:
    asked = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    plain = certificate(await signer.ask(signer.message(csr(f"dev-{ids.uuid7()}"))))
    server = certificate(await signer.ask(signer.message(csr(f"dev-{ids.uuid7()}", asked))))
    usages = [
        list(c.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        for c in (plain, server)
    ]
    assert usages == [
        [ExtendedKeyUsageOID.CLIENT_AUTH],
        [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH],
    ]
    unsafe = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])
    refused = await signer.ask(signer.message(csr(f"dev-{ids.uuid7()}", unsafe)))
    assert (refused.outcome, refused.code) == ("rejected", "profile.extension")


async def test_N2_an_identity_has_only_so_many_good_certificates(signer: SignerStack) -> None:
    name = f"dev-{ids.uuid7()}"
    answers = await asyncio.gather(*(signer.ask(signer.message(csr(name))) for _ in range(5)))
    outcomes = sorted(a.code or a.outcome for a in answers)
    assert outcomes == ["issued", "issued", *["profile.max_active"] * 3]
    await signer.rows(
        "update issuance set revoked_at = now(), revocation_reason = 'superseded' "
        "where issuance_id = (select issuance_id from issuance where subject like $1 limit 1)",
        f"%{name}%",
    )
    assert (await signer.ask(signer.message(csr(name)))).outcome == "issued"


async def test_a_profile_can_demand_approval(signer: SignerStack) -> None:
    answer = await signer.ask(
        signer.message(csr("", subject=f"CN=dev-{ids.uuid7()}"), label="careful")
    )
    assert answer.outcome == "pending"
