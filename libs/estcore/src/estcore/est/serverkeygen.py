"""Server-side key generation (RFC 7030 section 4.4): the request read, the key made.

Of the CSR only names, extensions and attributes count; its public key and its signature are
ignored (section 4.4.1), but the kind of that key is the kind the client would like.
What goes back is in ``estcore.est.keygen_response`` and ``estcore.est.cms.envelope``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_public_key,
)

from estcore.errors import InvalidCSR, MalformedRequest
from estcore.pki import der as der_codec
from estcore.pki.attributes import (
    EXTENSION_REQUEST_OID,
    Attributes,
    attribute,
    read_attributes,
    single_value,
)
from estcore.pki.certificate import SigningHash, signing_hash
from estcore.pki.csr_structure import extension_request, split_csr
from estcore.pki.keys import key_algorithm
from estcore.pki.parsers import READING_ERRORS
from estcore.pki.profile import KeyAlgorithm, Profile
from estcore.pki.subject_der import check_subject_encoding

DECRYPT_KEY_ID_OID = "1.2.840.113549.1.9.16.2.37"
ASYMMETRIC_DECRYPT_KEY_ID_OID = "1.2.840.113549.1.9.16.2.54"
SMIME_CAPABILITIES_OID = "1.2.840.113549.1.9.15"
MAX_KEY_IDENTIFIER_BYTES = 255
MAX_CAPABILITIES = 64

GeneratedKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
_CURVES: dict[str, type[ec.EllipticCurve]] = {
    "ec-p256": ec.SECP256R1,
    "ec-p384": ec.SECP384R1,
    "ec-p521": ec.SECP521R1,
}
_PUBLIC_EXPONENT = 65537
_ATTRIBUTES = 0xA0


@dataclass(frozen=True)
class Capability:
    """One entry of SMIMECapabilities (RFC 8551 section 2.5.2); ``parameters`` is DER or empty."""

    oid: str
    parameters: bytes = b""


@dataclass(frozen=True)
class KeyProtection:
    """The client wants its key encrypted: with which key, and what it can decrypt.

    ``symmetric``: the identifier names a shared secret (RFC 7030 section 4.4.1.1), otherwise
    the public key of a certificate (section 4.4.1.2).
    """

    symmetric: bool
    key_identifier: bytes
    capabilities: tuple[Capability, ...]


@dataclass(frozen=True)
class KeygenRequest:
    """What a client asks for when it leaves the key to the server. Nothing in it is proven."""

    der: bytes
    subject_der: bytes
    extension_request: bytes | None
    """The Extensions element as it was sent; its values are not read here."""
    attributes: Attributes
    wished_key: KeyAlgorithm | None
    protection: KeyProtection | None


def read_keygen_request(der: bytes) -> KeygenRequest:
    """Return the request in a CSR whose signature and public key do not matter.

    Does not decide about names: that is done on the CSR that ``certification_request`` makes.

    Raises:
        MalformedRequest: not one DER CertificationRequest, or too large.
        InvalidCSR: attributes that contradict each other, or a wish for encryption without
            saying how (``keygen.capabilities_missing``).
    """
    parts = split_csr(der)
    check_subject_encoding(parts.subject)
    attributes = read_attributes(parts.attributes)
    return KeygenRequest(
        der=der,
        subject_der=parts.subject,
        extension_request=extension_request(attributes),
        attributes=attributes,
        wished_key=_wished_key(parts.spki),
        protection=read_protection(attributes),
    )


def _wished_key(spki: bytes) -> KeyAlgorithm | None:
    try:
        return key_algorithm(load_der_public_key(spki))  # type: ignore[arg-type, return-value] # other kinds are refused; one of the names
    except READING_ERRORS:
        return None


def read_protection(attributes: Attributes) -> KeyProtection | None:
    """Return how the client wants its key encrypted, None for TLS alone.

    Raises:
        MalformedRequest: an identifier or SMIMECapabilities that are not what they should be.
        InvalidCSR: two identifiers, or one without SMIMECapabilities.
    """
    symmetric = single_value(attributes, DECRYPT_KEY_ID_OID)
    asymmetric = single_value(attributes, ASYMMETRIC_DECRYPT_KEY_ID_OID)
    identifier = symmetric if symmetric is not None else asymmetric
    if identifier is None:
        return None
    if symmetric is not None and asymmetric is not None:
        raise InvalidCSR("two keys to encrypt with are named", code="keygen.two_keys")
    capabilities = single_value(attributes, SMIME_CAPABILITIES_OID)
    if capabilities is None:
        raise InvalidCSR(
            "encryption of the key is wanted, but SMIMECapabilities are missing",
            code="keygen.capabilities_missing",
        )
    octets = der_codec.content(identifier, der_codec.OCTET_STRING)
    if not 1 <= len(octets) <= MAX_KEY_IDENTIFIER_BYTES:
        raise InvalidCSR(
            f"a key identifier has 1 to {MAX_KEY_IDENTIFIER_BYTES} octets",
            code="keygen.key_identifier",
        )
    return KeyProtection(symmetric is not None, octets, read_capabilities(capabilities))


def encode_capabilities(capabilities: Sequence[Capability]) -> bytes:
    """Return SMIMECapabilities (RFC 8551 section 2.5.2) as DER."""
    entries = (
        der_codec.tlv(der_codec.SEQUENCE, der_codec.oid(c.oid), c.parameters) for c in capabilities
    )
    return der_codec.tlv(der_codec.SEQUENCE, *entries)


def read_capabilities(element: bytes) -> tuple[Capability, ...]:
    """Return what SMIMECapabilities in DER list.

    Raises:
        MalformedRequest: not what they should be.
        InvalidCSR: none, or too many (``keygen.capabilities_missing``).
    """
    entries = der_codec.inside(element, der_codec.SEQUENCE)
    if not 1 <= len(entries) <= MAX_CAPABILITIES:
        raise InvalidCSR("no SMIMECapabilities, or too many", code="keygen.capabilities_missing")
    capabilities = []
    for entry in entries:
        oid, *parameters = der_codec.inside(entry, der_codec.SEQUENCE) or [b""]
        if len(parameters) > 1:
            raise MalformedRequest("an SMIMECapability is a pair", code="der.malformed")
        capabilities.append(Capability(der_codec.oid_text(oid), b"".join(parameters)))
    return tuple(capabilities)


def generated_kind(request: KeygenRequest, profile: Profile) -> KeyAlgorithm:
    """Return the kind of key to make: the CSR's if the profile has it, else the profile's first."""
    if request.wished_key is not None and request.wished_key in profile.key_algorithms:
        return request.wished_key
    return profile.key_algorithms[0]


def new_key(algorithm: KeyAlgorithm) -> GeneratedKey:
    """Return a new private key from the random generator of OpenSSL."""
    if algorithm in _CURVES:
        return ec.generate_private_key(_CURVES[algorithm]())
    if algorithm == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(_PUBLIC_EXPONENT, int(algorithm.removeprefix("rsa-")))


def certification_request(request: KeygenRequest, key: GeneratedKey) -> bytes:
    """Return an ordinary CSR (DER) by the new key: the names and extensions of the request.

    Both are octet for octet what was sent. The other attributes stay behind: they are about the
    delivery of the key and the TLS session.
    """
    algorithm = signing_hash(key.public_key())
    model = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, algorithm)
    parts = split_csr(model.public_bytes(Encoding.DER))
    attributes = b""
    if request.extension_request is not None:
        attributes = attribute(EXTENSION_REQUEST_OID, request.extension_request)
    info = der_codec.tlv(
        der_codec.SEQUENCE,
        der_codec.integer(0),
        request.subject_der,
        parts.spki,
        der_codec.tlv(_ATTRIBUTES, attributes),
    )
    signature = der_codec.tlv(der_codec.BIT_STRING, b"\x00", _signed(info, key, algorithm))
    return der_codec.tlv(der_codec.SEQUENCE, info, parts.signature_algorithm, signature)


def _signed(octets: bytes, key: GeneratedKey, algorithm: SigningHash | None) -> bytes:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(octets)
    assert algorithm is not None  # noqa: S101 - only Ed25519 has its own
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(octets, padding.PKCS1v15(), algorithm)
    return key.sign(octets, ec.ECDSA(algorithm))


def pkcs8(key: GeneratedKey) -> bytes:
    """Return the private key as PrivateKeyInfo, unencrypted (RFC 5958 section 2)."""
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
