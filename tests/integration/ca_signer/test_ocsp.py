"""OCSP: certificate status, signed by a responder's own key; checked with openssl and pkilint."""

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
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from ca_signer.revocation.ocsp_responder import OCSPResponder, responder_candidate
from ca_signer.settings import OCSPSettings
from ca_signer.signing.internal_issuance import TENANT
from est_frontend.auth.client_certificates import PeerValidator
from est_frontend.revocation.ocsp_relay import OCSPRelay
from est_frontend.settings import CRLListenSettings
from est_frontend.signer_state.cache import SignerState
from estcore.clock import SystemClock
from estcore.errors import MalformedRequest, NotAuthorized
from estcore.messages import topics
from estcore.pki import der
from estcore.pki.ocsp import MALFORMED, TRY_LATER, UNAUTHORIZED, read_question
from estcore.policy.internal_profiles import OCSP_RESPONDER_PROFILE
from estcore.runtime.bus import Bus
from estcore.runtime.stored_messages import last_values
from estsuite_testing.e2e_stack import make_csr
from estsuite_testing.operators import TestOperator, operator, policy_with_operators
from estsuite_testing.platform import Platform
from estsuite_testing.signer_stack import SignerStack, signer_stack

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

Status = ocsp.OCSPCertStatus
SHA1 = hashes.SHA1()  # noqa: S303 - names a certificate, as most clients do it


def responder(signer: SignerStack, **changes: int) -> OCSPResponder:
    return OCSPResponder(
        signer.bus,
        signer.database,
        signer.decision_context,
        resolver=signer.resolver,
        cycle=signer.cycle,
        settings=OCSPSettings(**changes),
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def signer(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SignerStack]:
    folder: Path = tmp_path_factory.mktemp("signer")
    policy = policy_with_operators(folder)
    async with signer_stack(platform, folder, policy_file=policy, lease_s=2) as stack:
        await responder(stack).renew()
        yield stack


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def boss(signer: SignerStack) -> TestOperator:
    return await operator(signer, "CN=boss")


def ca(signer: SignerStack) -> x509.Certificate:
    return signer.decision_context.issuers["issuing"].certificate.certificate


async def issued(signer: SignerStack, name: str) -> x509.Certificate:
    answer = await signer.ask(signer.message(make_csr(name)[1]))
    assert answer.certificate is not None
    return x509.load_der_x509_certificate(answer.certificate)


async def give(
    signer: SignerStack, boss: TestOperator, verb: str, one: x509.Certificate, **more: str
) -> None:
    arguments = {"fingerprint": one.fingerprint(hashes.SHA256()).hex(), **more}
    await boss.give(signer, verb, arguments)


def question(
    signer: SignerStack, serial_number: int, *, nonce: bytes | None = None, **more: Any
) -> bytes:
    issuer, algorithm = more.get("issuer", ca(signer)), more.get("algorithm", SHA1)
    key_bits = x509.SubjectKeyIdentifier.from_public_key(issuer.public_key()).digest
    if not isinstance(algorithm, hashes.SHA1):
        raw = issuer.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        key_bits = digest(algorithm, raw)
    builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(
        digest(algorithm, issuer.subject.public_bytes()), key_bits, serial_number, algorithm
    )
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return builder.build().public_bytes(Encoding.DER)


def digest(algorithm: hashes.HashAlgorithm, octets: bytes) -> bytes:
    hasher = hashes.Hash(algorithm)
    hasher.update(octets)
    return hasher.finalize()


async def ask(signer: SignerStack, request: bytes) -> bytes:
    return await signer.frontend.request(
        topics.ocsp_topic("issuing"), request, answered_by=("ca-signer",)
    )


async def standing(signer: SignerStack, serial_number: int, **more: Any) -> ocsp.OCSPResponse:
    octets = await ask(signer, question(signer, serial_number, **more))
    response = ocsp.load_der_ocsp_response(octets)
    assert response.response_status is ocsp.OCSPResponseStatus.SUCCESSFUL
    (own,) = response.certificates
    key = own.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(hashes.SHA256()))
    own.verify_directly_issued_by(ca(signer))
    return response


