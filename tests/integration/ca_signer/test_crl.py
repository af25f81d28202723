"""CRLs: correct, fresh, numbered once; checked with openssl and pkilint."""

from __future__ import annotations

import asyncio
import datetime as dt
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ca_signer.ledger import revocations
from ca_signer.revocation.crl import CRLPublisher
from estcore.errors import KeyStoreUnavailable
from estcore.messages import topics
from estcore.messages.envelope import decode
from estcore.messages.state import RevocationList
from estcore.runtime.stored_messages import last_values
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


async def issued(signer: SignerStack, name: str) -> x509.Certificate:
    answer = await signer.ask(signer.message(make_csr(name)[1]))
    assert answer.certificate is not None
    return x509.load_der_x509_certificate(answer.certificate)


def fingerprint(certificate: x509.Certificate) -> dict[str, Any]:
    from cryptography.hazmat.primitives.hashes import SHA256

    return {"fingerprint": certificate.fingerprint(SHA256()).hex()}


async def published(signer: SignerStack) -> RevocationList:
    topic = topics.crl_topic("issuing")
    (stored,) = await last_values(signer.frontend, topics.PKI_STATE, topic)
    return decode(RevocationList, stored.payload)


async def refreshed(signer: SignerStack) -> tuple[RevocationList, x509.CertificateRevocationList]:
    await signer.operations.lists.refresh()
    found = await published(signer)
    return found, x509.load_der_x509_crl(found.crl)


async def test_a_revoked_certificate_is_on_the_next_list(
    signer: SignerStack, boss: TestOperator
) -> None:
    certificate, other = await issued(signer, "dev-listed"), await issued(signer, "dev-not-listed")
    before, _ = await refreshed(signer)
    arguments = fingerprint(certificate) | {"reason": "keyCompromise"}
    await boss.give(signer, "certificate-revoke", arguments)
    after, crl = await refreshed(signer)
    assert after.number == before.number + 1
    entry = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
    assert entry is not None
    reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    assert reason is x509.ReasonFlags.key_compromise
    assert crl.get_revoked_certificate_by_serial_number(other.serial_number) is None


async def test_a_list_that_is_right_and_fresh_is_kept(signer: SignerStack) -> None:
    first, _ = await refreshed(signer)
    again, _ = await refreshed(signer)
    assert again == first


async def test_a_held_certificate_comes_and_goes(signer: SignerStack, boss: TestOperator) -> None:
    certificate = await issued(signer, "dev-held")
    await boss.give(signer, "certificate-hold", fingerprint(certificate))
    _, crl = await refreshed(signer)
    assert crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None
    await boss.give(signer, "certificate-unhold", fingerprint(certificate))
    _, crl = await refreshed(signer)
    assert crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is None


async def test_a_list_is_made_anew_after_half_its_lifetime(signer: SignerStack) -> None:
    first, _ = await refreshed(signer)
    await signer.shorten_crl(dt.timedelta(hours=11))
    again, crl = await refreshed(signer)
    assert again.number > first.number
    assert crl.next_update_utc is not None
    assert crl.next_update_utc - crl.last_update_utc == dt.timedelta(days=1)


async def test_an_expired_certificate_stays_for_one_more_list_and_then_goes(
    signer: SignerStack, boss: TestOperator
) -> None:
    """RFC 5280 3.3: "An entry MUST NOT be removed from the CRL until it appears on one
    regularly scheduled CRL issued beyond the revoked certificate's validity period."
    """
    certificate = await issued(signer, "dev-expired")
    await boss.give(
        signer, "certificate-revoke", fingerprint(certificate) | {"reason": "superseded"}
    )
    await refreshed(signer)
    der = certificate.public_bytes(Encoding.DER)
    for hours, there in ((1, True), (25, False)):
        await signer.expire_certificate(der, dt.timedelta(hours=hours))
        await signer.shorten_crl()
        _, crl = await refreshed(signer)
        entry = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
        assert (entry is not None) is there


async def test_two_signers_use_a_number_once(signer: SignerStack) -> None:
    certificate = await issued(signer, "dev-numbers")
    row = await signer.rows(
        "select issuance_id from issuance where certificate = $1",
        certificate.public_bytes(Encoding.DER),
    )
    async with signer.database.connection() as connection:
        await revocations.set_revocation(connection, row[0]["issuance_id"], "superseded", None)
    issuers = signer.decision_context.issuers
    others = [
        CRLPublisher(signer.database, signer.bus, issuers, lifetime_s=86_400) for _ in range(5)
    ]
    made: list[bytes] = []
    issuer = issuers["issuing"]
    kept = issuer.keystore.sign

    async def noting(tbs: bytes) -> bytes:
        made.append(tbs)
        return await kept(tbs)

    issuer.keystore.sign = noting  # type: ignore[method-assign]
    try:
        await asyncio.gather(*(one.refresh() for one in others))
    finally:
        issuer.keystore.sign = kept  # type: ignore[method-assign]
    assert len(set(made)) == len(made) >= 1
    stored = await signer.rows("select * from crl where issuer_id = 'issuing'")
    assert stored[0]["number"] == stored[0]["last_number"]
    _, crl = await refreshed(signer)
    assert crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None


