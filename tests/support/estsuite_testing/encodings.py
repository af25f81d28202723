"""Encodings that no library writes: CSRs and names put together element by element, and signed."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from estcore.pki import der

_KEY = ec.generate_private_key(ec.SECP256R1())
_ECDSA_WITH_SHA256 = der.tlv(der.SEQUENCE, der.oid("1.2.840.10045.4.3.2"))


def name(*attributes: tuple[str, int, bytes]) -> bytes:
    """A Name of one RDN for each (identifier, string tag, octets)."""
    return der.tlv(
        der.SEQUENCE,
        *(
            der.tlv(der.SET, der.tlv(der.SEQUENCE, der.oid(oid), der.tlv(tag, octets)))
            for oid, tag, octets in attributes
        ),
    )


def extension(oid: str, value: bytes, *, critical: bytes | None = None) -> bytes:
    """An Extension; ``critical`` is the content of its BOOLEAN, None leaves it out."""
    flag = b"" if critical is None else der.tlv(der.BOOLEAN, critical)
    return der.tlv(der.SEQUENCE, der.oid(oid), flag, der.tlv(der.OCTET_STRING, value))


def csr_attribute(oid: str, *values: bytes) -> bytes:
    """An Attribute with its values in the order given."""
    return der.tlv(der.SEQUENCE, der.oid(oid), der.tlv(der.SET, *values))


def signed_csr(
    *attributes: bytes,
    version: int = 0,
    subject: bytes | None = None,
    spki: bytes | None = None,
    algorithm: bytes = _ECDSA_WITH_SHA256,
    no_attributes: bool = False,
) -> bytes:
    """A CSR with these attributes in this order, signed over exactly these octets."""
    public = _KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    info = der.tlv(
        der.SEQUENCE,
        der.integer(version),
        name(("2.5.4.3", 0x0C, b"web")) if subject is None else subject,
        public if spki is None else spki,
        b"" if no_attributes else der.tlv(0xA0, *attributes),
    )
    signature = _KEY.sign(info, ec.ECDSA(SHA256()))
    return der.tlv(der.SEQUENCE, info, algorithm, der.tlv(der.BIT_STRING, b"\0", signature))
