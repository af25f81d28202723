"""csrattrs on the wire: examples of the RFC, read as written, and any octets without harm."""

from __future__ import annotations

import base64

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from estcore.errors import MalformedRequest
from estcore.est.csr_keys import usual_hash
from estcore.est.csrattrs import (
    ANY_IP,
    EXTENSION_TEMPLATE_OID,
    MAX_CSRATTRS_BYTES,
    SAN_OID,
    TEMPLATE_OID,
    CSRAttrsForm,
    CSRDemands,
    ExtensionDemand,
    RDNDemand,
    encode_csrattrs,
    parse_csrattrs,
)
from estcore.pki import der
from estcore.pki.attributes import (
    EXTENSION_REQUEST_OID,
    attribute,
)
from estcore.pki.names import LONG_NAMES
from estcore.pki.profile import KeyAlgorithm

ALGORITHMS = ("ec-p256", "ec-p384", "ec-p521", "rsa-2048", "rsa-3072", "rsa-4096", "ed25519")
CN, OU, SERIAL = "2.5.4.3", "2.5.4.11", "2.5.4.5"

CORRECTED_7030 = "MDIGCSqGSIb3DQEJBzASBgcqhkjOPQIBMQcGBSuBBAAiBgcrBgEBAQEWBggqhkjOPQQDAw=="
RSA_4096 = "MCkGCSqGSIb3DQEJBzARBgkqhkiG9w0BAQExBAICEAAGCSqGSIb3DQEBCw=="
P384_SERIAL = "MD0GCSqGSIb3DQEJBzASBgcqhkjOPQIBMQcGBSuBBAAiMBIGCSqGSIb3DQEJDjEFBgNVBAUGCCqGSM49BAMD"
P521_DRINK = (
    "MFQGCSqGSIb3DQEJBzASBgcqhkjOPQIBMQcGBSuBBAAjMCkGCSqGSIb3DQEJDjEcBgNVBAUGCSqG"
    "SIb3DQEJFAYKCZImiZPyLGQBBQYIKoZIzj0EAwQ="
)
POTATO = (
    "MGcGCSqGSIb3DQEJBzASBgcqhkjOPQIBMQcGBSuBBAAiMDwGCSqGSIb3DQEJDjEvMC0wKwYDVR0RBCQwIqAgBggrBgEF"
    "BQcICqAUFhJwb3RhdG9AZXhhbXBsZS5jb20GCCqGSM49BAMD"
)


def octets(text: str) -> bytes:
    return base64.b64decode(text)


def refused(der_octets: bytes) -> str:
    with pytest.raises(MalformedRequest) as caught:
        parse_csrattrs(der_octets)
    return caught.value.code


# What RFC 9908 and its examples say.


def test_I7_corrected_example_of_rfc_7030() -> None:
    found = parse_csrattrs(octets(CORRECTED_7030))
    assert found == CSRDemands("ec-p384", "sha384", challenge_password=True)


def test_I9_example_with_an_rsa_key_of_4096_bits() -> None:
    demands = CSRDemands("rsa-4096", "sha256", challenge_password=True)
    assert parse_csrattrs(octets(RSA_4096)) == demands
    assert encode_csrattrs(demands, "legacy") == octets(RSA_4096)


def test_I9_examples_with_identifiers_in_the_extension_request() -> None:
    """Not what RFC 2985 says, but what servers before RFC 9908 and its early examples send."""
    serial = (RDNDemand(SERIAL),)
    assert parse_csrattrs(octets(P384_SERIAL)) == CSRDemands(
        "ec-p384", "sha384", subject=serial, challenge_password=True
    )
    assert parse_csrattrs(octets(P521_DRINK)) == CSRDemands(
        "ec-p521", "sha512", subject=serial, challenge_password=True
    )


def acp_example(*, wrapped: bool = True) -> bytes:
    """The otherName of RFC 8994 in one Extensions, as the dump of the example has it."""
    node = der.tlv(0x16, b"rfc8994+fd739fc23c3440112233445500000000+@acp.example.com")
    name = der.tlv(0xA0, der.oid("1.3.6.1.5.5.7.8.10"), der.tlv(0xA0, node))
    san = der.tlv(0x04, der.tlv(0x30, name))
    extension = der.tlv(0x30, der.oid(SAN_OID), b"\x01\x01\xff", san)
    value = der.tlv(0x30, extension) if wrapped else extension
    return der.tlv(0x30, attribute(EXTENSION_REQUEST_OID, value))