async def test_a_certificate_is_good_then_held_then_good_then_revoked(
    signer: SignerStack, boss: TestOperator
) -> None:
    certificate = await issued(signer, "dev-asked")
    number = certificate.serial_number
    assert (await standing(signer, number)).certificate_status is Status.GOOD
    await give(signer, boss, "certificate-hold", certificate)
    held = await standing(signer, number)
    assert held.revocation_reason is x509.ReasonFlags.certificate_hold
    await give(signer, boss, "certificate-unhold", certificate)
    assert (await standing(signer, number)).certificate_status is Status.GOOD
    await give(signer, boss, "certificate-revoke", certificate, reason="keyCompromise")
    revoked = await standing(signer, number)
    assert revoked.certificate_status is Status.REVOKED
    assert revoked.revocation_reason is x509.ReasonFlags.key_compromise
    assert revoked.revocation_time_utc is not None
    assert revoked.revocation_time_utc <= revoked.this_update_utc + dt.timedelta(seconds=1)
    assert revoked.next_update_utc == revoked.this_update_utc + dt.timedelta(hours=1)


@pytest.mark.parametrize("number", [1, 1 << 143 | 7, (1 << 158) + 5])
async def test_an_unissued_serial_number_is_unknown(signer: SignerStack, number: int) -> None:
    """RFC 6960 2.2: "The 'unknown' state indicates that the responder doesn't know about the
    certificate being requested"
    """
    assert (await standing(signer, number)).certificate_status is Status.UNKNOWN


async def test_an_abandoned_serial_number_is_revoked(signer: SignerStack) -> None:
    _, intent = await signer.leave_intent()
    assert (await standing(signer, intent.serial_number)).certificate_status is Status.UNKNOWN
    await signer.cycle.abandon(intent, NotAuthorized("given up", code="request.expired"))
    response = await standing(signer, intent.serial_number)
    assert response.certificate_status is Status.REVOKED
    assert response.revocation_reason is None


async def test_other_hashes_than_sha1_are_answered(signer: SignerStack) -> None:
    certificate = await issued(signer, "dev-sha256")
    response = await standing(signer, certificate.serial_number, algorithm=hashes.SHA256())
    assert response.certificate_status is Status.GOOD
    assert isinstance(response.hash_algorithm, hashes.SHA256)


@pytest.mark.parametrize("octets", [1, 16, 32, 128])
async def test_a_nonce_is_echoed(signer: SignerStack, octets: int) -> None:
    """RFC 9654 2.1: the responder copies the nonce of the request."""
    response = await standing(signer, 5, nonce=b"n" * octets)
    found = response.extensions.get_extension_for_class(x509.OCSPNonce).value
    assert found.nonce == b"n" * octets


async def test_without_nonce_there_is_none(signer: SignerStack) -> None:
    assert len((await standing(signer, 5)).extensions) == 0


async def test_what_is_no_request_is_malformed(signer: SignerStack) -> None:
    whole = question(signer, 5)
    ((one,),) = [der.children(part) for part in der.children(der.children(whole)[0])]
    two = der.tlv(0x30, der.tlv(0x30, der.tlv(0x30, one, one)))
    assert der.tlv(0x30, der.tlv(0x30, der.tlv(0x30, one))) == whole
    found = [two, b"", b"nonsense", whole[:-1], whole + b"\0", b"\x30" * 5000]
    found += [question(signer, 5, nonce=b"n" * size) for size in (0, 129)]
    for octets in found:
        assert await ask(signer, octets) == MALFORMED
        with pytest.raises(MalformedRequest):
            read_question(octets)


async def test_about_certificates_of_others_nothing_is_said(signer: SignerStack) -> None:
    root = x509.load_pem_x509_certificate(signer.settings.issuers[0].chain_file.read_bytes())
    assert await ask(signer, question(signer, 5, issuer=root)) == UNAUTHORIZED


