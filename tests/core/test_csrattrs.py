"""csrattrs: examples of the RFC, other parsers, and that whoever follows them is not refused."""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import subprocess
from functools import cache
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import assume, given
from hypothesis import strategies as st
from pyasn1.codec.der.decoder import decode as pyasn1_decode
from pyasn1_alt_modules import rfc5280, rfc7030, rfc9908

from estcore.errors import MalformedRequest, RequestRejected
from estcore.est.csr_demands import csr_builder, demands_for
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
    fixed_san,
    parse_csrattrs,
)
from estcore.est.serverkeygen import new_key
from estcore.pki import der
from estcore.pki.attributes import (
    EXTENSION_REQUEST_OID,
    attribute,
    read_attributes,
    read_challenges,
)
from estcore.pki.certificate import signing_hash
from estcore.pki.csr import CHALLENGE_PASSWORD_OID, parse_csr
from estcore.pki.names import LONG_NAMES
from estcore.pki.profile import KeyAlgorithm, Profile
from estcore.policy.decide import check_names, check_profile
from estcore.policy.document import Names

FORMS: tuple[CSRAttrsForm, ...] = ("legacy", "template", "both")
ALGORITHMS = ("ec-p256", "ec-p384", "ec-p521", "rsa-2048", "rsa-3072", "rsa-4096", "ed25519")
CN, OU, SERIAL = "2.5.4.3", "2.5.4.11", "2.5.4.5"
NOBODY = x509.Name([])
WEB = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web.test")])

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


def profile(**changes: object) -> Profile:
    values: dict[str, object] = {
        "name": "web",
        "lifetime": dt.timedelta(days=30),
        "key_algorithms": ("ec-p256",),
    }
    return Profile.model_validate(values | changes)


@cache
def key(algorithm: KeyAlgorithm) -> Any:
    return new_key(algorithm)


def dump(der_octets: bytes) -> str:
    run = subprocess.run(
        ["openssl", "asn1parse", "-inform", "DER"],
        input=der_octets,
        capture_output=True,
        check=True,
    )
    return run.stdout.decode()


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


# What follows from a profile.


def test_I3_no_demands_are_an_empty_sequence() -> None:
    for form in FORMS:
        assert encode_csrattrs(CSRDemands(), form) == b"\x30\x00"
    assert parse_csrattrs(b"\x30\x00").empty


def test_I4_linking_is_told_in_every_form() -> None:
    demands = demands_for(profile(), linking_required=True)
    for form in FORMS:
        encoded = encode_csrattrs(demands, form)
        assert der.oid(CHALLENGE_PASSWORD_OID) in der.children(encoded)
        assert parse_csrattrs(encoded).challenge_password
    for form in FORMS:
        assert der.oid(CHALLENGE_PASSWORD_OID) not in encode_csrattrs(demands_for(profile()), form)


@pytest.mark.parametrize(
    ("algorithm", "lines"),
    [
        ("ec-p384", [":id-ecPublicKey", ":secp384r1", ":ecdsa-with-SHA384"]),
        ("rsa-3072", [":rsaEncryption", ":0C00", ":sha256WithRSAEncryption"]),
        ("ed25519", [":ED25519"]),
    ],
)
def test_I5_key_curve_size_and_hash_are_told(algorithm: str, lines: list[str]) -> None:
    """Judge: openssl."""
    demands = demands_for(profile(key_algorithms=(algorithm, "rsa-2048")))
    text = dump(encode_csrattrs(demands, "legacy"))
    for line in lines:
        assert line in text


def test_I6_items_are_identifiers_or_attributes() -> None:
    """Judge: pyasn1's RFC 7030 module."""
    demands = demands_for(
        profile(san_required=True), Names(dns=("web.test",)), linking_required=True
    )
    found, rest = pyasn1_decode(encode_csrattrs(demands, "both"), asn1Spec=rfc7030.CsrAttrs())
    kinds = [item.getName() for item in found]
    assert kinds == ["oid", "attribute", "attribute", "oid", "attribute"]
    assert not rest


def test_I8_all_extensions_are_in_one_request() -> None:
    usage = ExtensionDemand("2.5.29.15", bytes.fromhex("03020780"), critical=True)
    san = ExtensionDemand(SAN_OID, fixed_san(x509.DNSName("web.test")))
    encoded = encode_csrattrs(CSRDemands(extensions=(usage, san)), "legacy")
    found, _ = pyasn1_decode(encoded, asn1Spec=rfc7030.CsrAttrs())
    assert len(found) == 1
    assert str(found[0]["attribute"]["attrType"]) == EXTENSION_REQUEST_OID
    (value,) = found[0]["attribute"]["attrValues"]
    extensions, _ = pyasn1_decode(bytes(value), asn1Spec=rfc5280.Extensions())
    assert [str(e["extnID"]) for e in extensions] == ["2.5.29.15", SAN_OID]
    with pytest.raises(ValueError, match="twice"):
        encode_csrattrs(CSRDemands(extensions=(san, san)))


