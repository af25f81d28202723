"""serverkeygen: the request whose key does not count, and the answer in two parts."""

from __future__ import annotations

import base64
import datetime as dt
import email
import email.message
import subprocess
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
)
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from estcore.errors import InvalidCSR, MalformedRequest, RequestRejected
from estcore.est.certs_only import certs_only, read_certs_only
from estcore.est.keygen_response import (
    BOUNDARY,
    CONTENT_TYPE,
    KeygenResponse,
    encode_keygen_response,
    parse_keygen_response,
)
from estcore.est.serverkeygen import (
    ASYMMETRIC_DECRYPT_KEY_ID_OID,
    DECRYPT_KEY_ID_OID,
    SMIME_CAPABILITIES_OID,
    Capability,
    KeyProtection,
    certification_request,
    generated_kind,
    new_key,
    pkcs8,
    read_keygen_request,
)
from estcore.pki import der
from estcore.pki.attributes import EXTENSION_REQUEST_OID, attribute, read_attributes
from estcore.pki.csr import MAX_CSR_BYTES, parse_csr
from estcore.pki.profile import Profile

KEY = ec.generate_private_key(ec.SECP256R1())
AES256_WRAP, AES256_CBC = "2.16.840.1.101.3.4.1.45", "2.16.840.1.101.3.4.1.42"
NAME = x509.Name(
    [
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Clinic"),
        x509.NameAttribute(NameOID.COMMON_NAME, "pump.test"),
    ]
)
SAN = x509.SubjectAlternativeName([x509.DNSName("pump.test"), x509.DNSName("p.test")])


def octet_string(octets: bytes) -> bytes:
    return der.tlv(0x04, octets)


def capabilities(*oids: str) -> bytes:
    entries = (der.tlv(0x30, der.oid(oid)) for oid in oids)
    return attribute(SMIME_CAPABILITIES_OID, der.tlv(0x30, *entries))


def csr(*attributes: bytes, key: object = KEY, spki: bytes | None = None) -> bytes:
    """A CSR with these attributes beside its extensions; its signature is no signature."""
    builder = x509.CertificateSigningRequestBuilder(NAME)
    builder = builder.add_extension(SAN, critical=False)
    builder = builder.add_extension(
        x509.ExtendedKeyUsage([x509.ObjectIdentifier("1.3.6.1.5.5.7.3.2")]), critical=True
    )
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256()
    signed = builder.sign(key, algorithm).public_bytes(Encoding.DER)  # type: ignore[arg-type]
    info, kind, signature = der.children(signed)
    version, subject, own_spki, field = der.children(info)
    field = der.tlv(0xA0, *sorted((*der.children(field), *attributes)))
    info = der.tlv(0x30, version, subject, spki or own_spki, field)
    return der.tlv(0x30, info, kind, signature[:-1] + bytes((signature[-1] ^ 1,)))


def profile(*kinds: str) -> Profile:
    values = {"name": "pump", "lifetime": dt.timedelta(days=30), "key_algorithms": kinds}
    return Profile.model_validate(values)


def refused(*attributes: bytes) -> str:
    with pytest.raises(RequestRejected) as caught:
        read_keygen_request(csr(*attributes))
    return caught.value.code


# The request.


def test_H3_key_and_signature_of_the_request_are_ignored() -> None:
    request = read_keygen_request(csr())
    with pytest.raises(InvalidCSR):
        parse_csr(request.der)
    assert request.subject_der == NAME.public_bytes()
    assert request.protection is None
    unknown = der.tlv(0x30, der.tlv(0x30, der.oid("1.2.3.4")), b"\x03\x02\x00\x01")
    assert read_keygen_request(csr(spki=unknown)).subject_der == NAME.public_bytes()


def test_H3_names_and_extensions_go_into_a_csr_by_the_new_key() -> None:
    request = read_keygen_request(csr(capabilities(AES256_WRAP)))
    for kind in ("ec-p256", "ed25519", "rsa-2048"):
        key = new_key(kind)
        made = parse_csr(certification_request(request, key))
        assert made.public_key == key.public_key()
        assert (made.subject, made.san) == (NAME, ("dns:p.test", "dns:pump.test"))
        attributes = read_attributes(made.attributes)
        assert attributes == {EXTENSION_REQUEST_OID: (request.extension_request,)}


