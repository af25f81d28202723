"""Building certificates: our template against the builder of pyca, and lint against damage."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from estcore import ids
from estcore.errors import LintFailed
from estcore.pki import der
from estcore.pki.certificate import (
    CertificateTemplate,
    IssuerCertificate,
    LintCopy,
    assemble,
    signing_hash,
    tbs_signature_algorithm,
)
from estcore.pki.csr import CertificationRequest, parse_csr
from estcore.pki.lint import lint, serial_number_is_ours
from estcore.pki.profile import Profile

NOW = dt.datetime(2026, 11, 22, 12, 0, tzinfo=dt.UTC)
CA_KEYS: dict[str, Any] = {
    "p256": ec.generate_private_key(ec.SECP256R1()),
    "p384": ec.generate_private_key(ec.SECP384R1()),
    "rsa": rsa.generate_private_key(65537, 2048),
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
}
LEAF_KEY = ec.generate_private_key(ec.SECP256R1())


def issuer(kind: str = "p256", years: int = 10, partitions: int = 1) -> IssuerCertificate:
    key = CA_KEYS[kind]
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test CA")])
    certificate = (
        x509.CertificateBuilder(
            name, name, key.public_key(), 7, NOW, NOW + dt.timedelta(365 * years)
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, signing_hash(key.public_key()))
    )
    return IssuerCertificate("issuing", certificate, partitions)


def profile(**changes: object) -> Profile:
    base: dict[str, object] = {
        "name": "p",
        "lifetime": "30d",
        "key_algorithms": ["ec-p256"],
        "extended_key_usage": ["server_auth", "client_auth"],
    }
    return Profile.model_validate({**base, **changes})


def request(name: str = "web", san: list[str] | None = None) -> CertificationRequest:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []
    builder = x509.CertificateSigningRequestBuilder(x509.Name(attributes))
    if san:
        names = x509.SubjectAlternativeName([x509.DNSName(n) for n in san])
        builder = builder.add_extension(names, critical=False)
    return parse_csr(builder.sign(LEAF_KEY, SHA256()).public_bytes(Encoding.DER))


def reference(
    request: CertificationRequest, template: CertificateTemplate, serial: int, kind: str
) -> bytes:
    """The same certificate by pyca's builder."""
    before, after = template.validity(NOW)
    builder = x509.CertificateBuilder(
        template.issuer.subject, request.subject, request.public_key, serial, before, after
    )
    for extension, critical in template.extensions(request, serial):
        builder = builder.add_extension(extension, critical)
    key = CA_KEYS[kind]
    return builder.sign(key, signing_hash(key.public_key())).tbs_certificate_bytes


@given(
    name=st.text("abcdefghäöü.-", max_size=40),
    san=st.lists(st.from_regex(r"[a-z]{1,20}\.test", fullmatch=True), max_size=5, unique=True),
    kind=st.sampled_from(sorted(CA_KEYS)),
    days=st.integers(1, 3650),
    urls=st.sampled_from(["none", "plain", "parts"]),
    backdate=st.sampled_from(["auto", "none"]),
)
def test_template_gives_the_octets_of_pycas_builder(
    name: str, san: list[str], kind: str, days: int, urls: str, backdate: str
) -> None:
    if not name and not san:
        name = "x"
    more = {"ocsp_url": "http://o/{issuer}", "issuer_url": "http://i/"}
    more["crl_url"] = "http://c/{issuer}" + ("/{partition}" if urls == "parts" else "")
    chosen = profile(
        lifetime=f"{days}d",
        backdate=backdate,
        renewal={"reaction_time": "1h"},
        **(more if urls != "none" else {}),
    )
    template = CertificateTemplate(chosen, issuer(kind, years=40, partitions=16))
    serial = ids.new_serial_number()
    csr = request(name, san)
    copy = template.build(csr, serial_number=serial, now=NOW)
    lint(copy, request=csr, template=template, now=NOW)
    assert copy.tbs == reference(csr, template, serial, kind)
    if urls != "none":
        point = copy.certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints)
        (name_of,) = point.value[0].full_name or [None]
        part = f"/16-{serial % 16}" if urls == "parts" else ""
        assert name_of is not None
        assert name_of.value == f"http://c/issuing{part}"
    assert tbs_signature_algorithm(copy.tbs) == copy.signature_algorithm


