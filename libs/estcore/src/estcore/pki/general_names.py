"""GeneralNames of a request (RFC 5280 section 4.2.1.6): which entry is wrong, and why (pure)."""

from __future__ import annotations

from estcore.errors import InvalidCSR, MalformedRequest
from estcore.pki import der as der_codec

_EXTENSION = "extension 2.5.29.17"
_KINDS = {
    0xA0: "otherName",
    0x81: "rfc822Name",
    0x82: "dNSName",
    0xA3: "x400Address",
    0xA4: "directoryName",
    0xA5: "ediPartyName",
    0x86: "uniformResourceIdentifier",
    0x87: "iPAddress",
    0x88: "registeredID",
}
_UNSUPPORTED = (0xA3, 0xA5)
_IA5 = (0x81, 0x82, 0x86)
_IP, _IP_SIZES = 0x87, (4, 16)
_MASKED_IP_SIZES = (8, 32)
"""Address and mask: what name constraints have. The grammar of names refuses it, with its code."""


def check_general_names(octets: bytes) -> None:
    """Check the kind of each entry, and what can be said of its value without a parser.

    Raises:
        InvalidCSR: ``csr.san_kind``, a kind that is not supported; ``csr.san_value``, octets that
            no name of its kind has.
        MalformedRequest: ``csr.extension_malformed``, not GeneralNames.
    """
    try:
        elements = der_codec.inside(octets, der_codec.SEQUENCE)
    except MalformedRequest as exc:
        raise MalformedRequest(
            f"{_EXTENSION}: {exc.reason}", code="csr.extension_malformed"
        ) from exc
    for element in elements:
        _check(element)


def _check(element: bytes) -> None:
    tag, start, _ = der_codec.header(element, 0)
    kind, value = _KINDS.get(tag), element[start:]
    if kind is None:
        raise MalformedRequest(
            f"{_EXTENSION}: an entry has the tag {tag:#04x}, which no kind of name has",
            code="csr.extension_malformed",
        )
    if tag in _UNSUPPORTED:
        raise InvalidCSR(f"SAN kind {kind} is not supported", code="csr.san_kind")
    if tag in _IA5 and not value.isascii():
        raise InvalidCSR(
            f"SAN {kind}: it has octets that are not ASCII; write international names as A-labels",
            code="csr.san_value",
        )
    if tag == _IP and len(value) not in (*_IP_SIZES, *_MASKED_IP_SIZES):
        raise InvalidCSR(
            f"SAN iPAddress has {len(value)} octets; an address has 4 or 16, and is not text",
            code="csr.san_value",
        )
