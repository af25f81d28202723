"""The grammar of every name the suite certifies, requested or derived (pure).

- DNS names: LDH labels (RFC 5890 section 2.3.1), A-labels that decode (RFC 5891), 63 and 253
  octets, no last label of digits alone. A wildcard or an underscore only where it is asked for.
- IP addresses: one address of 4 or 16 octets, never a network (RFC 5280 section 4.2.1.6).
- URIs: RFC 3986, absolute, no user information, a host that is a DNS name or an address.
- E-mail addresses: a dot-atom of at most 64 octets and a DNS name (RFC 5321 section 4.1.2).
- Subject attributes: string types, lengths and alphabets of RFC 5280 appendix A; no control,
  format, private or unassigned character.

``check_certified_names`` is called with the names a certificate will have, before and after it is
built. Whether they are allowed is decided by the policy.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import idna
from cryptography import x509

from estcore.errors import InvalidCSR
from estcore.pki import der as der_codec
from estcore.pki.names import san_entry, short_name

UTF8_STRING, PRINTABLE_STRING, IA5_STRING = 0x0C, 0x13, 0x16
_STRING_NAMES = {UTF8_STRING: "UTF8String", PRINTABLE_STRING: "PrintableString"}
_STRING_NAMES[IA5_STRING] = "IA5String"
_DIRECTORY_STRING = frozenset({UTF8_STRING, PRINTABLE_STRING})

_MAX_DNS, _MAX_LABEL, _MAX_LOCAL_PART, _MAX_EMAIL = 253, 63, 64, 254
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_LABEL_WITH_UNDERSCORE = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_DOT_ATOM = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_PRINTABLE = re.compile(r"[A-Za-z0-9 '()+,./:=?-]*")
_URI = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):"
    r"(?://(?P<authority>[^/?#]*))?"
    r"(?P<path>(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*)"
    r"(?:\?(?P<query>(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*))?"
    r"(?:#(?P<fragment>(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*))?"
)
_ENCODED_DOT = re.compile("%2e", re.IGNORECASE)
_PORT = re.compile(r"[0-9]{1,5}")
_FORBIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})


@dataclass(frozen=True, slots=True)
class DNSRules:
    """What of a DNS name is allowed beyond LDH labels."""

    wildcards: bool = False
    underscores: bool = False


STRICT = DNSRules()
_CODES = {
    "dns": "name.dns",
    "ip": "name.ip",
    "uri": "name.uri",
    "email": "name.email",
    "dirname": "name.dirname",
}


@dataclass(frozen=True, slots=True)
class _AttributeRules:
    """RFC 5280 appendix A: string types, bounds in characters, and a form of the value."""

    types: frozenset[int]
    longest: int
    form: re.Pattern[str] | None = None


_COUNTRY = re.compile(r"[A-Z]{2}")
_ATTRIBUTES = {
    "CN": _AttributeRules(_DIRECTORY_STRING, 64),
    "O": _AttributeRules(_DIRECTORY_STRING, 64),
    "OU": _AttributeRules(_DIRECTORY_STRING, 64),
    "L": _AttributeRules(_DIRECTORY_STRING, 128),
    "ST": _AttributeRules(_DIRECTORY_STRING, 128),
    "C": _AttributeRules(frozenset({PRINTABLE_STRING}), 2, _COUNTRY),
    "serialNumber": _AttributeRules(frozenset({PRINTABLE_STRING}), 64),
    "DC": _AttributeRules(frozenset({IA5_STRING}), _MAX_LABEL, _LABEL),
    "UID": _AttributeRules(_DIRECTORY_STRING, 256),
    "emailAddress": _AttributeRules(frozenset({IA5_STRING}), 255),
    "unstructuredName": _AttributeRules(_DIRECTORY_STRING | {IA5_STRING}, 255),
}


def check_certified_names(
    subject_der: bytes, san: Iterable[x509.GeneralName], rules: DNSRules = STRICT
) -> None:
    """Check every name of a certificate: the subject as encoded, and each SAN entry.

    Raises:
        InvalidCSR: naming the first name that is none, and why.
    """
    try:
        check_subject(subject_der)
    except ValueError as exc:
        raise InvalidCSR(str(exc), code="name.subject") from exc
    for entry in san:
        try:
            check_general_name(entry, rules)
        except ValueError as exc:
            kind, _, value = san_entry(entry).partition(":")
            raise InvalidCSR(f"SAN {kind}:{_shown(value)}: {exc}", code=_CODES[kind]) from exc


def check_general_name(name: x509.GeneralName, rules: DNSRules = STRICT) -> None:
    """Check one SAN entry; otherName and registeredID have no grammar of their own.

    Raises:
        ValueError: why it is no such name.
    """
    match name:
        case x509.DNSName(value=value):
            check_dns_name(value, rules)
        case x509.IPAddress(value=address):
            if not isinstance(address, ipaddress.IPv4Address | ipaddress.IPv6Address):
                raise ValueError("an iPAddress has 4 or 16 octets; this is a network")
        case x509.UniformResourceIdentifier(value=value):
            uri_host(value)
        case x509.RFC822Name(value=value):
            check_email_address(value)
        case x509.DirectoryName(value=value):
            check_subject(value.public_bytes())
        case _:
            return


@lru_cache(maxsize=1024)
def check_dns_name(name: str, rules: DNSRules = STRICT) -> None:
    """Check a host name.

    Raises:
        ValueError: which rule it breaks.
    """
    if not 1 <= len(name) <= _MAX_DNS:
        raise ValueError(f"a DNS name has 1 to {_MAX_DNS} octets")
    labels = name.split(".")
    if labels[0] == "*":
        if not rules.wildcards:
            raise ValueError("wildcards are not allowed here")
        labels = labels[1:]
        if len(labels) < 2:  # noqa: PLR2004 - a domain below a top-level domain
            raise ValueError("a wildcard stands before at least two labels")
    form = _LABEL_WITH_UNDERSCORE if rules.underscores else _LABEL
    for label in labels:
        if not form.fullmatch(label):
            raise ValueError(
                f"{_shown(label)} is not a label of 1 to {_MAX_LABEL} letters, digits and hyphens"
            )
        if label[2:4] == "--":
            _check_a_label(label)
    if labels[-1].isdigit():
        raise ValueError("the last label is a number, as in an IP address")


def _check_a_label(label: str) -> None:
    try:
        if idna.alabel(idna.ulabel(label)).decode("ascii") != label.lower():
            raise ValueError
    except (ValueError, UnicodeError) as exc:
        raise ValueError(f"{label} is not an A-label of IDNA 2008") from exc


def check_email_address(address: str) -> None:
    """Check a mailbox: ``dot-atom@host``.

    Raises:
        ValueError: which part is wrong.
    """
    local, at, host = address.rpartition("@")
    if not at or len(address) > _MAX_EMAIL:
        raise ValueError(f"an e-mail address is local-part@host of at most {_MAX_EMAIL} octets")
    if len(local) > _MAX_LOCAL_PART or not _DOT_ATOM.fullmatch(local):
        raise ValueError(f"the local part is not a dot-atom of at most {_MAX_LOCAL_PART} octets")
    check_dns_name(host)


def uri_host(uri: str) -> str:
    """Return the host of an absolute URI in lower case; empty where it has no authority.

    An IPv6 address is returned without its brackets.

    Raises:
        ValueError: not an absolute URI of RFC 3986, or one with user information.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        raise ValueError("not an absolute URI (RFC 3986)")
    # RFC 3986 section 6.2.2: readers remove these segments, so no prefix would hold; %2e is a dot.
    if any(_ENCODED_DOT.sub(".", part) in {".", ".."} for part in match["path"].split("/")):
        raise ValueError("a path has no segment . or ..")
    authority = match["authority"]
    if authority is None:
        if not match["path"]:
            raise ValueError("a URI has something after its scheme")
        return ""
    return _authority_host(authority)


