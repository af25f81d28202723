"""Requests of tools of other makers: read where it is harmless, else refused with a reason."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from estcore.errors import RequestRejected
from estcore.pki import der
from estcore.pki.attributes import EXTENSION_REQUEST_OID
from estcore.pki.csr import CertificationRequest, parse_csr
from estcore.pki.csr_structure import (
    BASIC_CONSTRAINTS_OID,
    EXTENDED_KEY_USAGE_OID,
    KEY_USAGE_OID,
    MICROSOFT_EXTENSION_REQUEST_OID,
    SAN_OID,
)
from estcore.pki.profile import Profile
from estcore.policy.granted_names import granted_request, granted_usages, own_names
from estsuite_testing.encodings import csr_attribute, extension, name, signed_csr

SAN = der.tlv(der.SEQUENCE, b"\x82\x03web")
OTHER_OID = "1.3.6.1.4.1.311.25.2"


def requested(*extensions: bytes) -> bytes:
    """An extension request of PKCS#9."""
    return csr_attribute(EXTENSION_REQUEST_OID, der.tlv(der.SEQUENCE, *extensions))


def profile(**policy: object) -> Profile:
    return Profile.model_validate(
        {
            "name": "devices",
            "lifetime": "90d",
            "key_usage": ["digital_signature"],
            "extended_key_usage": ["client_auth"],
            "key_algorithms": ["ec-p256"],
            "extensions": policy,
        }
    )


def issue(octets: bytes, **policy: object) -> CertificationRequest:
    """What every service does with a request before its certificate is built."""
    terms = profile(**policy)
    request = parse_csr(octets)
    own_names(request, terms, "clinic", "web")
    granted_usages(request, terms)
    return granted_request(request, terms, "clinic", "web")


def refusal(octets: bytes, **policy: object) -> tuple[str, str]:
    with pytest.raises(RequestRejected) as caught:
        issue(octets, **policy)
    return caught.value.code, caught.value.reason


UNSORTED = (
    csr_attribute("1.2.840.113549.1.9.2", der.tlv(0x0C, b"x")),
    requested(extension(SAN_OID, SAN)),
)


@pytest.mark.parametrize(
    "octets",
    [
        signed_csr(requested(extension(SAN_OID, SAN))),
        signed_csr(requested(extension(SAN_OID, SAN, critical=b"\x00"))),
        signed_csr(requested(extension(SAN_OID, SAN, critical=b"\xff"))),
        signed_csr(*UNSORTED),
        signed_csr(*reversed(UNSORTED)),
        signed_csr(
            csr_attribute(
                MICROSOFT_EXTENSION_REQUEST_OID, der.tlv(der.SEQUENCE, extension(SAN_OID, SAN))
            )
        ),
        signed_csr(
            requested(extension(SAN_OID, SAN)),
            csr_attribute(
                MICROSOFT_EXTENSION_REQUEST_OID, der.tlv(der.SEQUENCE, extension(SAN_OID, SAN))
            ),
        ),
        signed_csr(
            requested(
                extension(SAN_OID, SAN),
                extension(BASIC_CONSTRAINTS_OID, bytes.fromhex("3003010100")),
            )
        ),
    ],
    ids=["der", "critical FALSE", "critical", "attributes", "attributes turned", "Microsoft",
         "both equal", "cA FALSE"],
)  # fmt: skip
@pytest.mark.parametrize("other", ["override", "deny"])
def test_what_openssl_and_go_read_is_read(octets: bytes, other: str) -> None:
    assert issue(octets, other=other).san == ("dns:web",)


def test_two_extension_requests_that_differ_are_refused_in_either_order() -> None:
    usage = der.tlv(der.SEQUENCE, extension(KEY_USAGE_OID, bytes.fromhex("030205a0")))
    pair = (
        csr_attribute(MICROSOFT_EXTENSION_REQUEST_OID, usage),
        requested(extension(SAN_OID, SAN)),
    )
    for attributes in (pair, pair[::-1]):
        code, reason = refusal(signed_csr(*attributes))
        assert code == "csr.extension_requests_differ"
        assert MICROSOFT_EXTENSION_REQUEST_OID in reason


KEY = ec.generate_private_key(ec.SECP256R1())
GOOD = signed_csr(requested(extension(SAN_OID, SAN)))
ECDSA_WITH_NULL = der.tlv(der.SEQUENCE, der.oid("1.2.840.10045.4.3.2"), b"\x05\x00")