def test_I8_examples_with_a_subject_alternative_name() -> None:
    assert len(acp_example()) == 0x68 + 2
    (acp,) = parse_csrattrs(acp_example()).extensions
    assert (acp.oid, acp.critical, acp.complete) == (SAN_OID, True, True)
    assert encode_csrattrs(CSRDemands(extensions=(acp,)), "legacy") == acp_example()
    assert refused(acp_example(wrapped=False)) == "der.malformed"
    potato = parse_csrattrs(octets(POTATO))
    assert encode_csrattrs(potato, "legacy") == octets(POTATO)


def example_template() -> bytes:
    """RFC 9908 section 3.4, the example with two departments and an address to fill in."""
    rdns = [
        der.tlv(0x31, der.tlv(0x30, der.oid(CN))),
        der.tlv(0x31, der.tlv(0x30, der.oid(OU), der.tlv(0x0C, b"myDept"))),
        der.tlv(0x31, der.tlv(0x30, der.oid(OU), der.tlv(0x0C, b"myGroup"))),
    ]
    curve = der.tlv(0x30, der.oid("1.2.840.10045.2.1"), der.oid("1.2.840.10045.3.1.7"))
    san = der.tlv(0x30, der.tlv(0x82, b"www.myServer.com"), b"\x87\x00")
    usage = bytes.fromhex("03020388")
    extensions = der.tlv(
        0x30,
        der.tlv(0x30, der.oid(SAN_OID), der.tlv(0x04, san)),
        der.tlv(0x30, der.oid("2.5.29.15"), b"\x01\x01\xff", der.tlv(0x04, usage)),
        der.tlv(0x30, der.oid("2.5.29.37")),
    )
    wanted = der.tlv(0xA1, attribute("1.2.840.113549.1.9.16.2.62", extensions))
    template = der.tlv(0x30, b"\x02\x01\x00", der.tlv(0x30, *rdns), der.tlv(0xA0, curve), wanted)
    return der.tlv(0x30, attribute("1.2.840.113549.1.9.16.2.61", template))


def test_I10_example_template_of_rfc_9908() -> None:
    found = parse_csrattrs(example_template())
    assert found.key_algorithm == "ec-p256"
    assert found.subject == (RDNDemand(CN), RDNDemand(OU, "myDept"), RDNDemand(OU, "myGroup"))
    san, usage, extended = found.extensions
    assert [san.complete, usage.complete, extended.complete] == [False, True, False]
    assert (usage.critical, extended.value) == (True, None)
    assert encode_csrattrs(found, "template") == example_template()


def test_I14_a_template_makes_the_list_beside_it_void() -> None:
    (element,) = der.children(example_template())
    both = der.tlv(0x30, *der.children(octets(P384_SERIAL)), element)
    found = parse_csrattrs(both)
    assert found.key_algorithm == "ec-p256"
    assert found.hash_name is None
    assert RDNDemand(SERIAL) not in found.subject
    assert found.challenge_password


# Written and read.

texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=30)
demand_values = st.builds(
    CSRDemands,
    key_algorithm=st.one_of(st.none(), st.sampled_from(ALGORITHMS)),
    subject=st.lists(
        st.builds(
            RDNDemand,
            st.sampled_from([o.dotted_string for o in LONG_NAMES.values()]),
            st.one_of(st.none(), texts),
        ),
        max_size=4,
    ).map(tuple),
    extensions=st.lists(
        st.builds(
            ExtensionDemand,
            st.sampled_from([SAN_OID, "2.5.29.15", "2.5.29.37", "1.3.6.1.5.5.7.1.24"]),
            st.one_of(st.none(), st.just(ANY_IP), st.binary(max_size=40)),
            st.booleans(),
        ),
        max_size=4,
        unique_by=lambda e: e.oid,
    ).map(tuple),
    challenge_password=st.booleans(),
).map(lambda d: CSRDemands(**{**d.__dict__, "exact_subject": bool(d.subject)}))


@given(demand_values, st.sampled_from(["template", "both"]))
def test_I10_a_template_is_read_as_written(demands: CSRDemands, form: CSRAttrsForm) -> None:
    assert parse_csrattrs(encode_csrattrs(demands, form)) == demands


