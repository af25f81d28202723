"""The encoding of a subject that is copied into a certificate octet for octet (RFC 5280 4.1.2.4).

Only the encoding: which attributes and values may be certified is ``name_grammar``'s question.
"""

from __future__ import annotations

import re
from functools import lru_cache

from estcore.errors import InvalidCSR, MalformedRequest
from estcore.pki import der as der_codec
from estcore.pki.names import short_name

_UTF8, _PRINTABLE, _IA5 = 0x0C, 0x13, 0x16
_STRING_TYPES = {
    _UTF8: "UTF8String",
    0x12: "NumericString",
    _PRINTABLE: "PrintableString",
    0x14: "TeletexString (T61String)",
    _IA5: "IA5String",
    0x1A: "VisibleString",
    0x1C: "UniversalString",
    0x1E: "BMPString",
}
_ACCEPTED = (_UTF8, _PRINTABLE, _IA5)
"""What RFC 5280 section 4.1.2.4 lets a CA write, and IA5String for DC and e-mail."""
_NOT_PRINTABLE = re.compile(rb"[^A-Za-z0-9 '()+,./:=?-]")


@lru_cache(maxsize=256)
def check_subject_encoding(subject: bytes) -> None:
    """Check that the Name in ``subject`` is DER of string types that a certificate may have.

    Raises:
        InvalidCSR: ``csr.subject_encoding``, naming attribute and fault.
    """
    try:
        rdns = der_codec.inside(subject, der_codec.SEQUENCE)
        for place, rdn in enumerate(rdns, 1):
            attributes = der_codec.inside(rdn, der_codec.SET)
            if not attributes:
                raise _wrong(f"RDN {place} is empty")
            if attributes != sorted(attributes):
                raise _wrong(f"RDN {place} has several attributes that are not in the order of DER")
            for attribute in attributes:
                _check_attribute(attribute)
    except MalformedRequest as exc:
        raise _wrong(exc.reason) from exc


def _check_attribute(attribute: bytes) -> None:
    parts = der_codec.inside(attribute, der_codec.SEQUENCE)
    if len(parts) != 2:  # noqa: PLR2004 - type and value
        raise _wrong("an attribute is not a type and a value")
    oid = der_codec.oid_text(parts[0])
    name = short_name(oid)
    tag, start, end = der_codec.header(parts[1], 0)
    octets = parts[1][start:end]
    if tag not in _ACCEPTED:
        kind = _STRING_TYPES.get(tag, f"the type with tag {tag:#04x}")
        raise _wrong(f"{name} is a {kind}; use UTF8String, PrintableString or IA5String")
    if tag == _PRINTABLE and (found := _NOT_PRINTABLE.search(octets)):
        raise _wrong(
            f"{name} has {found[0].decode('latin-1')!a}, which a PrintableString cannot "
            "hold; use UTF8String"
        )
    if tag == _IA5 and not octets.isascii():
        raise _wrong(f"{name} has octets that an IA5String cannot hold; use UTF8String")
    if tag == _UTF8:
        try:
            octets.decode()
        except UnicodeDecodeError as exc:
            raise _wrong(f"{name} is a UTF8String whose octets are not UTF-8") from exc


def _wrong(reason: str) -> InvalidCSR:
    return InvalidCSR(f"the subject: {reason}", code="csr.subject_encoding")
