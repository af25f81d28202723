"""The second look at a certificate, where it leaves the suite; and the keys made for clients."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given

from est_frontend.enrollment.certificate_check import check_certificate
from est_frontend.enrollment.server_keygen import KeyGenerator, named_request
from estcore.errors import InvariantBroken, IssuerUnavailable, Unavailable
from estcore.est.certs_only import certs_only
from estcore.est.serverkeygen import GeneratedKey, new_key, read_keygen_request
from estcore.pki.csr import CertificationRequest, parse_csr
from estcore.pki.profile import KeyAlgorithm, Profile
from estsuite_testing.chains import Pair, certificate
from estsuite_testing.encodings import damaged, name, signed_csr


def der(pair: Pair) -> bytes:
    return pair[0].public_bytes(Encoding.DER)


def csr_of(key: ec.EllipticCurvePrivateKey) -> CertificationRequest:
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    return parse_csr(builder.sign(key, SHA256()).public_bytes(Encoding.DER))


ROOT = certificate("root", ca=True)
ISSUER = certificate("issuing", ROOT, ca=True)
LEAF = certificate("web", ISSUER)
CSR = csr_of(LEAF[1])
CACERTS = certs_only([der(ISSUER), der(ROOT)])


def check(octets: bytes, cacerts: bytes | None = CACERTS) -> None:
    check_certificate(octets, CSR, cacerts, correlation_id="c")


def test_the_certificate_for_the_key_by_the_issuer_is_handed_out() -> None:
    check(der(LEAF))


def test_during_a_rollover_each_generation_that_is_shown_may_have_signed() -> None:
    later = certificate("issuing", ROOT, ca=True)
    check(der(LEAF), certs_only([der(later), der(ISSUER), der(ROOT)]))


def test_without_the_issuers_certificates_the_client_asks_again() -> None:
    with pytest.raises(IssuerUnavailable):
        check(der(LEAF), None)


@pytest.mark.logs_errors("issued certificate not handed out")
@pytest.mark.parametrize(
    ("octets", "code"),
    [
        (der(certificate("web", ISSUER)), "answer.key"),
        (der(certificate("issuing", ca=True)), "answer.key"),
        (b"", "answer.unreadable"),
        (CSR.der, "answer.unreadable"),
        (der(LEAF) + b"\0", "answer.unreadable"),
    ],
)
def test_a_wrong_certificate_is_not_handed_out(octets: bytes, code: str) -> None:
    with pytest.raises(InvariantBroken) as caught:
        check(octets)
    assert caught.value.code == code


@pytest.mark.logs_errors("issued certificate not handed out")
def test_a_ca_of_the_same_name_is_not_the_issuer(caplog: pytest.LogCaptureFixture) -> None:
    impostor = certificate("issuing", ROOT, ca=True)
    with pytest.raises(InvariantBroken) as caught:
        check(der(LEAF), certs_only([der(impostor), der(ROOT)]))
    assert caught.value.code == "answer.issuer"
    (record,) = caplog.records
    assert (record.levelname, record.message) == ("ERROR", "issued certificate not handed out")


@pytest.mark.logs_errors("issued certificate not handed out")
@given(damaged(der(LEAF)))
def test_no_damaged_certificate_is_handed_out(octets: bytes) -> None:
    if octets == der(LEAF):
        return
    with pytest.raises(InvariantBroken):
        check(octets)


# Keys.

RSA = Profile.model_validate(
    {
        "name": "rsa",
        "lifetime": "90d",
        "key_usage": ["digital_signature"],
        "extended_key_usage": ["client_auth"],
        "key_algorithms": ["rsa-2048"],
    }
)


async def test_rsa_keys_are_bounded_and_the_default_threads_stay_free() -> None:
    go_on = threading.Event()
    made = threading.Event()
    names = set()

    def slow(kind: KeyAlgorithm) -> GeneratedKey:
        names.add(threading.current_thread().name)
        made.set()
        go_on.wait(20)
        return new_key(kind)

    keys = KeyGenerator(secrets={}, certificate_file=Path(), key_file=Path(), most=2, new_key=slow)
    request = read_keygen_request(signed_csr())
    waiting = [asyncio.create_task(keys.make(request, RSA, None)) for _ in range(2)]
    await asyncio.to_thread(made.wait, 20)
    with pytest.raises(Unavailable) as caught:
        await keys.make(request, RSA, None)
    assert caught.value.code == "keygen.busy"
    # A client that left frees its place when it did not begin yet, or when its key is made.
    go_on.set()
    await asyncio.gather(*waiting)
    await asyncio.sleep(0)
    key, csr, _ = await keys.make(request, RSA, None)
    assert csr.public_key == key.public_key()
    assert all(n.startswith("keygen") for n in names)


def test_names_are_those_of_the_request_before_there_is_a_key() -> None:
    request = read_keygen_request(signed_csr(subject=name(("2.5.4.3", 0x0C, b"pump"))))
    named = named_request(request)
    assert named.subject_text == "CN=pump"
    assert named.public_key != parse_csr(signed_csr()).public_key
