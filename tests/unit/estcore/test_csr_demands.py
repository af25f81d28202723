"""What csrattrs say of a profile: other parsers, and that a client which follows them is not refused."""

from __future__ import annotations

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

from estcore.errors import RequestRejected
from estcore.est.csr_demands import csr_builder, demands_for
from estcore.est.csrattrs import (
    ANY_IP,
    EXTENSION_TEMPLATE_OID,
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
    CHALLENGE_PASSWORD_OID,
    EXTENSION_REQUEST_OID,
    read_attributes,
    read_challenges,
)
from estcore.pki.certificate import signing_hash
from estcore.pki.csr import parse_csr
from estcore.pki.profile import KeyAlgorithm, Profile
from estcore.policy.decide import check_names, check_profile
from estcore.policy.document import Names
from estcore.policy.granted_names import granted_request

FORMS: tuple[CSRAttrsForm, ...] = ("legacy", "template", "both")
ALGORITHMS = ("ec-p256", "ec-p384", "ec-p521", "rsa-2048", "rsa-3072", "rsa-4096", "ed25519")
CN, SERIAL = "2.5.4.3", "2.5.4.5"
NOBODY = x509.Name([])
WEB = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web.test")])


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


# What follows from a profile.


def test_I3_no_demands_are_an_empty_sequence() -> None:
    for form in FORMS:
        assert encode_csrattrs(CSRDemands(), form) == b"\x30\x00"
    assert parse_csrattrs(b"\x30\x00").empty


def test_I4_linking_is_required_in_every_form() -> None:
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
def test_I5_key_curve_size_and_hash_are_listed(algorithm: str, lines: list[str]) -> None:
    """By openssl."""
    demands = demands_for(profile(key_algorithms=(algorithm, "rsa-2048")))
    text = dump(encode_csrattrs(demands, "legacy"))
    for line in lines:
        assert line in text


def test_I6_items_are_identifiers_or_attributes() -> None:
    """By pyasn1's RFC 7030 module."""
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
    """By pyasn1's RFC 9908 module."""
    demands = demands_for(profile(key_algorithms=(algorithm,)), linking_required=True)
    found = template_of(encode_csrattrs(demands, "both"))
    assert int(found["version"]) == 0
    assert found["subjectPKInfo"].isValue
    assert [str(a["type"]) for a in found["attributes"]] == [CHALLENGE_PASSWORD_OID]


def test_I11_subject_is_there_exactly_when_it_is_demanded() -> None:
    one = Names(common_names=("web.test",))
    several = Names(common_names=("*.test",))
    fixed = template_of(encode_csrattrs(demands_for(profile(), one), "template"))
    (rdn,) = fixed["subject"]["rdnSequence"]
    assert bytes(rdn[0]["value"]) == b"\x0c\x08web.test"
    left_open = template_of(encode_csrattrs(demands_for(profile(), several), "template"))
    (rdn,) = left_open["subject"]["rdnSequence"]
    assert str(rdn[0]["type"]) == CN
    assert not rdn[0]["value"].isValue
    for free in (profile(), profile(san_required=True), profile(subject_attributes=("O",))):
        none = template_of(encode_csrattrs(demands_for(free), "template"))
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
        (("dns",), Names(dns=("{sub}.test",)), None),
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


def test_I13_the_size_of_an_rsa_key_is_that_of_a_placeholder() -> None:
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


# A client that follows csrattrs is not refused.

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


def follow(demands: CSRDemands, subject: x509.Name, san: Any) -> Any:
    """The request of a client that follows the demands, as the front end parses it."""
    assert demands.key_algorithm is not None
    private = key(demands.key_algorithm)
    builder = csr_builder(demands, subject=subject, san=san, challenge="binding")
    signed = builder.sign(private, signing_hash(private.public_key()))
    return parse_csr(signed.public_bytes(Encoding.DER))


@given(situations(), st.sampled_from(FORMS), st.booleans())
def test_I16_a_csr_made_from_csrattrs_passes_the_checks(
    situation: tuple[Profile, Names | None, x509.Name, Any], form: CSRAttrsForm, linked: bool
) -> None:
    wanted, names, subject, (rule, san) = situation
    demands = parse_csrattrs(
        encode_csrattrs(demands_for(wanted, names, linking_required=linked), form)
    )
    request = follow(demands, subject, san)
    check_profile(granted_request(request, wanted, "test", "web"), wanted)
    check_names(request, rule)
    challenges = read_challenges(read_attributes(request.attributes))
    assert challenges.challenge_password == ("binding" if linked else None)


@given(situations(), st.sampled_from(FORMS), st.booleans())
def test_I16_one_name_is_enough_and_any_where_none_is_demanded(
    situation: tuple[Profile, Names | None, x509.Name, Any], form: CSRAttrsForm, by_subject: bool
) -> None:
    """A client with a common name and a SAN sends only what is demanded, or one of its choice."""
    wanted, _, _, (rule, san) = situation
    demands = parse_csrattrs(encode_csrattrs(demands_for(wanted, rule), form))
    host = next(iter(rule.common_names + rule.dns), "web.test").replace("*", "web")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    san = san or x509.SubjectAlternativeName([x509.DNSName(host)])
    use_subject = bool(demands.subject) or (by_subject and not demands.extensions)
    request = follow(demands, subject if use_subject else NOBODY, None if use_subject else san)
    check_profile(granted_request(request, wanted, "test", "web"), wanted)
    check_names(request, rule)


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