def test_H3_the_subject_is_repeated_octet_for_octet() -> None:
    request = read_keygen_request(csr())
    made = parse_csr(certification_request(request, KEY))
    assert made.subject_der == der.children(der.children(request.der)[0])[1]


@pytest.mark.parametrize(
    ("placeholder", "kinds", "made"),
    [
        (ec.generate_private_key(ec.SECP384R1()), ("ec-p256", "ec-p384"), "ec-p384"),
        (ec.generate_private_key(ec.SECP384R1()), ("ec-p256", "rsa-2048"), "ec-p256"),
        (rsa.generate_private_key(65537, 2048), ("ec-p256", "rsa-2048"), "rsa-2048"),
        (rsa.generate_private_key(65537, 1024), ("ec-p256", "rsa-2048"), "ec-p256"),  # noqa: S505
        (ed25519.Ed25519PrivateKey.generate(), ("ec-p256", "ed25519"), "ed25519"),
    ],
)
def test_H15_the_kind_of_key_is_the_placeholders_where_the_profile_has_it(
    placeholder: object, kinds: tuple[str, ...], made: str
) -> None:
    request = read_keygen_request(csr(key=placeholder))
    assert generated_kind(request, profile(*kinds)) == made


def test_H17_rsa_keys_have_the_exponent_65537() -> None:
    key = new_key("rsa-2048")
    assert isinstance(key, rsa.RSAPrivateKey)
    assert key.public_key().public_numbers().e == 65537
    assert key.key_size == 2048


def test_H8_H9_which_key_to_encrypt_with() -> None:
    able = capabilities(AES256_WRAP, AES256_CBC)
    expected = (Capability(AES256_WRAP), Capability(AES256_CBC))
    for oid, symmetric in ((DECRYPT_KEY_ID_OID, True), (ASYMMETRIC_DECRYPT_KEY_ID_OID, False)):
        request = read_keygen_request(csr(attribute(oid, octet_string(b"id-1")), able))
        assert request.protection == KeyProtection(symmetric, b"id-1", expected)


def test_H8_capabilities_keep_their_parameters() -> None:
    wrap = der.tlv(0x30, der.oid(AES256_WRAP))
    entry = der.tlv(0x30, der.oid("1.3.132.1.11.1"), wrap)
    request = read_keygen_request(
        csr(
            attribute(ASYMMETRIC_DECRYPT_KEY_ID_OID, octet_string(b"id")),
            attribute(SMIME_CAPABILITIES_OID, der.tlv(0x30, entry)),
        )
    )
    assert request.protection is not None
    assert request.protection.capabilities == (Capability("1.3.132.1.11.1", wrap),)


def test_H11_a_wish_for_encryption_that_cannot_be_met_is_refused() -> None:
    named = attribute(DECRYPT_KEY_ID_OID, octet_string(b"id"))
    other = attribute(ASYMMETRIC_DECRYPT_KEY_ID_OID, octet_string(b"id"))
    able = capabilities(AES256_WRAP)
    assert refused(named) == "keygen.capabilities_missing"
    assert refused(other) == "keygen.capabilities_missing"
    assert refused(named, capabilities()) == "keygen.capabilities_missing"
    assert refused(named, capabilities(*[AES256_WRAP] * 65)) == "keygen.capabilities_missing"
    assert refused(named, other, able) == "keygen.two_keys"
    assert refused(attribute(DECRYPT_KEY_ID_OID, octet_string(b"")), able) == (
        "keygen.key_identifier"
    )
    assert refused(attribute(DECRYPT_KEY_ID_OID, octet_string(bytes(256))), able) == (
        "keygen.key_identifier"
    )
    assert refused(attribute(DECRYPT_KEY_ID_OID), able) == "csr.attribute_values"
    assert refused(attribute(DECRYPT_KEY_ID_OID, b"\x0c\x02id"), able) == "der.malformed"
    assert refused(named, attribute(SMIME_CAPABILITIES_OID, b"\x05\x00")) == "der.malformed"


def test_H8_capabilities_alone_ask_for_nothing() -> None:
    assert read_keygen_request(csr(capabilities(AES256_WRAP))).protection is None


