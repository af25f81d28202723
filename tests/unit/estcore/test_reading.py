"""What other makers wrote: read as OpenSSL reads it, or refused with one error of ours."""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from estcore.errors import ESTSuiteError, MalformedRequest, NotAuthenticated
from estcore.est.certs_only import certs_only, read_certs_only
from estcore.est.serverkeygen import read_keygen_request
from estcore.pki import der, jws
from estcore.pki.chain_strength import check_chain_strength, check_client_purpose
from estcore.pki.crl import read_crl
from estcore.pki.csr import parse_csr
from estcore.pki.names import display_name
from estcore.pki.ocsp import read_answer, read_question
from estcore.pki.parsers import load_certificate, load_pem_certificates
from estcore.pki.pem import pem_text
from estcore.policy.labels import Truststore
from estsuite_testing.chains import HOUR, NOON
from estsuite_testing.chains import certificate as chain_certificate
from estsuite_testing.encodings import damaged, every_octet_changed, over_sha1, resigned, turned_rdn

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
KEY = ec.generate_private_key(ec.SECP256R1())
NAME = x509.Name(
    [
        x509.RelativeDistinguishedName(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, "web"),
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Maker"),
            ]
        )
    ]
)


def made(*, ca: bool = True) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(NAME)
        .issuer_name(NAME)
        .public_key(KEY.public_key())
        .serial_number(4711)
        .not_valid_before(NOON)
        .not_valid_after(NOON + HOUR)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("web.test"), x509.RFC822Name("a@b.test")]),
            critical=False,
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(KEY.public_key()), critical=False)
    )
    return builder.sign(KEY, SHA256())


CERTIFICATE = made()
GOOD = CERTIFICATE.public_bytes(Encoding.DER)
UNSORTED = resigned(GOOD, KEY, *turned_rdn(NAME.public_bytes()))


def csr() -> bytes:
    builder = (
        x509.CertificateSigningRequestBuilder(NAME)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("web.test"), x509.DirectoryName(NAME)]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_attribute(x509.ObjectIdentifier("1.2.840.113549.1.9.7"), b"challenge")
    )
    return builder.sign(KEY, SHA256()).public_bytes(Encoding.DER)


def ocsp_request() -> bytes:
    builder = ocsp.OCSPRequestBuilder().add_certificate(CERTIFICATE, CERTIFICATE, SHA1())  # noqa: S303 - what askers use
    return (
        builder.add_extension(x509.OCSPNonce(b"12345678"), critical=False)
        .build()
        .public_bytes(Encoding.DER)
    )


def ocsp_response() -> bytes:
    builder = ocsp.OCSPResponseBuilder().add_response(
        cert=CERTIFICATE,
        issuer=CERTIFICATE,
        algorithm=SHA256(),
        cert_status=ocsp.OCSPCertStatus.REVOKED,
        this_update=NOON,
        next_update=NOON + HOUR,
        revocation_time=NOON,
        revocation_reason=x509.ReasonFlags.key_compromise,
    )
    builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, CERTIFICATE)
    return builder.sign(KEY, SHA256()).public_bytes(Encoding.DER)


def crl() -> bytes:
    entry = (
        x509.RevokedCertificateBuilder()
        .serial_number(4711)
        .revocation_date(NOON)
        .add_extension(x509.CRLReason(x509.ReasonFlags.key_compromise), critical=False)
        .build()
    )
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(NAME)
        .last_update(NOON)
        .next_update(NOON + dt.timedelta(days=1))
        .add_revoked_certificate(entry)
        .add_extension(x509.CRLNumber(1), critical=False)
    )
    return builder.sign(KEY, SHA256()).public_bytes(Encoding.DER)


def _text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda octets: read(octets.decode("latin-1"))


def _signed(octets: bytes) -> object:
    head = base64.urlsafe_b64encode(
        b'{"alg":"ES256","typ":"t","x5c":["' + base64.b64encode(octets) + b'"]}'
    )
    return jws.verify(f"{head.rstrip(b'=').decode()}.e30.AAAA", typ="t")


PARSERS: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "CSR": (csr(), parse_csr),
    "CSR of serverkeygen": (csr(), read_keygen_request),
    "certificate": (GOOD, load_certificate),
    "certificate that is not DER": (UNSORTED, load_certificate),
    "certificate of a JWS": (GOOD, _signed),
    "certs-only": (certs_only([GOOD, UNSORTED]), read_certs_only),
    "PEM": (pem_text("CERTIFICATE", GOOD).encode(), load_pem_certificates),
    "OCSP request": (ocsp_request(), read_question),
    "OCSP response": (ocsp_response(), read_answer),
    "CRL": (crl(), read_crl),
    "JWS": (
        jws.sign(b"{}", typ="t", key=KEY, certificate_der=GOOD).encode(),
        _text(lambda text: jws.verify(text, typ="t")),
    ),
}


