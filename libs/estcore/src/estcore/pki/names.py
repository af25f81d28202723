"""Names as RFC 5280 section 7.1 compares them, and SAN entries as short strings.

A SAN entry is written ``dns:``, ``ip:``, ``uri:``, ``email:``, ``dirname:``, ``other:`` or
``rid:`` and its value; DNS names and the host part of e-mail addresses in lower case, so that
two entries are equal exactly when their strings are.
"""

from __future__ import annotations

import unicodedata

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
}
LONG_NAMES = {short: oid for oid, short in SHORT_NAMES.items()}


def fold(value: str) -> str:
    """Return a string as caseIgnoreMatch sees it (RFC 4518, simplified: NFKC, case, spaces)."""
    return " ".join(unicodedata.normalize("NFKC", value).casefold().split())


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
    if not any(c in value for c in ',+="\\\n\r\0'):
        return value
    escaped = "".join("\\" + c if c in ',+="\\' else c for c in value)
    return escaped.replace("\n", "\\0a").replace("\r", "\\0d").replace("\0", "\\00")


def common_names(name: x509.Name) -> list[str]:
    """Return the values of every CN in the name."""
    return [str(a.value) for a in name.get_attributes_for_oid(NameOID.COMMON_NAME)]


def san_entry(general_name: x509.GeneralName) -> str:  # noqa: PLR0911 - one line per kind
    """Return one SAN entry as its short string."""
    match general_name:
        case x509.DNSName(value=value):
            return "dns:" + value.lower()
        case x509.IPAddress(value=address):
            return f"ip:{address}"
        case x509.UniformResourceIdentifier(value=value):
            return "uri:" + value
        case x509.RFC822Name(value=value):
            local, at, host = value.rpartition("@")
            return f"email:{local}{at}{host.lower()}"
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
    """Return the name written as ``CN=web,O=Clinic`` in encoded order (for tools and configs).

    Raises:
        ValueError: an unknown attribute or an empty value.
    """
    attributes = []
    for part in text.split(","):
        short, _, value = part.strip().partition("=")
        oid = LONG_NAMES.get(short)
        if oid is None or not value:
            raise ValueError(f"cannot read the name part {part!r}")
        attributes.append(x509.NameAttribute(oid, value))
    return x509.Name(attributes)
