"""Trust anchors and credentials as Secrets hold them, and when a certificate may renew itself."""

from __future__ import annotations

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from est_issuer.credentials import (
    Certificate,
    Connection,
    checked_anchors,
    checked_certificate,
)
from est_issuer.errors import IssuerUnusable
from est_issuer.present_certificate import fits
from est_issuer.requests import Request
from estclient.est.keys import key_pem
from estsuite_testing.chains import NOON, certificate, make_request

NAME = "web.devices.test"
ROOT = certificate("root", ca=True)
LEAF, KEY = certificate(NAME, ROOT, names=(NAME,))
PRESENT = Certificate(LEAF.public_bytes(Encoding.PEM), key_pem(KEY))
ANCHORS = ROOT[0].public_bytes(Encoding.PEM)


def request(name: str) -> Request:
    return Request(x509.load_pem_x509_csr(make_request(name)[1]), (), None)


def test_a_certificate_renews_itself_for_the_same_names_with_any_key() -> None:
    assert fits(PRESENT, request(NAME), now=NOON)


def test_it_does_not_for_other_names_another_time_or_without_its_key() -> None:
    """RFC 7030 section 4.2.2: the Subject field and SubjectAltName extension MUST be identical."""
    assert not fits(PRESENT, request("other.devices.test"), now=NOON)
    bare = x509.CertificateSigningRequestBuilder(LEAF.subject).sign(KEY, SHA256())
    assert not fits(PRESENT, Request(bare, (), None), now=NOON)
    assert not fits(PRESENT, request(NAME), now=NOON + dt.timedelta(days=1))
    stranger = Certificate(PRESENT.chain, key_pem(ROOT[1]))
    assert not fits(stranger, request(NAME), now=NOON)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_a_secret_with_anything_else_does_not_fit(chain: bytes, key: bytes) -> None:
    wanted = request(NAME)
    assert not fits(Certificate(chain, PRESENT.key), wanted, now=NOON)
    assert not fits(Certificate(PRESENT.chain, key), wanted, now=NOON)


def test_anchors_are_certificates_and_nothing_beside_them() -> None:
    text = b"# our roots\n" + ANCHORS + b"\nsome text\n" + ANCHORS
    assert checked_anchors(text) == ANCHORS * 2


@given(st.binary(max_size=300))
def test_other_anchors_are_refused(octets: bytes) -> None:
    with pytest.raises(IssuerUnusable) as raised:
        checked_anchors(octets)
    assert raised.value.condition == "InvalidTrust"


def test_a_large_bundle_is_refused() -> None:
    with pytest.raises(IssuerUnusable, match="more than"):
        checked_anchors(ANCHORS * 1000)


def test_a_connection_shows_no_secret() -> None:
    connection = Connection(
        "https://est.example",
        None,
        ANCHORS,
        basic=("user", "pass-word"),
        token="to-ken",
        certificate=PRESENT,
    )
    for secret in ("pass-word", "to-ken", "PRIVATE KEY"):
        assert secret not in repr(connection)


def test_a_key_that_does_not_fit_its_certificate_is_refused() -> None:
    wrong = Certificate(PRESENT.chain, key_pem(ROOT[1]))
    with pytest.raises(IssuerUnusable, match="certificate and key do not fit together"):
        Connection("https://est.example", None, ANCHORS, certificate=wrong).client(1)
    with pytest.raises(IssuerUnusable, match=r"Secret ra: tls[.]key is not of tls[.]crt"):
        checked_certificate(wrong, "ra")
    assert checked_certificate(PRESENT, "ra") == PRESENT


def test_an_encrypted_key_is_refused_before_the_tls_library_asks_for_its_password() -> None:
    encryption = BestAvailableEncryption(b"password")
    key = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    with pytest.raises(IssuerUnusable, match="no unencrypted key in"):
        checked_certificate(Certificate(PRESENT.chain, key), "ra")