def _authority_host(authority: str) -> str:
    if "@" in authority:
        raise ValueError("a URI in a certificate has no user information")
    if authority.startswith("["):
        literal, bracket, after = authority[1:].partition("]")
        host, colon, port = literal, after[:1], after[1:]
        if not bracket or (after and colon != ":"):
            raise ValueError("the host is not an IPv6 address in brackets")
        ipaddress.IPv6Address(literal)
        if "%" in literal:
            raise ValueError("an IPv6 address has no zone here")
    else:
        host, colon, port = authority.partition(":")
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            check_dns_name(host)
    if colon and (not _PORT.fullmatch(port) or int(port) > 0xFFFF):  # noqa: PLR2004 - 16 bits
        raise ValueError("the port is not a number up to 65535")
    return host.lower()


@lru_cache(maxsize=256)
def check_subject(subject_der: bytes) -> None:
    """Check every attribute of an encoded Name.

    Raises:
        ValueError: naming the attribute and the rule.
        MalformedRequest: not an encoded Name.
    """
    for rdn in der_codec.children(subject_der):
        for attribute in der_codec.children(rdn):
            oid, value = der_codec.children(attribute)
            _check_attribute(der_codec.oid_text(oid), value)


def _check_attribute(oid: str, element: bytes) -> None:
    short = short_name(oid)
    rules = _ATTRIBUTES.get(short)
    tag, start, end = der_codec.header(element, 0)
    if rules is None:
        rules = _AttributeRules(_DIRECTORY_STRING | {IA5_STRING}, 255)
    if tag not in rules.types:
        allowed = " or ".join(sorted(_STRING_NAMES[t] for t in rules.types))
        raise ValueError(f"subject {short} is not a {allowed}")
    text = _text(short, tag, element[start:end])
    if not 1 <= len(text) <= rules.longest:
        raise ValueError(f"subject {short} has {len(text)} characters; 1 to {rules.longest} fit")
    if rules.form is not None and not rules.form.fullmatch(text):
        raise ValueError(f"subject {short}={_shown(text)} has not the form of {short}")
    if short == "emailAddress":
        check_email_address(text)


def _text(short: str, tag: int, octets: bytes) -> str:
    try:
        text = octets.decode("utf-8" if tag == UTF8_STRING else "ascii")
    except UnicodeDecodeError as exc:
        raise ValueError(f"subject {short} is not a {_STRING_NAMES[tag]}") from exc
    if tag == PRINTABLE_STRING and not _PRINTABLE.fullmatch(text):
        raise ValueError(f"subject {short} has characters that no PrintableString has")
    for character in text:
        if unicodedata.category(character) in _FORBIDDEN_CATEGORIES:
            raise ValueError(
                f"subject {short} has the character U+{ord(character):04X}, which no name has"
            )
    if text != text.strip():
        raise ValueError(f"subject {short} begins or ends with a space")
    return text


def _shown(text: str) -> str:
    """Return foreign text as a short quoted string of printable ASCII."""
    return ascii(text[:80])
