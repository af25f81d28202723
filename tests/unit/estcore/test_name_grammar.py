"""The grammar of certified names: every octet and character class in every kind of name."""

from __future__ import annotations

import ipaddress
import string
import unicodedata
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from estcore.errors import InvalidCSR
from estcore.pki import der
from estcore.pki.name_grammar import (
    DNSRules,
    check_certified_names,
    check_dns_name,
    check_email_address,
    check_general_name,
    check_subject,
    uri_host,
)
from estcore.pki.name_limits import under_uri_prefix
from estcore.pki.names import LONG_NAMES, fold, lower_ascii

ALNUM = frozenset(string.ascii_letters + string.digits)
EVERY_OCTET = [chr(octet) for octet in range(256)]
UTF8, PRINTABLE, IA5 = _ASN1Type.UTF8String, _ASN1Type.PrintableString, _ASN1Type.IA5String
LABEL_63, LABEL_64 = "a" * 63, "a" * 64


def accepts(check: object, *arguments: object) -> bool:
    try:
        check(*arguments)  # type: ignore[operator] # one of the checks
    except ValueError:
        return False
    return True


def subject(short: str, value: str, kind: _ASN1Type) -> bytes:
    """Return a Name of one attribute, as a client may write it: nothing of it is checked."""
    octets = value.encode({UTF8: "utf-8"}.get(kind, "latin-1"))
    oid = der.oid(LONG_NAMES[short].dotted_string)
    attribute = der.tlv(der.SEQUENCE, oid, der.tlv(kind.value, octets))
    return der.tlv(der.SEQUENCE, der.tlv(der.SET, attribute))


def test_every_octet_in_a_dns_name() -> None:
    for octet in EVERY_OCTET:
        inside = ALNUM | {"-", "."}
        assert accepts(check_dns_name, f"a{octet}b.example") == (octet in inside), octet
        assert accepts(check_dns_name, f"{octet}b.example") == (octet in ALNUM), octet
        assert accepts(check_dns_name, f"b{octet}.example") == (octet in ALNUM), octet
        underscored = DNSRules(underscores=True)
        assert accepts(check_dns_name, f"{octet}b.example", underscored) == (
            octet in ALNUM | {"_"}
        ), octet


@pytest.mark.parametrize(
    "name",
    [
        *("localhost", "a.b", "web.clinic.example", "1.example", "a-b.example", "A.EXAMPLE"),
        *(f"{LABEL_63}.example", ".".join(["a" * 61] * 4) + ".abcde"),
        *("xn--bcher-kva.example", "xn--e1afmkfd.xn--p1ai", "xn--fiqs8s"),
    ],
)
def test_a_dns_name_is_accepted(name: str) -> None:
    check_dns_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "a.", ".a", "a..b", "-a.example", "a-.example", f"{LABEL_64}.example"),
        *("a b.example", "host.example:443", "a/b", "a\0.example", "a.example\n", "bücher.example"),
        *("10.0.0.1", "1", "a.1", "0x7f.1", ".".join(["a" * 63] * 4)),
        *("*.example.org", "a.*.example", "a*.example", "*", "*.*.example"),
        *("_a.example", "a_b.example"),
        # Not A-labels: no Punycode, not minimal, upper case inside, a symbol, a leading mark.
        *("xn--a.example", "xn--.example", "ab--c.example", "xn--maana-pta-.example"),
        *("xn--i7iacaaaaaaaaa.example", "xn--n3h.example", "xn--a-zda.example"),
    ],
)
def test_a_dns_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        check_dns_name(name)


def test_a_wildcard_is_one_whole_first_label_and_only_where_it_is_allowed() -> None:
    wild = DNSRules(wildcards=True)
    check_dns_name("*.clinic.example", wild)
    for name in ("*", "*.example", "*.", "a.*.example", "*a.clinic.example", "*.*.clinic.example"):
        assert not accepts(check_dns_name, name, wild), name


@given(st.text(max_size=80))
def test_any_text_is_a_dns_name_or_one_value_error(text: str) -> None:
    if accepts(check_dns_name, text):
        assert text.isascii()
        assert len(text) <= 253
        assert lower_ascii(text) == text.lower()
        with pytest.raises(ValueError, match=r"\S"):
            ipaddress.ip_address(text)