@pytest.mark.parametrize("kind", PARSERS)
def test_a_parser_reads_what_is_good(kind: str) -> None:
    good, parse = PARSERS[kind]
    if kind == "certificate of a JWS":
        with pytest.raises(NotAuthenticated):
            parse(good)
    else:
        assert parse(good) is not None


@pytest.mark.parametrize("kind", PARSERS)
@given(data=st.data())
def test_a_parser_gives_a_value_or_one_error_of_ours(kind: str, data: st.DataObject) -> None:
    good, parse = PARSERS[kind]
    octets = data.draw(damaged(good))
    try:
        parse(octets)
    except ESTSuiteError as exc:
        assert exc.code != ESTSuiteError.default_code
        assert exc.reason.isprintable()


@pytest.mark.parametrize("kind", [k for k in PARSERS if not k.startswith("certificate of")])
def test_a_parser_gives_a_value_or_one_error_of_ours_at_every_octet(kind: str) -> None:
    good, parse = PARSERS[kind]
    for octets in every_octet_changed(good):
        try:
            parse(octets)
        except ESTSuiteError as exc:
            assert exc.code


# Certificates of other CAs.


def test_an_rdn_out_of_order_is_read() -> None:
    with pytest.raises(ValueError, match="InvalidSetOrdering"):
        x509.load_der_x509_certificate(UNSORTED)
    found = load_certificate(UNSORTED)
    assert display_name(found.subject) == display_name(NAME)
    assert found.public_key() == KEY.public_key()
    assert found.not_valid_after_utc == NOON + HOUR


def test_an_unreadable_extension_that_nobody_reads_is_left_out() -> None:
    extension = der.tlv(
        der.SEQUENCE,
        der.oid("2.5.29.31"),
        der.tlv(der.OCTET_STRING, b"none"),
    )
    tbs, algorithm, signature = der.children(UNSORTED)
    fields = der.children(tbs)
    members = der.children(der.children(fields[-1])[0])
    fields[-1] = der.tlv(0xA3, der.tlv(der.SEQUENCE, *members, extension))
    octets = der.tlv(der.SEQUENCE, der.tlv(der.SEQUENCE, *fields), algorithm, signature)
    oids = [e.oid.dotted_string for e in load_certificate(octets).extensions]
    assert "2.5.29.31" not in oids
    assert "2.5.29.37" in oids


def test_certs_only_keeps_every_certificate_octet_for_octet() -> None:
    assert sorted(read_certs_only(certs_only([GOOD, UNSORTED]))) == sorted([GOOD, UNSORTED])


PEM = pem_text("CERTIFICATE", UNSORTED)


@pytest.mark.parametrize(
    "text",
    [
        PEM,
        "subject=CN = web\nissuer=CN = web\n" + PEM + "the end\n",
        PEM.replace("\n", "\r\n"),
        PEM.replace("-----BEGIN", "  -----BEGIN"),
        pem_text("PRIVATE KEY", b"not looked at") + PEM,
    ],
    ids=["plain", "text around", "CRLF", "indented", "with a key"],
)
def test_a_truststore_takes_certificates_as_their_makers_wrote_them(text: str) -> None:
    assert Truststore(certificates=text).anchors == [UNSORTED]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hello", "there is no certificate in PEM"),
        (pem_text("PUBLIC KEY", b"x"), "there is no certificate in PEM"),
        (PEM[:-10], "does not end with the label"),
        (PEM.replace("END CERTIFICATE", "END SOMETHING"), "does not end with the label"),
        (PEM + pem_text("CERTIFICATE", b"x"), "certificate 2"),
        (PEM.replace("\nM", "\n*", 1), "not base64"),
    ],
)
def test_a_truststore_that_cannot_be_read_says_why(text: str, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Truststore(certificates=text)
    assert words in str(caught.value)


# Chains.


def test_a_chain_over_a_broken_hash_is_refused() -> None:
    root = chain_certificate("root", ca=True)
    leaf = chain_certificate("svc", root)
    check_chain_strength([leaf[0], root[0]])
    weak = over_sha1(leaf, root)
    with pytest.raises(NotAuthenticated) as caught:
        check_chain_strength([weak[0], root[0]])
    assert caught.value.code == "auth.certificate_weak"
    assert "sha1" in caught.value.reason
    # The anchor is trusted by configuration, whatever its own signature is.
    old_root = over_sha1(root, root)
    check_chain_strength([leaf[0], old_root[0]])


def test_a_ca_for_another_purpose_certifies_no_client() -> None:
    root = chain_certificate("root", ca=True)
    between = chain_certificate("between", root, ca=True, usage=ExtendedKeyUsageOID.CODE_SIGNING)
    leaf = chain_certificate("svc", between)
    with pytest.raises(NotAuthenticated) as caught:
        check_client_purpose([leaf[0], between[0], root[0]])
    assert caught.value.code == "auth.certificate_usage"


@given(st.binary(max_size=200))
def test_any_octets_are_a_certificate_or_refused(noise: bytes) -> None:
    with pytest.raises(MalformedRequest):
        load_certificate(noise)