WHOLE = csr(attribute(DECRYPT_KEY_ID_OID, octet_string(b"id")), capabilities(AES256_WRAP))


def test_B15_every_single_bit_of_a_request() -> None:
    for place in range(len(WHOLE) * 8):
        damaged = bytearray(WHOLE)
        damaged[place // 8] ^= 1 << place % 8
        try:
            request = read_keygen_request(bytes(damaged))
            certification_request(request, KEY)
        except RequestRejected as exc:
            assert exc.code


@given(st.binary(max_size=300), st.integers(0, 400))
def test_B15_any_octets_give_a_request_or_a_rejection(noise: bytes, place: int) -> None:
    for candidate in (noise, WHOLE[:place] + noise + WHOLE[place + len(noise) :]):
        try:
            read_keygen_request(candidate)
        except RequestRejected as exc:
            assert exc.code


def test_B15_a_request_has_a_greatest_size() -> None:
    with pytest.raises(MalformedRequest) as caught:
        read_keygen_request(bytes(MAX_CSR_BYTES + 1))
    assert caught.value.code == "csr.too_large"


# The answer.

CERTIFICATE = certs_only([])
ANSWER = KeygenResponse(pkcs8(KEY), False, CERTIFICATE)


def parts_of(body: bytes, content_type: str = CONTENT_TYPE) -> list[Any]:
    """By the e-mail parser of the standard library."""
    head = f"MIME-Version: 1.0\r\nContent-Type: {content_type}\r\n\r\n".encode()
    message = email.message_from_bytes(head + body)
    assert message.is_multipart()
    assert not message.defects
    parts = message.get_payload()
    assert isinstance(parts, list)
    return parts


@pytest.mark.parametrize("form", ["auto", "single-line", "wrapped"])
def test_H4_H5_two_parts_the_key_first(form: str) -> None:
    key, certificate = parts_of(encode_keygen_response(ANSWER, form))  # type: ignore[arg-type]
    assert key["Content-Type"] == "application/pkcs8"
    assert certificate["Content-Type"] == "application/pkcs7-mime; smime-type=certs-only"
    for part in (key, certificate):
        assert part["Content-Transfer-Encoding"] == "base64"
        assert not part.defects
    assert key.get_payload(decode=True) == ANSWER.key
    assert certificate.get_payload(decode=True) == CERTIFICATE


def test_H5_openssl_reads_the_key(tmp_path: object) -> None:
    """By openssl."""
    for kind in ("ec-p384", "rsa-2048", "ed25519"):
        key = new_key(kind)
        run = subprocess.run(
            ["openssl", "pkey", "-inform", "DER", "-pubout", "-outform", "DER"],
            input=parts_of(encode_keygen_response(KeygenResponse(pkcs8(key), False, CERTIFICATE)))[
                0
            ].get_payload(decode=True),
            capture_output=True,
            check=True,
        )
        assert run.stdout == key.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )


def test_H6_the_certificate_is_as_in_simpleenroll() -> None:
    found = parse_keygen_response(CONTENT_TYPE, encode_keygen_response(ANSWER))
    assert found.certificate == CERTIFICATE
    assert read_certs_only(certs_only([])) == []


def test_H7_boundary_and_line_ends() -> None:
    assert len(BOUNDARY) <= 70
    assert f"multipart/mixed; boundary={BOUNDARY}" == CONTENT_TYPE
    body = encode_keygen_response(ANSWER, "wrapped")
    assert body.count(b"\n") == body.count(b"\r\n")
    assert body.endswith(f"\r\n--{BOUNDARY}--\r\n".encode())
    assert all(len(line) <= 76 for line in body.split(b"\r\n"))


def test_H12_a_sealed_key_has_its_own_type() -> None:
    sealed = KeygenResponse(b"\x30\x00", True, CERTIFICATE)
    body = encode_keygen_response(sealed)
    assert parts_of(body)[0]["Content-Type"] == (
        "application/pkcs7-mime; smime-type=server-generated-key"
    )
    assert parse_keygen_response(CONTENT_TYPE, body) == sealed


def test_H14_a_response_does_not_show_its_key() -> None:
    assert ANSWER.key.hex() not in repr(ANSWER)
    assert "key=" not in repr(ANSWER)