def template_of(encoded: bytes) -> Any:
    values = [
        der.children(der.children(item)[1])
        for item in der.children(encoded)
        if item.startswith(b"\x30") and der.children(item)[0] == der.oid(TEMPLATE_OID)
    ]
    ((value,),) = values
    found, rest = pyasn1_decode(value, asn1Spec=rfc9908.CertificationRequestInfoTemplate())
    assert not rest
    return found


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_I10_template_as_another_parser_reads_it(algorithm: str) -> None:
    """Judge: pyasn1's RFC 9908 module."""
    demands = demands_for(profile(key_algorithms=(algorithm,)), linking_required=True)
    found = template_of(encode_csrattrs(demands, "both"))
    assert int(found["version"]) == 0
    assert found["subjectPKInfo"].isValue
    assert [str(a["type"]) for a in found["attributes"]] == [CHALLENGE_PASSWORD_OID]


def test_I11_subject_is_there_exactly_when_it_is_demanded() -> None:
    one = Names(dns=("web.test",))
    several = Names(dns=("*.test",))
    fixed = template_of(encode_csrattrs(demands_for(profile(), one), "template"))
    (rdn,) = fixed["subject"]["rdnSequence"]
    assert bytes(rdn[0]["value"]) == b"\x0c\x08web.test"
    left_open = template_of(encode_csrattrs(demands_for(profile(), several), "template"))
    (rdn,) = left_open["subject"]["rdnSequence"]
    assert str(rdn[0]["type"]) == CN
    assert not rdn[0]["value"].isValue
    none = template_of(encode_csrattrs(demands_for(profile(san_required=True)), "template"))
    assert not none["subject"].isValue


@pytest.mark.parametrize(
    ("kinds", "names", "value"),
    [
        (("dns",), None, None),
        (("ip",), None, ANY_IP),
        (("dns", "ip"), Names(ips=("10.0.0.0/8",)), ANY_IP),
        (("dns", "ip"), Names(dns=("web.test",)), fixed_san(x509.DNSName("web.test"))),
        (("dns",), Names(dns=("web.test", "WEB.test")), fixed_san(x509.DNSName("web.test"))),
        (("dns",), Names(dns=("web.test", "www.test")), None),
        (("dns",), Names(dns=("web.test",), dns_suffixes=("test",)), None),
        (("ip",), Names(ips=("no address",)), ANY_IP),
        (
            ("ip",),
            Names(ips=("10.0.0.1",)),
            fixed_san(x509.IPAddress(ipaddress.ip_address("10.0.0.1"))),
        ),
        (("email",), Names(emails=("a@b.test",)), fixed_san(x509.RFC822Name("a@b.test"))),
        (("uri",), Names(uri_prefixes=("spiffe://test/",)), None),
    ],
)
def test_I12_what_is_left_to_the_client(
    kinds: tuple[str, ...], names: Names | None, value: bytes | None
) -> None:
    demands = demands_for(profile(san_required=True, san_kinds=kinds), names)
    assert demands.extensions == (ExtensionDemand(SAN_OID, value),)
    for form in ("template", "both"):
        assert parse_csrattrs(encode_csrattrs(demands, form)).extensions == demands.extensions


def test_I13_never_both_kinds_of_extension_requests() -> None:
    usage = ExtensionDemand("2.5.29.15", bytes.fromhex("03020780"), critical=True)
    for value in (None, ANY_IP, fixed_san(x509.DNSName("web.test"))):
        demand = ExtensionDemand(SAN_OID, value)
        found = template_of(encode_csrattrs(CSRDemands(extensions=(usage, demand)), "template"))
        kind = EXTENSION_REQUEST_OID if demand.complete else EXTENSION_TEMPLATE_OID
        assert [str(a["type"]) for a in found["attributes"]] == [kind]


def test_I13_the_size_of_an_rsa_key_is_told_by_a_placeholder_of_that_size() -> None:
    demands = demands_for(profile(key_algorithms=("rsa-4096",)))
    found = template_of(encode_csrattrs(demands, "template"))
    placeholder = found["subjectPKInfo"]["subjectPublicKey"].asOctets()
    modulus, _ = der.children(placeholder)
    assert der.integer_value(modulus).bit_length() == 4096