async def test_the_responders_certificate_is_recorded_and_audited_like_every_other(
    signer: SignerStack,
) -> None:
    (own,) = (await standing(signer, 5)).certificates
    rows = await signer.rows(
        "select * from issuance where certificate = $1", own.public_bytes(Encoding.DER)
    )
    assert [(r["state"], r["tenant"], r["service"], r["profile"]) for r in rows] == [
        ("issued", TENANT, OCSP_RESPONDER_PROFILE, OCSP_RESPONDER_PROFILE)
    ]
    records = await signer.audited("certificate.issue")
    mine = [r for r in records if r.target.issuance_id == str(rows[0]["issuance_id"])]
    assert [r.phase for r in mine] == ["intent", "outcome"]
    eku = own.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(eku) == [ExtendedKeyUsageOID.OCSP_SIGNING]
    assert own.extensions.get_extension_for_class(x509.OCSPNoCheck) is not None
    usage = own.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign
    assert own.not_valid_after_utc - dt.datetime.now(dt.UTC) <= dt.timedelta(days=7)
    assert (await standing(signer, own.serial_number)).certificate_status is Status.GOOD


async def test_a_certificate_is_renewed_after_half_its_life_and_not_before(
    signer: SignerStack,
) -> None:
    count = "select count(*) from issuance where profile = 'ocsp-responder'"
    one = responder(signer, certificate_lifetime_s=86_400)
    before = await signer.value(count)
    await one.renew()
    await one.renew()
    assert await signer.value(count) == before + 1
    one._settings = OCSPSettings()  # of its seven days one is less than half
    await one.renew()
    assert await signer.value(count) == before + 2


async def test_an_intent_of_a_crashed_responder_is_abandoned(signer: SignerStack) -> None:
    issuer = signer.decision_context.issuers["issuing"]
    key = ec.generate_private_key(ec.SECP256R1())
    found = responder_candidate(key, issuer, signer.decision_context, dt.timedelta(days=7))
    assert await signer.ledger.insert([found.intent]) == {found.intent.issuance_id}
    await signer.expire_lease(found.intent)
    await signer.sweeper.sweep()
    assert (await signer.row_of(found.intent))["state"] == "abandoned"


@pytest.fixture
def state(signer: SignerStack, tmp_path: Path) -> SignerState:
    found = SignerState(tmp_path / "state", PeerValidator(SystemClock()).set_anchors, SystemClock())
    found.load()
    return found


async def known(signer: SignerStack, state: SignerState) -> SignerState:
    for stored in await last_values(signer.frontend, topics.PKI_STATE, "pki.state.>"):
        state.apply(stored.topic, stored.payload)
    return state


