"""What a certificate of an upstream CA may have besides what was decided (pure)."""

from __future__ import annotations

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID
from hypothesis import given

from ca_signer.upstream.response_lint import (
    ResponseChecks,
    UnexpectedCertificate,
    check_asked,
    check_response,
)
from estcore.errors import ProfileViolation, RequestRejected
from estcore.pki import der
from estcore.pki.attributes import EXTENSION_REQUEST_OID
from estcore.pki.csr import CertificationRequest, parse_csr
from estsuite_testing.chains import HOUR, NOON, certificate
from estsuite_testing.encodings import csr_attribute, damaged, extension, signed_csr

ISSUER = certificate("corporate", ca=True)
KEY = certificate("web")[1]
NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web")])
POLICY, OTHER_POLICY = (x509.ObjectIdentifier(f"1.3.6.1.4.1.99999.2.{n}") for n in (1, 2))
URL = x509.UniformResourceIdentifier("http://ca.test/x")
FIXED = x509.ObjectIdentifier("1.3.6.1.4.1.99999.3")


def policies(*oids: x509.ObjectIdentifier) -> x509.CertificatePolicies:
    return x509.CertificatePolicies([x509.PolicyInformation(oid, None) for oid in oids])


def unknown(oid: str, value: bytes = b"\x05\x00") -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)


def signed(*further: x509.ExtensionType, critical: bool = False) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(NAME)
        .issuer_name(ISSUER[0].subject)
        .public_key(KEY.public_key())
        .serial_number(4711)
        .not_valid_before(NOON)
        .not_valid_after(NOON + HOUR)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(True, False, False, False, False, False, False, False, False),
            critical=True,
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    )
    for value in further:
        builder = builder.add_extension(value, critical=critical)
    return builder.sign(ISSUER[1], SHA256())


def check(received: bytes, *decided: x509.ExtensionType) -> str | None:
    """The check that failed, None where the certificate is good."""
    terms = ResponseChecks(
        pattern=signed(*decided),
        issuer=ISSUER[0],
        lifetime=HOUR,
        asked_at=NOON,
        backdating=dt.timedelta(minutes=1),
    )
    try:
        check_response(received, terms, now=NOON)
    except UnexpectedCertificate as exc:
        return exc.check
    return None


OWN = [
    x509.SubjectKeyIdentifier.from_public_key(KEY.public_key()),
    x509.AuthorityKeyIdentifier.from_issuer_public_key(ISSUER[1].public_key()),
    x509.CRLDistributionPoints([x509.DistributionPoint([URL], None, None, None)]),
    x509.AuthorityInformationAccess(
        [x509.AccessDescription(AuthorityInformationAccessOID.CA_ISSUERS, URL)]
    ),
    unknown("1.3.6.1.4.1.11129.2.4.2", bytes.fromhex("04020000")),
]


@pytest.mark.parametrize("value", OWN, ids=lambda v: v.oid.dotted_string)
def test_what_a_ca_adds_about_itself_is_good(value: x509.ExtensionType) -> None:
    assert check(signed(value).public_bytes(Encoding.DER)) is None


@pytest.mark.parametrize(
    "value",
    [
        unknown("1.3.6.1.4.1.311.25.2"),
        unknown("1.3.6.1.4.1.311.20.2"),
        unknown("2.16.840.1.113730.1.1"),
        x509.TLSFeature([x509.TLSFeatureType.status_request]),
        x509.OCSPNoCheck(),
        x509.IssuerAlternativeName([URL]),
        x509.PolicyConstraints(0, None),
        x509.InhibitAnyPolicy(0),
        x509.NameConstraints([x509.DNSName("test")], None),
        x509.FreshestCRL([x509.DistributionPoint([URL], None, None, None)]),
        x509.SubjectInformationAccess(
            [x509.AccessDescription(AuthorityInformationAccessOID.CA_ISSUERS, URL)]
        ),
    ],
    ids=lambda v: v.oid.dotted_string,
)
def test_every_other_extension_is_wrong_and_good_only_as_it_was_decided(
    value: x509.ExtensionType,
) -> None:
    received = signed(value).public_bytes(Encoding.DER)
    assert check(received) == "extension"
    assert check(received, value) is None
    assert check(signed(value, critical=True).public_bytes(Encoding.DER), value) == "critical"


def test_a_decided_extension_with_another_value_is_wrong() -> None:
    decided = x509.UnrecognizedExtension(FIXED, b"\x05\x00")
    other = x509.UnrecognizedExtension(FIXED, b"\x04\x00")
    assert check(signed(other).public_bytes(Encoding.DER), decided) == "extension"
    assert check(signed().public_bytes(Encoding.DER), decided) is None


def test_certificate_policies_are_those_of_the_profile() -> None:
    def received(*oids: x509.ObjectIdentifier) -> bytes:
        return signed(policies(*oids)).public_bytes(Encoding.DER)

    decided = policies(POLICY, OTHER_POLICY)
    assert check(received(POLICY), decided) is None
    assert check(received(POLICY, OTHER_POLICY), decided) is None
    assert check(received(OTHER_POLICY), policies(POLICY)) == "policies"
    assert check(received(POLICY)) == "policies"


WHOLE = signed(*OWN).public_bytes(Encoding.DER)


@given(damaged(WHOLE))
def test_a_damaged_answer_is_one_error_of_ours(octets: bytes) -> None:
    check(octets)


def request(*extensions: bytes) -> CertificationRequest:
    wanted = csr_attribute(EXTENSION_REQUEST_OID, der.tlv(der.SEQUENCE, *extensions))
    return parse_csr(signed_csr(wanted))


@pytest.mark.parametrize("oid", ["1.3.6.1.4.1.311.25.2", "2.5.29.32", "2.5.29.30", "2.5.29.54"])
def test_a_request_with_another_extension_is_not_sent(oid: str) -> None:
    with pytest.raises(ProfileViolation) as caught:
        check_asked(request(extension(oid, b"\x30\x00")), signed())
    assert caught.value.code == "upstream.extensions"
    assert oid in caught.value.reason


def test_a_request_to_be_a_ca_is_not_sent_and_one_not_to_be_is() -> None:
    with pytest.raises(ProfileViolation) as caught:
        check_asked(request(extension("2.5.29.19", bytes.fromhex("30030101ff"))), signed())
    assert caught.value.code == "upstream.extensions"
    for octets in ("3000", "3003010100"):
        check_asked(request(extension("2.5.29.19", bytes.fromhex(octets))), signed())


@pytest.mark.parametrize("oid", ["2.5.29.17", "2.5.29.15", "2.5.29.37", "2.5.29.19"])
def test_a_request_with_an_unreadable_extension_is_not_sent(oid: str) -> None:
    with pytest.raises(RequestRejected) as caught:
        check_asked(request(extension(oid, b"")), signed())
    assert caught.value.code == "csr.extension_malformed"


def test_usages_may_be_asked_for() -> None:
    check_asked(
        request(
            extension("2.5.29.15", bytes.fromhex("03020780")),
            extension("2.5.29.37", bytes.fromhex("300a06082b06010505070302")),
        ),
        signed(),
    )
