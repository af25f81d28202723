"""The degenerate SignedData that carries certificates and nothing else (RFC 5652 section 5.1)."""

from __future__ import annotations

from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from estcore.errors import MalformedRequest
from estcore.pki.der import SEQUENCE, SET, tlv

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
    """Return the certificates (DER) in a certs-only CMS message.

    Raises:
        MalformedRequest: not such a message.
    """
    try:
        certificates: list[x509.Certificate] = pkcs7.load_der_pkcs7_certificates(der)
    except ValueError as exc:
        raise MalformedRequest("not a certs-only CMS message", code="cms.malformed") from exc
    return [c.public_bytes(Encoding.DER) for c in certificates]