@given(
    st.binary(min_size=1, max_size=2000),
    st.booleans(),
    st.binary(min_size=1, max_size=2000),
    st.sampled_from(["auto", "single-line", "wrapped"]),
)
def test_H4_what_is_written_is_read(key: bytes, sealed: bool, cert: bytes, form: str) -> None:
    response = KeygenResponse(key, sealed, cert)
    body = encode_keygen_response(response, form)  # type: ignore[arg-type]
    assert parse_keygen_response(CONTENT_TYPE, body) == response
    assert parse_keygen_response(CONTENT_TYPE, body.replace(b"\r\n", b"\n")) == response


def test_H4_the_example_of_rfc_7030_appendix_a_4_in_its_form() -> None:
    """A preamble, an epilogue, a quoted boundary, and parts in the other order."""
    key, certificate = base64.encodebytes(ANSWER.key), base64.encodebytes(CERTIFICATE)
    body = b"\r\n".join(
        [
            b"This is the preamble.  It is to be ignored, though it",
            b"is a handy place for estServer to include an explanatory note.",
            b"--estServerExampleBoundary",
            b'Content-Type: application/pkcs7-mime; name=x; smime-type="certs-only"',
            b"Content-Transfer-Encoding: binary",
            b"",
            certificate,
            b"--estServerExampleBoundary",
            b"content-type: Application/PKCS8",
            b"",
            key,
            b"--estServerExampleBoundary--",
            b"This is the epilogue.  It is also to be ignored.",
        ]
    )
    for boundary in ("estServerExampleBoundary", '"estServerExampleBoundary"'):
        content_type = f"Multipart/Mixed ; charset=x; boundary={boundary}"
        assert parse_keygen_response(content_type, body) == ANSWER


BODY = encode_keygen_response(ANSWER)
DELIMITER = b"--" + BOUNDARY.encode()


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/pkcs8", BODY),
        ("multipart/mixed", BODY),
        ("multipart/mixed; boundary=", BODY),
        ("multipart/mixed; boundary=" + "a" * 71, BODY),
        ("multipart/mixed; boundary=é", BODY),
        ("multipart/mixed; boundary=other", BODY),
        (CONTENT_TYPE, b""),
        (CONTENT_TYPE, BODY[:-40]),
        (CONTENT_TYPE, bytes(262_145)),
        (CONTENT_TYPE, BODY.replace(b"application/pkcs8", b"text/plain")),
        (CONTENT_TYPE, BODY.replace(b"; smime-type=certs-only", b"")),
        (CONTENT_TYPE, BODY.replace(b"application/pkcs8", CONTENT_TYPE.encode())),
        (CONTENT_TYPE, BODY.replace(b"Content-Type:", b"X-Type:")),
        (CONTENT_TYPE, DELIMITER + b"\r\n" + BODY),
        (CONTENT_TYPE, BODY.replace(b"\r\n\r\n", b"\r\n" + b"X-H: 1\r\n" * 20 + b"\r\n")),
        (
            CONTENT_TYPE,
            BODY.replace(b"application/pkcs7-mime; smime-type=certs-only", b"application/pkcs8"),
        ),
    ],
)
def test_H4_other_answers_are_refused(content_type: str, body: bytes) -> None:
    with pytest.raises(MalformedRequest) as caught:
        parse_keygen_response(content_type, body)
    assert caught.value.code == "keygen.malformed"


@given(st.text(max_size=120), st.binary(max_size=400), st.integers(0, len(BODY)))
def test_H4_any_answer_gives_a_key_or_a_malformed_request(
    content_type: str, noise: bytes, place: int
) -> None:
    spliced = BODY[:place] + noise + BODY[place + len(noise) :]
    for candidate in ((content_type, BODY), (CONTENT_TYPE, noise), (CONTENT_TYPE, spliced)):
        try:
            parse_keygen_response(*candidate)
        except MalformedRequest as exc:
            assert exc.code


def test_H5_the_key_survives_the_way_to_the_client() -> None:
    found = parse_keygen_response(CONTENT_TYPE, BODY)
    loaded = load_der_private_key(found.key, None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    assert loaded.private_numbers() == KEY.private_numbers()