async def test_an_unavailable_key_store_keeps_the_old_crl(
    signer: SignerStack, boss: TestOperator
) -> None:
    first, _ = await refreshed(signer)
    certificate = await issued(signer, "dev-later")
    await boss.give(
        signer, "certificate-revoke", fingerprint(certificate) | {"reason": "superseded"}
    )
    issuer = signer.decision_context.issuers["issuing"]
    kept = issuer.keystore.sign

    async def unavailable(tbs: bytes) -> bytes:
        raise KeyStoreUnavailable("the token is unavailable")

    issuer.keystore.sign = unavailable  # type: ignore[method-assign]
    try:
        assert (await refreshed(signer))[0] == first
    finally:
        issuer.keystore.sign = kept  # type: ignore[method-assign]
    after, crl = await refreshed(signer)
    assert after.number > first.number
    assert crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None


@pytest.mark.logs_errors(
    "CRL not signed",
)
async def test_a_wrong_signature_is_never_published(signer: SignerStack) -> None:
    first, _ = await refreshed(signer)
    await signer.shorten_crl()
    issuer = signer.decision_context.issuers["issuing"]
    kept = issuer.keystore.sign

    async def lying(tbs: bytes) -> bytes:
        return await kept(tbs + b"x")

    issuer.keystore.sign = lying  # type: ignore[method-assign]
    try:
        assert (await refreshed(signer))[0].number == first.number
    finally:
        issuer.keystore.sign = kept  # type: ignore[method-assign]


async def test_N5_a_revocation_is_on_a_published_list_within_seconds(
    signer: SignerStack, boss: TestOperator
) -> None:
    certificate = await issued(signer, "dev-fast")
    stop = asyncio.Event()
    job = asyncio.ensure_future(signer.operations.lists.run(stop))
    try:
        await asyncio.sleep(0.5)
        await boss.give(
            signer, "certificate-revoke", fingerprint(certificate) | {"reason": "superseded"}
        )
        async with asyncio.timeout(5):
            while True:
                crl = x509.load_der_x509_crl((await published(signer)).crl)
                if crl.get_revoked_certificate_by_serial_number(certificate.serial_number):
                    break
                await asyncio.sleep(0.1)
    finally:
        stop.set()
        await job


async def test_openssl_and_pkilint_agree(
    signer: SignerStack, boss: TestOperator, tmp_path: Path
) -> None:
    bad, good = await issued(signer, "dev-bad"), await issued(signer, "dev-good")
    held = await issued(signer, "dev-held-too")
    await boss.give(signer, "certificate-hold", fingerprint(held))
    await boss.give(signer, "certificate-revoke", fingerprint(bad) | {"reason": "superseded"})
    found, crl = await refreshed(signer)
    (tmp_path / "crl.der").write_bytes(found.crl)
    (tmp_path / "crl.pem").write_bytes(crl.public_bytes(Encoding.PEM))
    for name, one in (("bad", bad), ("good", good), ("held", held)):
        (tmp_path / f"{name}.pem").write_bytes(one.public_bytes(Encoding.PEM))
    ca = Path(str(signer.settings.issuers[0].certificate_file))
    chain = tmp_path / "chain.pem"
    chain.write_bytes(ca.read_bytes() + signer.settings.issuers[0].chain_file.read_bytes())

    def openssl(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["openssl", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    verified = openssl("crl", "-in", "crl.pem", "-CAfile", str(chain), "-noout")
    assert "verify OK" in verified.stderr, verified
    text = openssl("crl", "-in", "crl.pem", "-noout", "-text").stdout
    assert "Certificate Hold" in text
    assert f"X509v3 CRL Number: \n                {found.number}" in text
    check = ("verify", "-crl_check", "-CAfile", str(chain), "-CRLfile", "crl.pem")
    assert openssl(*check, "good.pem").returncode == 0
    for name in ("bad", "held"):
        refused = openssl(*check, f"{name}.pem")
        assert refused.returncode != 0
        assert "certificate revoked" in refused.stderr
    lint = Path(sys.executable).parent / "lint_crl"
    command = [str(lint), "lint", "-t", "CRL", "-p", "PKIX", "-s", "NOTICE", "crl.der"]
    judged = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (judged.returncode, judged.stdout.strip()) == (0, ""), judged.stdout + judged.stderr
