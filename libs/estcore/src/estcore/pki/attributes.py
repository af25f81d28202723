"""Attributes of a certification request (RFC 2986 section 4.1), read from their DER.

Pure functions over the ``attributes`` field of a parsed CSR. Nothing is compared or
verified here: a challenge is checked where the TLS session or the secret is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from estcore.errors import InvalidCSR, MalformedRequest
from estcore.pki import der as der_codec

CHALLENGE_PASSWORD_OID = "1.2.840.113549.1.9.7"  # noqa: S105 - an object identifier
OTP_CHALLENGE_OID = "1.2.840.113549.1.9.16.2.56"
REVOCATION_CHALLENGE_OID = "1.2.840.113549.1.9.16.2.57"
EST_IDENTITY_LINKING_OID = "1.2.840.113549.1.9.16.2.58"
EXTENSION_REQUEST_OID = "1.2.840.113549.1.9.14"

MAX_ATTRIBUTES = 32
MAX_CHALLENGE_CHARACTERS = 255
"""RFC 2985 section 5.4.1 and RFC 7894 section 3 have the same bound."""

UTF8_STRING, PRINTABLE_STRING, IA5_STRING, BMP_STRING = 0x0C, 0x13, 0x16, 0x1E
_ENCODINGS = {
    UTF8_STRING: "utf-8",
    PRINTABLE_STRING: "ascii",
    IA5_STRING: "ascii",
    BMP_STRING: "utf-16-be",
}

Attributes = Mapping[str, tuple[bytes, ...]]
"""Values (DER elements) by the dotted identifier of their attribute."""


@dataclass(frozen=True)
class Challenges:
    """What a CSR carries to link the request to something outside of it; None where absent."""

    challenge_password: str | None = None
    otp_challenge: str | None = None
    revocation_challenge: str | None = None
    est_identity_linking: str | None = None


def read_attributes(field: bytes) -> Attributes:
    """Return the attributes in ``field``, the ``[0]`` element of a CSR or nothing at all.

    Does not look inside the values.

    Raises:
        MalformedRequest: not such an element, or an attribute that is not well formed.
        InvalidCSR: more than 32 attributes, or the same one twice.
    """
    if not field:
        return {}
    attributes: dict[str, tuple[bytes, ...]] = {}
    elements = der_codec.inside(field, 0xA0)
    if len(elements) > MAX_ATTRIBUTES:
        raise InvalidCSR(f"more than {MAX_ATTRIBUTES} attributes", code="csr.attribute_count")
    for element in elements:
        oid, values = read_attribute(element)
        if oid in attributes:
            raise InvalidCSR(f"attribute {oid} stands twice", code="csr.attribute_repeated")
        attributes[oid] = values
    return attributes


def read_attribute(element: bytes) -> tuple[str, tuple[bytes, ...]]:
    """Return identifier and values of one Attribute element; the set of values may be empty.

    Raises:
        MalformedRequest: not an Attribute.
    """
    parts = der_codec.inside(element, der_codec.SEQUENCE)
    if len(parts) != 2:  # noqa: PLR2004 - type and values
        raise MalformedRequest("an attribute is a type and a set", code="csr.attribute_malformed")
    return der_codec.oid_text(parts[0]), tuple(der_codec.inside(parts[1], der_codec.SET))


def attribute(oid: str, *values: bytes) -> bytes:
    """Return the Attribute element with these values, in the order DER gives a SET OF."""
    members = der_codec.tlv(der_codec.SET, *sorted(values))
    return der_codec.tlv(der_codec.SEQUENCE, der_codec.oid(oid), members)


def single_value(attributes: Attributes, oid: str) -> bytes | None:
    """Return the one value (DER element) of an attribute, or None where it is absent.

    Raises:
        InvalidCSR: the attribute has no value or several.
    """
    values = attributes.get(oid)
    if values is None:
        return None
    if len(values) != 1:
        raise InvalidCSR(f"attribute {oid} has one value", code="csr.attribute_values")
    return values[0]


def read_challenges(attributes: Attributes) -> Challenges:
    """Return challengePassword (RFC 2985) and the three attributes of RFC 7894 section 3.

    Values are exactly what was sent: white space counts.

    Raises:
        InvalidCSR: not one value, another string type, empty, or over 255 characters.
    """
    return Challenges(
        challenge_password=_challenge(attributes, CHALLENGE_PASSWORD_OID),
        otp_challenge=_challenge(attributes, OTP_CHALLENGE_OID),
        revocation_challenge=_challenge(attributes, REVOCATION_CHALLENGE_OID),
        est_identity_linking=_challenge(attributes, EST_IDENTITY_LINKING_OID),
    )


def _challenge(attributes: Attributes, oid: str) -> str | None:
    element = single_value(attributes, oid)
    if element is None:
        return None
    try:
        text = string_value(element)
    except MalformedRequest as exc:
        raise InvalidCSR(
            f"attribute {oid} is a UTF8String, PrintableString, IA5String or BMPString",
            code="csr.attribute_string",
        ) from exc
    if not text:
        raise InvalidCSR(f"attribute {oid} is empty", code="csr.attribute_values")
    if len(text) > MAX_CHALLENGE_CHARACTERS:
        raise InvalidCSR(
            f"attribute {oid} has more than {MAX_CHALLENGE_CHARACTERS} characters",
            code="csr.attribute_too_long",
        )
    return text


def string_value(element: bytes) -> str:
    """Return the text of one string element; T61String is refused, its characters are unclear.

    Raises:
        MalformedRequest: another type, or octets that are not text of that type.
    """
    encoding = _ENCODINGS.get(element[0] if element else 0)
    if encoding is None:
        raise MalformedRequest("not a string type we read", code="der.malformed")
    octets = der_codec.content(element, element[0])
    try:
        return octets.decode(encoding)
    except UnicodeDecodeError as exc:
        raise MalformedRequest("the string is not of its type", code="der.malformed") from exc