def test_I17_the_answer_is_small() -> None:
    demands = demands_for(profile(key_algorithms=("rsa-4096",)), linking_required=True)
    encoded = encode_csrattrs(demands, "both")
    assert len(encoded) < 1000
    assert len(der.children(encoded)) <= 16
    assert len(encode_csrattrs(demands_for(profile(san_required=True)), "legacy")) < 100


# Whoever follows csrattrs is not refused.

hosts = st.from_regex(r"[a-z]{1,10}\.[a-z]{1,10}\.test", fullmatch=True)
KINDS = ("dns", "ip", "uri", "email")


@st.composite
def situations(draw: st.DrawFn) -> tuple[Profile, Names | None, x509.Name, Any]:
    """A profile, a rule or none, and names of a client that the rule allows."""
    host = draw(hosts)
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, unique=True))
    attributes = draw(st.sampled_from([("CN",), ("CN", "O"), ("O",), ()]))
    rule = Names(
        common_names=draw(st.sampled_from([(), (host,), ("*." + host.partition(".")[2],)])),
        dns=draw(st.sampled_from([(), (host,), (host, "*.test")])),
        dns_suffixes=draw(st.sampled_from([(), ("test",)])),
        ips=draw(st.sampled_from([(), ("10.1.2.3",), ("10.0.0.0/8",)])),
        uri_prefixes=draw(st.sampled_from([(), ("spiffe://test/",)])),
        emails=draw(st.sampled_from([(), ("ops@b.test",)])),
    )
    entries = {
        "dns": (rule.dns or rule.dns_suffixes, x509.DNSName(host)),
        "ip": (rule.ips, x509.IPAddress(ipaddress.ip_address("10.1.2.3"))),
        "uri": (rule.uri_prefixes, x509.UniformResourceIdentifier("spiffe://test/web")),
        "email": (rule.emails, x509.RFC822Name("ops@b.test")),
    }
    own = [entry for kind, (allowed, entry) in entries.items() if kind in kinds and allowed]
    named = "CN" in attributes and bool(rule.common_names or rule.dns or rule.dns_suffixes)
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, host)] if named else []
    dns_possible = "dns" in kinds
    wanted = profile(
        key_algorithms=tuple(
            draw(st.lists(st.sampled_from(ALGORITHMS), min_size=1, max_size=3, unique=True))
        ),
        subject_attributes=attributes,
        san_kinds=tuple(kinds),
        san_required=draw(st.booleans()),
        common_name_to_dns_san=dns_possible and draw(st.booleans()),
    )
    # A rule under which this profile refuses everybody is not csrattrs' to mend.
    assume(own or (named and not (wanted.san_required and not wanted.common_name_to_dns_san)))
    san = x509.SubjectAlternativeName(own) if own else None
    return wanted, draw(st.sampled_from([rule, rule, None])), x509.Name(subject), (rule, san)


@given(situations(), st.sampled_from(FORMS), st.booleans())
def test_I16_whoever_follows_csrattrs_passes_the_checks(
    situation: tuple[Profile, Names | None, x509.Name, Any], form: CSRAttrsForm, linked: bool
) -> None:
    wanted, told, subject, (rule, san) = situation
    demands = parse_csrattrs(
        encode_csrattrs(demands_for(wanted, told, linking_required=linked), form)
    )
    assert demands.key_algorithm is not None
    private = key(demands.key_algorithm)
    builder = csr_builder(demands, subject=subject, san=san, challenge="binding")
    signed = builder.sign(private, signing_hash(private.public_key()))
    request = parse_csr(signed.public_bytes(Encoding.DER))
    check_profile(request, wanted)
    check_names(request, rule)
    challenges = read_challenges(read_attributes(request.attributes))
    assert challenges.challenge_password == ("binding" if linked else None)


def test_I15_a_client_learns_what_it_lacks() -> None:
    san = ExtensionDemand(SAN_OID)
    lacking = (
        CSRDemands(subject=(RDNDemand(SERIAL),)),
        CSRDemands(subject=(RDNDemand(SERIAL),), exact_subject=True),
        CSRDemands(subject=(RDNDemand("2.5.4.6", "Atlantis"),), exact_subject=True),
        CSRDemands(extensions=(san,)),
        CSRDemands(extensions=(ExtensionDemand("2.5.29.37"),)),
        CSRDemands(challenge_password=True),
    )
    for demands in lacking:
        with pytest.raises(RequestRejected) as caught:
            csr_builder(demands, subject=WEB)
        assert caught.value.code == "csrattrs.unanswerable"
    assert csr_builder(CSRDemands(), subject=WEB) is not None


# Written and read.

texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=30)
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
        hash_name=demands_for(profile(key_algorithms=(algorithm,))).hash_name,
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