@pytest.mark.parametrize(
    ("octets", "code", "words"),
    [
        (signed_csr(version=1), "csr.version", "version 1"),
        (signed_csr(version=2), "csr.version", "version 2"),
        (signed_csr(no_attributes=True), "csr.attributes_missing", "RFC 2986"),
        (GOOD + b"\0", "csr.trailing_octets", "more octets (1)"),
        (GOOD + GOOD, "csr.trailing_octets", "more octets"),
        (GOOD[:-1], "csr.malformed", "truncated"),
        (b"hello, world", "csr.malformed", "does not begin with a SEQUENCE"),
        (signed_csr(algorithm=ECDSA_WITH_NULL), "csr.signature_algorithm", "NULL"),
        (
            signed_csr(requested(extension(SAN_OID, SAN)), requested(extension(SAN_OID, SAN))),
            "csr.attribute_repeated",
            EXTENSION_REQUEST_OID,
        ),
    ],
)
def test_each_fault_of_the_structure_has_a_reason_of_its_own(
    octets: bytes, code: str, words: str
) -> None:
    found, reason = refusal(octets)
    assert found == code
    assert words in reason


@pytest.mark.parametrize(
    ("tag", "value", "words"),
    [
        (0x13, b"A&B", "'&'"),
        (0x13, b"A@B", "'@'"),
        (0x13, b"A\xe4", "PrintableString"),
        (0x0C, b"\xff", "UTF-8"),
        (0x16, b"\xe4", "IA5String"),
        (0x1E, b"\0a", "BMPString"),
        (0x14, b"a", "TeletexString"),
        (0x1C, b"\0\0\0a", "UniversalString"),
        (0x12, b"1", "NumericString"),
        (0x02, b"\1", "0x02"),
    ],
)
def test_a_wrong_string_type_is_named_with_its_attribute(
    tag: int, value: bytes, words: str
) -> None:
    code, reason = refusal(signed_csr(subject=name(("2.5.4.10", tag, value))))
    assert code == "csr.subject_encoding"
    assert "O " in reason
    assert words in reason


def test_an_rdn_out_of_order_is_refused_because_it_would_be_certified() -> None:
    pairs = [
        der.tlv(der.SEQUENCE, der.oid(oid), der.tlv(0x0C, b"x")) for oid in ("2.5.4.3", "2.5.4.10")
    ]
    rdn = der.tlv(der.SET, *sorted(pairs, reverse=True))
    code, reason = refusal(signed_csr(subject=der.tlv(der.SEQUENCE, rdn)))
    assert code == "csr.subject_encoding"
    assert "RDN 1" in reason


def general_names(*entries: bytes) -> bytes:
    return der.tlv(der.SEQUENCE, *entries)


UNREADABLE_SANS = [
    (general_names(b"\xa3\x00"), "csr.san_kind", "x400Address"),
    (general_names(b"\xa5\x00"), "csr.san_kind", "ediPartyName"),
    (general_names(b"\x87\x05abcde"), "csr.san_value", "5 octets"),
    (general_names(b"\x87\x08\x0a\x01\0\0\xff\xff\0\0"), "name.ip", ""),
    (general_names(b"\x82\x01\xff"), "csr.san_value", "dNSName"),
    (general_names(b"\x81\x01\xff"), "csr.san_value", "rfc822Name"),
    (general_names(b"\x86\x01\xff"), "csr.san_value", "uniformResourceIdentifier"),
    (general_names(b"\xa9\x00"), "csr.extension_malformed", "0xa9"),
    (general_names(), "csr.san_empty", ""),
    (general_names(b"\x82\x01a") + b"\0", "csr.extension_malformed", SAN_OID),
    (b"", "csr.extension_malformed", SAN_OID),
    (general_names(*(b"\x82\x03" + f"{i:03}".encode() for i in range(101))), "csr.san_too_many", ""),
    (general_names(b"\x82\x01\n"), "csr.san_characters", ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "code", "words"), [case for case in UNREADABLE_SANS if case[1] != "name.ip"]
)
def test_each_fault_of_a_san_has_a_reason_of_its_own(value: bytes, code: str, words: str) -> None:
    found, reason = refusal(signed_csr(requested(extension(SAN_OID, value))))
    assert found == code
    assert words in reason