@pytest.mark.parametrize(
    ("uri", "host"),
    [
        ("https://clinic.example/", "clinic.example"),
        ("https://Clinic.Example:8443/a?b=c#d", "clinic.example"),
        ("spiffe://clinic.example/ward/3", "clinic.example"),
        ("https://10.0.0.1/", "10.0.0.1"),
        ("https://[2001:db8::1]:443/", "2001:db8::1"),
        ("urn:device:17", ""),
        ("https://clinic.example?x@evil.example", "clinic.example"),
        ("https://clinic.example/%41", "clinic.example"),
    ],
)
def test_a_uri_is_accepted_and_its_host_is_known(uri: str, host: str) -> None:
    assert uri_host(uri) == host
    assert (urlsplit(uri).hostname or "") == host


@pytest.mark.parametrize(
    "uri",
    [
        *("", ":", "https:", "https://", "https:///a", "//clinic.example/", "/a", "a/b"),
        *("https://clinic.example@evil.example/", "https://user:pw@clinic.example/"),
        *("https://clinic.example\\@evil.example/", "https://clinic.example/a b", "https://a/%4"),
        *("https://clinic.example:99999/", "https://clinic.example:/", "https://clinic.example:x/"),
        *("https://[::1/", "https://[fe80::1%25eth0]/", "https://[::1]x/", "https://a..b/"),
        *("file:/a/../b", "x:a/..", "https://a.example/%2e%2E/b", "https://a.example/.%2e"),
        *("https://clinic.example/../a", "https://clinic.example/./a", "https://bücher.example/"),
        *("https://_a.example/", "https://*.clinic.example/", "1a://clinic.example/"),
    ],
)
def test_a_uri_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        uri_host(uri)


def test_every_octet_in_a_uri() -> None:
    path = ALNUM | set("-._~!$&'()*+,;=:@/?#")
    for octet in EVERY_OCTET:
        assert accepts(uri_host, f"https://a.example/x{octet}y") == (octet in path), octet
        assert accepts(uri_host, f"https://a{octet}b.example/") == (
            octet in ALNUM | set("-./?#")
        ), octet


@given(st.text(max_size=60), st.text(max_size=20))
def test_the_host_of_any_uri_is_that_of_another_parser(authority: str, path: str) -> None:
    uri = f"https://{authority}/{path}"
    if accepts(uri_host, uri):
        assert uri_host(uri) == urlsplit(uri).hostname


@pytest.mark.parametrize(
    ("uri", "prefix", "under"),
    [
        ("https://clinic.example/a", "https://clinic.example", True),
        ("https://clinic.example", "https://clinic.example", True),
        ("https://clinic.example?a", "https://clinic.example", True),
        ("spiffe://clinic.example/a", "spiffe://clinic.example/", True),
        ("urn:device:17", "urn:device:", True),
        ("https://clinic.example@evil.example/", "https://clinic.example", False),
        ("https://clinic.example.evil/", "https://clinic.example", False),
        ("https://clinic.example:8443/", "https://clinic.example", False),
        ("spiffe://clinic.example/ab", "spiffe://clinic.example/a", False),
        ("https://clinic.example/../evil", "https://clinic.example/", False),
    ],
)
def test_a_prefix_ends_at_a_boundary(uri: str, prefix: str, under: bool) -> None:
    assert under_uri_prefix(uri, prefix) is under


def test_every_octet_in_an_email_address() -> None:
    atom = ALNUM | set("!#$%&'*+/=?^_`{|}~-")
    for octet in EVERY_OCTET:
        assert accepts(check_email_address, f"a{octet}b@a.example") == (octet in atom | {"."}), (
            octet
        )
        assert accepts(check_email_address, f"{octet}@a.example") == (octet in atom), octet


@pytest.mark.parametrize(
    "address",
    [
        *("", "@", "a", "a@", "@a.example", ".a@a.example", "a.@a.example", "a..b@a.example"),
        *('"a b"@a.example', "a@[10.0.0.1]", "a@b@a.example", f"{'a' * 65}@a.example"),
        *(f"a@{'b' * 63}.{'c' * 63}.{'d' * 63}.{'e' * 61}", "a@-b.example"),
    ],
)
def test_an_email_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        check_email_address(address)


def test_an_ip_address_is_no_network() -> None:
    for text in ("10.0.0.1", "2001:db8::1"):
        check_general_name(x509.IPAddress(ipaddress.ip_address(text)))
    for text in ("10.1.0.0/16", "10.0.0.1/32", "2001:db8::/32"):
        with pytest.raises(ValueError, match="network"):
            check_general_name(x509.IPAddress(ipaddress.ip_network(text)))