async def post(relay: OCSPRelay, body: bytes, path: str = "/ocsp/issuing") -> bytes:
    reader = asyncio.StreamReader()
    reader.feed_data(body)
    head = (
        f"POST {path} HTTP/1.1\r\nContent-Type: application/ocsp-request\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    answer = await relay.answer(head.encode(), reader)
    assert b"Cache-Control: no-store\r\n" in answer
    return answer.partition(b"\r\n\r\n")[2]


def unavailable_bus() -> Bus:
    return Bus.unconnected("est-frontend")


async def test_kept_answers_outlive_the_signer(
    signer: SignerStack, boss: TestOperator, state: SignerState
) -> None:
    good, bad = await issued(signer, "dev-kept"), await issued(signer, "dev-kept-bad")
    await give(signer, boss, "certificate-revoke", bad, reason="superseded")
    relay = OCSPRelay(
        signer.frontend, await known(signer, state), SystemClock(), CRLListenSettings()
    )
    asked = {n: question(signer, n) for n in (good.serial_number, bad.serial_number)}
    first = {n: await post(relay, one) for n, one in asked.items()}
    unseen, nonce = question(signer, 77), question(signer, good.serial_number, nonce=b"n" * 16)
    relay._bus = unavailable_bus()
    assert {n: await post(relay, one) for n, one in asked.items()} == first
    assert await post(relay, nonce) == first[good.serial_number]
    assert await post(relay, unseen) == TRY_LATER


async def test_a_kept_good_answer_ends_with_the_revocation(
    signer: SignerStack, boss: TestOperator, state: SignerState
) -> None:
    certificate = await issued(signer, "dev-kept-good")
    relay = OCSPRelay(signer.frontend, state, SystemClock(), CRLListenSettings())
    await known(signer, state)
    request = question(signer, certificate.serial_number)
    good = await post(relay, request)
    assert await post(relay, request) == good
    await give(signer, boss, "certificate-revoke", certificate, reason="superseded")
    async with asyncio.timeout(10):
        while not state.is_revoked("issuing", certificate.serial_number):
            await known(signer, state)
            await asyncio.sleep(0.1)
    there, relay._bus = relay._bus, unavailable_bus()
    assert await post(relay, request) == TRY_LATER
    relay._bus = there
    answer = ocsp.load_der_ocsp_response(await post(relay, request))
    assert answer.certificate_status is Status.REVOKED


async def test_only_so_many_answers_are_kept(signer: SignerStack, state: SignerState) -> None:
    relay = OCSPRelay(
        signer.frontend, await known(signer, state), SystemClock(), CRLListenSettings(), capacity=2
    )
    asked = [
        question(signer, (await issued(signer, f"dev-many-{n}")).serial_number) for n in range(3)
    ]
    for one in asked:
        await post(relay, one)
    await post(relay, question(signer, 99))  # unknown: not kept, nothing pushed out
    relay._bus = unavailable_bus()
    later = [await post(relay, one) == TRY_LATER for one in asked]
    assert later == [True, False, False]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("POST /ocsp/issuing HTTP/1.1\r\nContent-Type: text/plain\r\nContent-Length: 1", 415),
        ("POST /ocsp/issuing HTTP/1.1\r\nContent-Type: application/ocsp-request", 411),
        (
            "POST /ocsp/issuing HTTP/1.1\r\nContent-Type: application/ocsp-request\r\n"
            "Content-Length: 4097",
            413,
        ),
        ("PUT /ocsp/issuing HTTP/1.1", 405),
        ("GET /ocsp/other/MAo= HTTP/1.1", 404),
        ("GET /ocsp/ HTTP/1.1", 404),
    ],
)
async def test_other_http_requests_are_refused(
    signer: SignerStack, state: SignerState, head: str, status: int
) -> None:
    relay = OCSPRelay(
        signer.frontend, await known(signer, state), SystemClock(), CRLListenSettings()
    )
    answer = await relay.answer(f"{head}\r\n\r\n".encode(), asyncio.StreamReader())
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())


async def test_pkilint_and_openssl_agree(
    signer: SignerStack, boss: TestOperator, tmp_path: Path
) -> None:
    certificate = await issued(signer, "dev-linted")
    octets = b""
    for step in ("good", "revoked"):
        octets = await ask(signer, question(signer, certificate.serial_number))
        (tmp_path / f"{step}.der").write_bytes(octets)
        await give(signer, boss, "certificate-revoke", certificate, reason="superseded")
    (tmp_path / "unknown.der").write_bytes(await ask(signer, question(signer, 5)))
    (own,) = ocsp.load_der_ocsp_response(octets).certificates
    (tmp_path / "own.pem").write_bytes(own.public_bytes(Encoding.PEM))
    (tmp_path / "one.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    settings = signer.settings.issuers[0]
    chain = settings.certificate_file.read_bytes() + settings.chain_file.read_bytes()
    (tmp_path / "chain.pem").write_bytes(chain)
    folder = Path(sys.executable).parent
    commands = [
        [folder / "lint_ocsp_response", "lint", "-s", "NOTICE", f"{n}.der"]
        for n in ("good", "revoked", "unknown")
    ]
    commands.append([folder / "lint_pkix_cert", "lint", "-s", "WARNING", "own.pem"])
    for command in commands:
        judged = await asyncio.to_thread(_run, tmp_path, *map(str, command))
        assert (judged.returncode, judged.stdout.strip()) == (0, ""), judged.stdout + judged.stderr
    for step in ("good", "revoked"):
        judged = await asyncio.to_thread(
            _run,
            tmp_path,
            *("openssl", "ocsp", "-respin", f"{step}.der", "-CAfile", "chain.pem"),
            *("-issuer", str(settings.certificate_file), "-cert", "one.pem", "-no_nonce"),
        )
        assert "Response verify OK" in judged.stderr, judged
        assert f"one.pem: {step}" in judged.stdout


def _run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