@given(
    st.sampled_from(ALGORITHMS),
    st.lists(st.sampled_from([CN, OU, SERIAL]), unique=True),
    st.one_of(st.none(), st.binary(max_size=40)),
    st.booleans(),
)
def test_I6_a_list_is_read_as_written(
    algorithm: KeyAlgorithm, subject: list[str], value: bytes | None, linked: bool
) -> None:
    demands = CSRDemands(
        key_algorithm=algorithm,
        hash_name=usual_hash(algorithm),
        subject=tuple(RDNDemand(oid) for oid in subject),
        extensions=(
            ExtensionDemand("2.5.29.15", b"", critical=True),
            ExtensionDemand(SAN_OID, value),
        ),
        challenge_password=linked,
    )
    assume(demands.extensions[1].complete or value is None)
    assert parse_csrattrs(encode_csrattrs(demands, "legacy")) == demands


@given(st.binary(max_size=300))
def test_I6_any_octets_give_demands_or_a_malformed_request(noise: bytes) -> None:
    for candidate in (noise, der.tlv(0x30, noise), der.tlv(0x30, attribute(TEMPLATE_OID, noise))):
        try:
            parse_csrattrs(candidate)
        except MalformedRequest as exc:
            assert exc.code


@pytest.mark.parametrize(
    "example",
    [example_template(), octets(RSA_4096), octets(P521_DRINK), acp_example()],
    ids=["template", "rsa", "drink", "acp"],
)
def test_I6_every_single_bit_of_an_answer(example: bytes) -> None:
    for place in range(len(example) * 8):
        damaged = bytearray(example)
        damaged[place // 8] ^= 1 << place % 8
        try:
            parse_csrattrs(bytes(damaged))
        except MalformedRequest as exc:
            assert exc.code
    for end in range(len(example)):
        refused(example[:end])
    assert refused(example + b"\x00") == "der.malformed"


EC_KEY = attribute("1.2.840.10045.2.1", der.oid("1.3.132.0.34"))


def template(*fields: bytes) -> bytes:
    return attribute(TEMPLATE_OID, der.tlv(0x30, *fields))


def open_san(partial: bool = True) -> bytes:
    oid = EXTENSION_TEMPLATE_OID if partial else EXTENSION_REQUEST_OID
    return attribute(oid, der.tlv(0x30, der.tlv(0x30, der.oid(SAN_OID))))


@pytest.mark.parametrize(
    ("items", "code"),
    [
        ([EC_KEY, EC_KEY], "csrattrs.malformed"),
        ([attribute("1.2.840.10045.2.1", der.oid("1.3.132.0.10"))], "csrattrs.key"),
        ([attribute("1.2.840.113549.1.1.1", der.integer(1024))], "csrattrs.key"),
        ([attribute("1.2.840.113549.1.1.1", der.integer(2048), der.integer(4096))], "csrattrs.key"),
        ([attribute("1.3.101.112", b"\x05\x00")], "csrattrs.key"),
        ([attribute(EXTENSION_REQUEST_OID)], "csrattrs.malformed"),
        ([open_san(partial=False)], "csrattrs.malformed"),
        ([template(b"\x02\x01\x00", b"\xa1\x00")] * 2, "csrattrs.malformed"),
        ([template(b"\x02\x01\x01", b"\xa1\x00")], "csrattrs.malformed"),
        ([template(b"\x02\x01\x00")], "csrattrs.malformed"),
        ([template(b"\x02\x01\x00", b"\x30\x00", b"\xa1\x00")], "csrattrs.malformed"),
        ([template(b"\x02\x01\x00", der.tlv(0xA1, open_san(), open_san()))], "csrattrs.malformed"),
        (
            [template(b"\x02\x01\x00", der.tlv(0xA1, open_san(), open_san(partial=False)))],
            "csrattrs.malformed",
        ),
        ([template(b"\x02\x01\x00", b"\xa0\x00", b"\xa1\x00")], "csrattrs.key"),
        ([der.oid("1.2.3")] * 65, "csrattrs.too_large"),
        ([der.tlv(0x04, bytes(MAX_CSRATTRS_BYTES))], "csrattrs.too_large"),
    ],
)
def test_I6_contradictions_are_refused(items: list[bytes], code: str) -> None:
    assert refused(der.tlv(0x30, *items)) == code


def test_I6_what_is_not_known_is_ignored() -> None:
    unknown = [der.oid("1.2.3"), attribute("1.2.4", b"\x05\x00"), attribute("1.2.5")]
    assert parse_csrattrs(der.tlv(0x30, *unknown)).empty
    open_keys = (attribute("1.2.840.10045.2.1"), attribute("1.2.840.113549.1.1.1"))
    found = [parse_csrattrs(der.tlv(0x30, k)).key_algorithm for k in open_keys]
    assert found == ["ec-p256", "rsa-3072"]