@pytest.mark.parametrize(
    ("short", "kind", "longest"),
    [
        *(("CN", UTF8, 64), ("O", PRINTABLE, 64), ("OU", UTF8, 64), ("L", UTF8, 128)),
        *(("ST", PRINTABLE, 128), ("serialNumber", PRINTABLE, 64), ("DC", IA5, 63)),
        *(("UID", UTF8, 256), ("unstructuredName", IA5, 255)),
    ],
)
def test_a_subject_attribute_has_its_longest_length(
    short: str, kind: _ASN1Type, longest: int
) -> None:
    check_subject(subject(short, "a" * longest, kind))
    for size in (0, longest + 1):
        with pytest.raises(ValueError, match=f"subject {short} has {size} characters"):
            check_subject(subject(short, "a" * size, kind))


@pytest.mark.parametrize(
    ("short", "allowed"),
    [
        *(("CN", {UTF8, PRINTABLE}), ("O", {UTF8, PRINTABLE}), ("C", {PRINTABLE})),
        *(("serialNumber", {PRINTABLE}), ("DC", {IA5}), ("UID", {UTF8, PRINTABLE})),
        *(("emailAddress", {IA5}), ("unstructuredName", {UTF8, PRINTABLE, IA5})),
    ],
)
def test_a_subject_attribute_has_its_string_types(short: str, allowed: set[_ASN1Type]) -> None:
    value = {"C": "DE", "emailAddress": "a@b.example"}.get(short, "a")
    for kind in (UTF8, PRINTABLE, IA5, _ASN1Type.T61String, _ASN1Type.NumericString):
        assert accepts(check_subject, subject(short, value, kind)) == (kind in allowed), kind


def test_every_octet_in_a_printable_string() -> None:
    printable = ALNUM | set(" '()+,-./:=?")
    for octet in map(chr, range(128)):
        encoded = subject("O", f"a{octet}b", PRINTABLE)
        assert accepts(check_subject, encoded) == (octet in printable), octet


def test_no_character_that_is_not_seen_is_in_a_subject() -> None:
    """Controls, format and private characters, line separators, unassigned code points."""
    refused = {"Cc", "Cf", "Cn", "Co", "Zl", "Zp"}
    for point in (*range(0x2FF), *range(0x2000, 0x2070), 0xAD, 0xFEFF, 0xE000, 0xE0001, 0x378):
        character = chr(point)
        shown = unicodedata.category(character) not in refused
        assert accepts(check_subject, subject("CN", f"a{character}b", UTF8)) == shown, hex(point)


def test_a_value_neither_begins_nor_ends_with_a_space() -> None:
    for value in (" a", "a ", " ", "\N{NO-BREAK SPACE}a"):
        assert not accepts(check_subject, subject("O", value, UTF8)), value
    check_subject(subject("O", "a b", UTF8))


@pytest.mark.parametrize("country", ["D", "DEU", "de", "D1", "D ", ""])
def test_a_country_is_two_capital_letters(country: str) -> None:
    assert not accepts(check_subject, subject("C", country, PRINTABLE))
    check_subject(subject("C", "DE", PRINTABLE))


def test_only_ascii_has_cases() -> None:
    """KELVIN SIGN and LONG S are other letters, whatever ``str.lower`` says."""
    assert lower_ascii("WARD-K") == "ward-k"
    assert lower_ascii("\N{KELVIN SIGN}\N{LATIN SMALL LETTER LONG S}") != "ks"
    assert fold("\N{KELVIN SIGN}") != fold("k")
    assert fold("\N{FULLWIDTH LATIN CAPITAL LETTER A}") != fold("a")
    assert fold("  Ward \t 3 ") == "ward \t 3"


def test_the_refusal_names_entry_and_reason_in_ascii() -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web")]).public_bytes()
    entry = x509.DNSName("a\x1b[31m.example")
    with pytest.raises(InvalidCSR) as caught:
        check_certified_names(name, [entry])
    assert caught.value.code == "name.dns"
    assert caught.value.reason.isascii()
    assert caught.value.reason.isprintable()
    with pytest.raises(InvalidCSR) as caught:
        check_certified_names(subject("CN", "a\x1bb", UTF8), [])
    assert caught.value.code == "name.subject"
    assert "U+001B" in caught.value.reason
