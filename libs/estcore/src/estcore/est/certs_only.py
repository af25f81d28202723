"""The degenerate SignedData that carries certificates and nothing else (RFC 5652 section 5.1)."""

from __future__ import annotations

from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from estcore.errors import MalformedRequest
from estcore.pki.der import SEQUENCE, SET, children, inside, tlv
from estcore.pki.parsers import parser_errors

_SIGNED_DATA = bytes.fromhex("06092a864886f70d010702")
_DATA = bytes.fromhex("06092a864886f70d010701")
_VERSION_1 = bytes.fromhex("020101")
_EXPLICIT_0 = 0xA0


def certs_only(certificates: Iterable[bytes]) -> bytes:
    """Return the certs-only CMS message (DER) with the given DER certificates.

    DER orders the members of a SET OF by their encodings, so callers cannot choose the order.
    """
    bag = tlv(_EXPLICIT_0, *sorted(certificates))
    signed = tlv(SEQUENCE, _VERSION_1, tlv(SET), tlv(SEQUENCE, _DATA), bag, tlv(SET))
    return tlv(SEQUENCE, _SIGNED_DATA, tlv(_EXPLICIT_0, signed))


def read_certs_only(der: bytes) -> list[bytes]:
    """Return the certificates (DER) in a certs-only CMS message, octet for octet, in its order.

    The certificates are not looked at: they are read as their makers wrote them, by
    ``estcore.pki.parsers.load_certificate``. Attribute certificates are left out.

    Raises:
        MalformedRequest: not such a message.
    """
    try:
        return _certificates(der)
    except (MalformedRequest, ValueError, LookupError):
        return _of_the_library(der)


def _certificates(der: bytes) -> list[bytes]:
    kind, wrapped = inside(der, SEQUENCE)
    (signed_data,) = inside(wrapped, _EXPLICIT_0)
    # version, digestAlgorithms, encapContentInfo, then the optional fields by their tags
    _, digests, content, *fields = inside(signed_data, SEQUENCE)
    if kind != _SIGNED_DATA or digests[0] != SET or content[0] != SEQUENCE:
        raise MalformedRequest("not SignedData", code="cms.malformed")
    found = []
    for field in fields:
        if field[0] == _EXPLICIT_0:
            found += [element for element in children(field) if element[0] == SEQUENCE]
    return found


def _of_the_library(der: bytes) -> list[bytes]:
    """Read BER as well: some servers write indefinite lengths."""
    with parser_errors("not a certs-only CMS message", code="cms.malformed"):
        certificates: list[x509.Certificate] = pkcs7.load_der_pkcs7_certificates(der)
    return [c.public_bytes(Encoding.DER) for c in certificates]
