"""Attributes of a CSR: string types, bounds, and any octets giving a value or one error."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from pyasn1.codec.der.encoder import encode as pyasn1_encode
from pyasn1_alt_modules import rfc7894

from estcore.errors import InvalidCSR, MalformedRequest
from estcore.pki import der
from estcore.pki.attributes import (
    CHALLENGE_PASSWORD_OID,
    EST_IDENTITY_LINKING_OID,
    MAX_ATTRIBUTES,
    OTP_CHALLENGE_OID,
    REVOCATION_CHALLENGE_OID,
    Challenges,
    attribute,
    read_attributes,
    read_challenges,
)
from estcore.pki.csr import parse_csr

KEY = ec.generate_private_key(ec.SECP256R1())
LINK = base64.b64encode(bytes(range(12)) * 3).decode()
TYPES = {0x0C: "utf-8", 0x13: "ascii", 0x16: "ascii", 0x1E: "utf-16-be"}
FIELDS = {
    CHALLENGE_PASSWORD_OID: "challenge_password",
    OTP_CHALLENGE_OID: "otp_challenge",
    REVOCATION_CHALLENGE_OID: "revocation_challenge",
    EST_IDENTITY_LINKING_OID: "est_identity_linking",
}


def string(text: str, tag: int = 0x0C) -> bytes:
    return der.tlv(tag, text.encode(TYPES.get(tag, "latin-1")))


def field(*attributes: bytes) -> bytes:
    return der.tlv(0xA0, *attributes)


def challenges(*attributes: bytes) -> Challenges:
    return read_challenges(read_attributes(field(*attributes)))


def refused(*attributes: bytes) -> str:
    with pytest.raises(InvalidCSR) as caught:
        challenges(*attributes)
    return caught.value.code


def test_a_request_without_attributes_has_no_challenges() -> None:
    assert read_challenges(read_attributes(b"")) == Challenges()
    assert challenges() == Challenges()


def test_M1_the_challenge_of_a_real_csr_is_read() -> None:
    builder = x509.CertificateSigningRequestBuilder(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web")])
    ).add_extension(x509.SubjectAlternativeName([x509.DNSName("web.test")]), critical=False)
    for oid in FIELDS:
        builder = builder.add_attribute(x509.ObjectIdentifier(oid), (oid + LINK).encode())
    request = parse_csr(builder.sign(KEY, SHA256()).public_bytes(Encoding.DER))
    found = read_challenges(read_attributes(request.attributes))
    assert {oid: getattr(found, name) for oid, name in FIELDS.items()} == {
        oid: oid + LINK for oid in FIELDS
    }


@pytest.mark.parametrize("tag", TYPES)
@pytest.mark.parametrize("oid", FIELDS)
def test_M5_four_string_types_are_the_same_challenge(tag: int, oid: str) -> None:
    found = challenges(attribute(oid, string(LINK, tag)))
    assert getattr(found, FIELDS[oid]) == LINK


def test_M5_white_space_is_part_of_the_value() -> None:
    found = challenges(attribute(CHALLENGE_PASSWORD_OID, string(LINK + "\n ")))
    assert found.challenge_password == LINK + "\n "


@pytest.mark.parametrize("tag", [0x14, 0x1C, 0x04, 0x30])
def test_M5_other_types_are_refused(tag: int) -> None:
    assert refused(attribute(CHALLENGE_PASSWORD_OID, der.tlv(tag, b"abcd"))) == (
        "csr.attribute_string"
    )


@pytest.mark.parametrize(
    "element", [b"\x13\x01\xe4", b"\x0c\x01\xff", b"\x1e\x03abc", b"\x0c\x05a"]
)
def test_M5_octets_that_are_not_text_are_refused(element: bytes) -> None:
    with pytest.raises((InvalidCSR, MalformedRequest)):
        challenges(attribute(CHALLENGE_PASSWORD_OID, element))


@pytest.mark.parametrize("oid", FIELDS)
def test_M1_over_255_characters_are_refused(oid: str) -> None:
    assert getattr(challenges(attribute(oid, string("a" * 255))), FIELDS[oid]) == "a" * 255
    assert refused(attribute(oid, string("a" * 256))) == "csr.attribute_too_long"


def test_M1_an_empty_challenge_or_two_values_are_refused() -> None:
    assert refused(attribute(CHALLENGE_PASSWORD_OID, string(""))) == "csr.attribute_values"
    assert refused(attribute(CHALLENGE_PASSWORD_OID)) == "csr.attribute_values"
    two = attribute(CHALLENGE_PASSWORD_OID, string("a"), string("b"))
    assert refused(two) == "csr.attribute_values"


def test_the_same_attribute_twice_is_refused() -> None:
    one = attribute(CHALLENGE_PASSWORD_OID, string("a"))
    other = attribute(CHALLENGE_PASSWORD_OID, string("b"))
    assert refused(one, other) == "csr.attribute_repeated"


def test_too_many_attributes_are_refused() -> None:
    many = [attribute(f"1.2.3.{n}", string("a")) for n in range(MAX_ATTRIBUTES + 1)]
    assert read_attributes(field(*many[:-1])).keys() == {f"1.2.3.{n}" for n in range(32)}
    assert refused(*many) == "csr.attribute_count"


@pytest.mark.parametrize(
    ("theirs", "name"),
    [
        (rfc7894.otpChallenge, "otp_challenge"),
        (rfc7894.revocationChallenge, "revocation_challenge"),
        (rfc7894.estIdentityLinking, "est_identity_linking"),
    ],
)
def test_M6_attributes_of_rfc_7894_as_another_encoder_writes_them(theirs: Any, name: str) -> None:
    oid = str(theirs["attrType"])
    value = rfc7894.DirectoryString()
    value["utf8String"] = LINK
    found = challenges(attribute(oid, pyasn1_encode(value)))
    assert getattr(found, name) == LINK


@given(
    st.dictionaries(
        st.sampled_from(sorted(FIELDS)),
        st.tuples(
            st.sampled_from(sorted(TYPES)), st.text("abc +/=ABC09", min_size=1, max_size=255)
        ),
    )
)
def test_what_is_written_is_read(values: dict[str, tuple[int, str]]) -> None:
    found = challenges(*(attribute(oid, string(t, tag)) for oid, (tag, t) in values.items()))
    for oid, name in FIELDS.items():
        assert getattr(found, name) == (values[oid][1] if oid in values else None)


@given(st.binary(max_size=200))
def test_B15_any_octets_give_attributes_or_a_rejection(octets: bytes) -> None:
    for candidate in (octets, der.tlv(0xA0, octets), field(attribute("1.2.3", octets))):
        try:
            read_challenges(read_attributes(candidate))
        except (MalformedRequest, InvalidCSR) as exc:
            assert exc.code


def test_B15_every_single_bit_of_the_attributes() -> None:
    whole = field(*(attribute(oid, string("abc")) for oid in FIELDS))
    for place in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        try:
            read_challenges(read_attributes(bytes(damaged)))
        except (MalformedRequest, InvalidCSR) as exc:
            assert exc.code


@given(st.lists(st.integers(0, 2**70), max_size=6), st.integers(0, 2), st.integers(0, 39))
def test_object_identifiers_are_read_as_written(arcs: list[int], first: int, second: int) -> None:
    dotted = ".".join(map(str, (first, second, *arcs)))
    if len(der.oid(dotted)) <= 66:
        assert der.oid_text(der.oid(dotted)) == dotted


@given(st.integers(0, 2**200))
def test_integers_are_read_as_written(number: int) -> None:
    assert der.integer_value(der.integer(number)) == number


@pytest.mark.parametrize(
    "octets", ["0200", "020180", "02020001", "0201", "060180", "0600", "0603808001"]
)
def test_integers_and_identifiers_have_one_encoding(octets: str) -> None:
    element = bytes.fromhex(octets)
    with pytest.raises(MalformedRequest):
        der.integer_value(element) if octets[:2] == "02" else der.oid_text(element)
