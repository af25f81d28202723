"""Names as RFC 5280 section 7.1 compares them, and SAN entries as short strings.

A SAN entry is written ``dns:``, ``ip:``, ``uri:``, ``email:``, ``dirname:``, ``other:`` or
``rid:`` and its value; DNS names and the host part of e-mail addresses in lower case, so that
two entries are equal exactly when their strings are.
"""

from __future__ import annotations

import re

from cryptography import x509
from cryptography.x509.oid import NameOID

SHORT_NAMES = {
    NameOID.COMMON_NAME: "CN",
    NameOID.ORGANIZATION_NAME: "O",
    NameOID.ORGANIZATIONAL_UNIT_NAME: "OU",
    NameOID.COUNTRY_NAME: "C",
    NameOID.STATE_OR_PROVINCE_NAME: "ST",
    NameOID.LOCALITY_NAME: "L",
    NameOID.SERIAL_NUMBER: "serialNumber",
    NameOID.DOMAIN_COMPONENT: "DC",
    NameOID.USER_ID: "UID",
    NameOID.EMAIL_ADDRESS: "emailAddress",
    NameOID.UNSTRUCTURED_NAME: "unstructuredName",
}
LONG_NAMES = {short: oid for oid, short in SHORT_NAMES.items()}
_SPECIAL = ',+="\\'
_TRAILING_SPACES = re.compile(r"(?<!\\) +$")
_OCTET = re.compile(r"[0-9A-Fa-f]{2}")


_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def lower_ascii(text: str) -> str:
    """Return ``text`` with A to Z in lower case and every other character as it is.

    ``str.lower`` maps letters that only look alike to ASCII: KELVIN SIGN to k.
    """
    return text.lower() if text.isascii() else text.translate(_LOWER)


_SHORT_BY_OID = {oid.dotted_string: short for oid, short in SHORT_NAMES.items()}


def short_name(oid: str) -> str:
    """Return the short name of an attribute type, itself where it has none."""
    return _SHORT_BY_OID.get(oid, oid)


def fold(value: str) -> str:
    """Return an attribute value as names are compared: ASCII case and runs of spaces do not count.

    RFC 5280 section 7.1 without its compatibility mappings (NFKC), which make equal what differs
    in a certificate.
    """
    return " ".join(part for part in lower_ascii(value).split(" ") if part)


def canonical_name(name: x509.Name) -> str:
    """Return one string per equivalence class of RFC 5280 section 7.1.

    String type, case and runs of spaces do not count; order and grouping of RDNs do.
    """
    rdns = []
    for rdn in name.rdns:
        pairs = []
        for attribute in rdn:
            short = SHORT_NAMES.get(attribute.oid, attribute.oid.dotted_string)
            value = attribute.value
            text = fold(value) if isinstance(value, str) else "#" + value.hex()
            pairs.append(f"{short}={_escape(text)}")
        rdns.append("+".join(sorted(pairs)))
    return ",".join(rdns)


def display_name(name: x509.Name) -> str:
    """Return the name for people and records, in encoded order, attribute values as written."""
    parts = []
    for rdn in name.rdns:
        pairs = []
        for attribute in rdn:
            short = SHORT_NAMES.get(attribute.oid, attribute.oid.dotted_string)
            value = attribute.value
            pairs.append(f"{short}={_escape(value if isinstance(value, str) else value.hex())}")
        parts.append("+".join(pairs))
    return ",".join(parts)


def _escape(value: str) -> str:
    if value.isprintable() and value.strip() == value and not any(c in value for c in _SPECIAL):
        return value
    first, last = len(value) - len(value.lstrip(" ")), len(value.rstrip(" "))
    return "".join(
        _escaped(character) if first <= place < last else "\\ "
        for place, character in enumerate(value)
    )


def _escaped(character: str) -> str:
    """Return one character as RFC 4514 section 2.4 writes it; one that is not seen as octets.

    A subject is foreign text: a terminal must not carry out what is in it.
    """
    if character in _SPECIAL:
        return "\\" + character
    if character.isprintable():
        return character
    return "".join(f"\\{octet:02x}" for octet in character.encode("utf-8", "surrogatepass"))


def common_names(name: x509.Name) -> list[str]:
    """Return the values of every CN in the name."""
    return [str(a.value) for a in name.get_attributes_for_oid(NameOID.COMMON_NAME)]


def san_entry(general_name: x509.GeneralName) -> str:  # noqa: PLR0911 - one line per kind
    """Return one SAN entry as its short string."""
    match general_name:
        case x509.DNSName(value=value):
            return "dns:" + lower_ascii(value)
        case x509.IPAddress(value=address):
            return f"ip:{address}"
        case x509.UniformResourceIdentifier(value=value):
            return "uri:" + value
        case x509.RFC822Name(value=value):
            local, at, host = value.rpartition("@")
            return f"email:{local}{at}{lower_ascii(host)}"
        case x509.OtherName(type_id=oid, value=octets):
            return f"other:{oid.dotted_string}:{octets.hex()}"
        case x509.RegisteredID(value=oid):
            return f"rid:{oid.dotted_string}"
        case x509.DirectoryName(value=name):
            return "dirname:" + canonical_name(name)
        case _:
            return f"unknown:{type(general_name).__name__}"


def san_entries(extension: x509.SubjectAlternativeName | None) -> tuple[str, ...]:
    """Return the SAN as sorted distinct strings; an absent SAN is the empty tuple."""
    if extension is None:
        return ()
    return tuple(sorted({san_entry(entry) for entry in extension}))


def parse_name(text: str) -> x509.Name:
    r"""Return the name that ``display_name`` writes: ``CN=web,O=Clinic`` in encoded order.

    ``\`` escapes the next character or begins an octet of two hexadecimal digits; ``+`` joins
    the attributes of one RDN.

    Raises:
        ValueError: an unknown attribute, an empty value or an escape that is none.
    """
    return x509.Name(
        [
            x509.RelativeDistinguishedName(
                [_attribute(_stripped(pair)) for pair in _split(rdn, "+")]
            )
            for rdn in _split(text, ",")
        ]
    )


def _attribute(text: str) -> x509.NameAttribute[str]:
    short, _, value = text.partition("=")
    oid = LONG_NAMES.get(short)
    if oid is None or not value:
        raise ValueError(f"cannot read the name part {text!r}")
    return x509.NameAttribute(oid, _unescape(value))


def _stripped(text: str) -> str:
    """Remove spaces at both ends, but the one that a backslash escapes."""
    return _TRAILING_SPACES.sub("", text.lstrip(" "))


def _split(text: str, separator: str) -> list[str]:
    """Split at each separator that no backslash escapes; escapes stay as they are."""
    parts = [""]
    characters = iter(text)
    for character in characters:
        if character == separator:
            parts.append("")
        elif character == "\\":
            parts[-1] += character + next(characters, "")
        else:
            parts[-1] += character
    return parts


def _unescape(value: str) -> str:
    if "\\" not in value:
        return value
    octets = bytearray()
    rest = value
    while rest:
        character, rest = rest[0], rest[1:]
        if character != "\\":
            octets += character.encode()
        elif _OCTET.match(rest):
            octets.append(int(rest[:2], 16))
            rest = rest[2:]
        elif rest[:1] and rest[0] in _SPECIAL + " #;<>":
            octets += rest[0].encode()
            rest = rest[1:]
        else:
            raise ValueError(f"cannot read the escape in {value!r}")
    return octets.decode()