@pytest.mark.parametrize("value", [case[0] for case in UNREADABLE_SANS])
def test_a_san_that_the_profile_leaves_out_condemns_no_request(value: bytes) -> None:
    octets = signed_csr(requested(extension(SAN_OID, value)))
    assert issue(octets, subject_alternative_name="override").san == ()


UNREADABLE = st.binary(max_size=20)


@pytest.mark.parametrize(
    ("oid", "field"),
    [
        (KEY_USAGE_OID, "key_usage"),
        (EXTENDED_KEY_USAGE_OID, "extended_key_usage"),
        (BASIC_CONSTRAINTS_OID, "other"),
        (SAN_OID, "subject_alternative_name"),
    ],
)
@given(value=UNREADABLE)
def test_an_unreadable_extension_counts_only_where_the_profile_reads_it(
    oid: str, field: str, value: bytes
) -> None:
    octets = signed_csr(requested(extension(oid, value)))
    leave_out = {"subject_alternative_name": "override"} if oid == SAN_OID else {}
    issue(octets, **leave_out)
    try:
        issue(octets, **{field: "deny"})
    except RequestRejected as exc:
        assert exc.code in {"profile.extension", "csr.extension_malformed", "csr.san_kind",
                            "csr.san_value", "csr.san_empty", "csr.san_characters"}  # fmt: skip


@given(UNREADABLE)
def test_an_extension_that_is_never_copied_is_never_parsed(value: bytes) -> None:
    octets = signed_csr(requested(extension(OTHER_OID, value), extension(SAN_OID, SAN)))
    assert issue(octets).san == ("dns:web",)
    assert refusal(octets, other="deny")[0] == "profile.extension"


@pytest.mark.parametrize(
    ("oid", "field"),
    [
        (SAN_OID, "subject_alternative_name"),
        (KEY_USAGE_OID, "key_usage"),
        (EXTENDED_KEY_USAGE_OID, "extended_key_usage"),
    ],
)
def test_an_extension_that_stands_twice_is_named(oid: str, field: str) -> None:
    values = {
        SAN_OID: SAN,
        KEY_USAGE_OID: bytes.fromhex("03020780"),
        EXTENDED_KEY_USAGE_OID: bytes.fromhex("300a06082b06010505070302"),
    }
    octets = signed_csr(requested(extension(oid, values[oid]), extension(oid, values[oid])))
    code, reason = refusal(octets, **{field: "deny"})
    assert code == "csr.extension_repeated"
    assert oid in reason
    assert issue(octets, **{field: "override"}).san == ()


def test_a_criticality_that_is_no_boolean_is_refused_where_the_extension_counts() -> None:
    octets = signed_csr(requested(extension(SAN_OID, SAN, critical=b"\x01")))
    code, reason = refusal(octets)
    assert code == "csr.extension_malformed"
    assert "criticality" in reason


def test_no_policy_means_that_an_unreadable_san_is_refused_before_a_certificate_is_built() -> None:
    request = parse_csr(signed_csr(requested(extension(SAN_OID, b""))))
    with pytest.raises(RequestRejected):
        own_names(request, None, "", "")


def test_a_signature_over_the_order_as_sent_counts_and_no_other() -> None:
    octets = signed_csr(*UNSORTED)
    turned = signed_csr(*reversed(UNSORTED))
    info, algorithm, _ = der.children(turned)
    foreign = der.tlv(der.SEQUENCE, info, algorithm, der.children(octets)[2])
    assert refusal(foreign)[0] == "csr.signature"


def test_keys_in_an_encoding_that_is_not_certified_are_named() -> None:
    compressed = KEY.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    curve = der.tlv(der.SEQUENCE, der.oid("1.2.840.10045.2.1"), der.oid("1.2.840.10045.3.1.7"))
    spki = der.tlv(der.SEQUENCE, curve, der.tlv(der.BIT_STRING, b"\0", compressed))
    assert refusal(signed_csr(spki=spki)) == (
        "key.encoding",
        "the EC point is compressed; keys are named-curve uncompressed EC, rsaEncryption or "
        "Ed25519",
    )


def test_every_signature_scheme_that_was_accepted_is() -> None:
    key = rsa.generate_private_key(65537, 2048)
    builder = x509.CertificateSigningRequestBuilder(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web")])
    )
    pss = padding.PSS(padding.MGF1(SHA256()), 32)
    for scheme in (None, pss):
        octets = builder.sign(key, SHA256(), rsa_padding=scheme).public_bytes(Encoding.DER)
        assert parse_csr(octets).key_algorithm == "rsa-2048"