def test_lint_refuses_every_flipped_bit_of_the_tbs() -> None:
    """All of them, so that nothing is left to chance; only the random serial number may differ."""
    template = CertificateTemplate(profile(), issuer())
    csr = request("web", ["web.test"])
    copy = template.build(csr, serial_number=ids.new_serial_number(), now=NOW)
    serial = copy.tbs.index(b"\x02\x12\x01") + 3
    for place in [*range(serial), *range(serial + 17, len(copy.tbs))]:
        for bit in range(8):
            damaged = bytearray(copy.tbs)
            damaged[place] ^= 1 << bit
            der_ = assemble(bytes(damaged), copy.signature_algorithm, _SIGNATURE)
            try:
                certificate = x509.load_der_x509_certificate(der_)
            except (ValueError, x509.InvalidVersion, CryptographyDeprecationWarning):
                continue  # does not even parse
            broken = LintCopy(certificate, bytes(damaged), copy.signature_algorithm)
            # The warning is an error in tests only: a serial number in the AKI that is not positive.
            with pytest.raises((LintFailed, CryptographyDeprecationWarning)):
                lint(broken, request=csr, template=template, now=NOW)


_SIGNATURE = b"\x30\x06\x02\x01\x01\x02\x01\x01"


def test_certificate_never_outlives_its_issuer() -> None:
    template = CertificateTemplate(profile(lifetime="3650d"), issuer(years=1))
    copy = template.build(request(), serial_number=ids.new_serial_number(), now=NOW)
    assert copy.certificate.not_valid_after_utc == template.issuer.not_after


def test_backdating_is_the_lesser_of_an_hour_and_a_twentieth() -> None:
    assert profile(lifetime="30d").backdating == dt.timedelta(hours=1)
    assert profile(lifetime="10h", renewal={"reaction_time": "1h"}).backdating == dt.timedelta(
        minutes=30
    )
    assert profile(backdate="none").backdating == dt.timedelta(0)


@given(st.binary(min_size=17, max_size=17))
def test_serial_numbers_are_positive_and_18_octets(octets: bytes) -> None:
    number = ids.new_serial_number(lambda n: octets[:n])
    assert 0 < number < 2**159
    assert serial_number_is_ours(number)
    assert len(ids.serial_hex(number)) == 36


def test_lint_refuses_the_issuers_own_key() -> None:
    ca = issuer()
    key = CA_KEYS["p256"]
    csr_der = (
        x509.CertificateSigningRequestBuilder(ca.subject)
        .sign(key, SHA256())
        .public_bytes(Encoding.DER)
    )
    csr = parse_csr(csr_der)
    template = CertificateTemplate(profile(), ca)
    copy = template.build(csr, serial_number=ids.new_serial_number(), now=NOW)
    with pytest.raises(LintFailed) as caught:
        lint(copy, request=csr, template=template, now=NOW)
    assert caught.value.code == "lint.not_issuers_key"


def test_assembled_certificate_is_the_signed_one() -> None:
    template = CertificateTemplate(profile(), issuer())
    copy = template.build(request(), serial_number=ids.new_serial_number(), now=NOW)
    key = CA_KEYS["p256"]
    signature = key.sign(copy.tbs, ec.ECDSA(SHA256()))
    certificate = x509.load_der_x509_certificate(
        assemble(copy.tbs, copy.signature_algorithm, signature)
    )
    certificate.verify_directly_issued_by(template.issuer.certificate)
    assert der.children(certificate.public_bytes(Encoding.DER))[0] == copy.tbs
