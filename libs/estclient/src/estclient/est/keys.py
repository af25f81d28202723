"""Keys and certification requests of the client.

A request for re-enrollment repeats subject and SAN of the current certificate octet for octet
(RFC 7030 section 4.2.2), so it is assembled from the certificate's own DER, not built from
parsed values.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from estclient.errors import BundleInvalid
from estclient.est.token_key import TokenKey, is_reference, parse_reference
from estcore.pki.der import BIT_STRING, SEQUENCE, SET, children, tlv
from estcore.pki.keys import spki_der
from estcore.pki.name_grammar import DNSRules, check_general_name
from estcore.pki.names import parse_name
from estcore.pki.profile import KeyAlgorithm

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
AnyKey = PrivateKey | TokenKey
"""A key in memory, or one in a token."""

_CURVES: dict[str, type[ec.EllipticCurve]] = {
    "ec-p256": ec.SECP256R1,
    "ec-p384": ec.SECP384R1,
    "ec-p521": ec.SECP521R1,
}
_HASHES: dict[int, tuple[hashes.HashAlgorithm, str]] = {
    256: (hashes.SHA256(), "300a06082a8648ce3d040302"),
    384: (hashes.SHA384(), "300a06082a8648ce3d040303"),
    521: (hashes.SHA512(), "300a06082a8648ce3d040304"),
}
_RSA_SHA256 = bytes.fromhex("300d06092a864886f70d01010b0500")
_ED25519 = bytes.fromhex("300506032b6570")
_VERSION_0 = bytes.fromhex("020100")
_EXTENSION_REQUEST = bytes.fromhex("06092a864886f70d01090e")
_ANY_DNS = DNSRules(wildcards=True, underscores=True)
"""The server's policy decides on these; names that are none end here."""
_SAN_OID = bytes.fromhex("0603551d11")
_EXPLICIT_0, _EXPLICIT_3 = 0xA0, 0xA3
_SUBJECT_AT = 5


def make_key(algorithm: KeyAlgorithm = "ec-p256") -> PrivateKey:
    """Return a new private key."""
    if algorithm in _CURVES:
        return ec.generate_private_key(_CURVES[algorithm]())
    if algorithm == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, int(algorithm.removeprefix("rsa-")))


def key_pem(key: AnyKey) -> bytes:
    """Return the key as unencrypted PKCS#8 PEM, for a file only its owner reads.

    Of a key in a token it is the reference.
    """
    if isinstance(key, TokenKey):
        return key.pem()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def load_any_key(pem: bytes) -> AnyKey:
    """Return the key in a PEM file, or the reference to one in a token.

    Raises:
        BundleInvalid: neither.
    """
    return parse_reference(pem) if is_reference(pem) else load_key(pem)


def load_key(pem: bytes) -> PrivateKey:
    """Return the key in a PEM file.

    Raises:
        BundleInvalid: not an unencrypted EC, RSA or Ed25519 key.
    """
    try:
        key: PrivateKeyTypes = load_pem_private_key(pem, None)
    except (ValueError, TypeError) as exc:
        raise BundleInvalid("the key file cannot be read") from exc
    if not isinstance(key, PrivateKey):
        raise BundleInvalid("the key is not EC, RSA or Ed25519")
    return key


def make_csr(key: PrivateKey, subject: str, san: Iterable[str] = ()) -> bytes:
    """Return a request (DER) for ``CN=web,O=Clinic`` and ``dns:``, ``ip:``, ``uri:``, ``email:``.

    Raises:
        ValueError: a name that cannot be read.
    """
    builder = request_builder(subject, san)
    algorithm = None
    if isinstance(key, ec.EllipticCurvePrivateKey):
        algorithm = _HASHES[key.curve.key_size][0]
    elif isinstance(key, rsa.RSAPrivateKey):
        algorithm = hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(Encoding.DER)  # type: ignore[arg-type] # one of the three


def request_builder(subject: str, san: Iterable[str] = ()) -> x509.CertificateSigningRequestBuilder:
    """Return the request of ``make_csr``, not signed yet.

    Raises:
        ValueError: a name that cannot be read.
    """
    subject_name = parse_name(subject) if subject else x509.Name([])
    builder = x509.CertificateSigningRequestBuilder(subject_name)
    names = [_general_name(entry) for entry in san]
    for name in names:
        check_general_name(name, _ANY_DNS)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder


def csr_like(certificate: x509.Certificate, key: PrivateKey) -> bytes:
    """Return a request (DER) with the subject and SAN of ``certificate``, octet for octet."""
    return sign_request(request_info(certificate, spki_der(key.public_key())), key)


def sign_request(info: bytes, key: PrivateKey) -> bytes:
    """Return the request (DER) over a certificationRequestInfo."""
    algorithm, signature = _sign(key, info)
    return tlv(SEQUENCE, info, algorithm, tlv(BIT_STRING, b"\x00", signature))


def request_info(certificate: x509.Certificate, spki: bytes) -> bytes:
    """Return what ``csr_like`` signs: the certificationRequestInfo for a public key (DER)."""
    fields = children(children(certificate.public_bytes(Encoding.DER))[0])
    attributes = tlv(_EXPLICIT_0)
    san = _san_extension(fields)
    if san is not None:
        extension_request = tlv(SEQUENCE, _EXTENSION_REQUEST, tlv(SET, tlv(SEQUENCE, san)))
        attributes = tlv(_EXPLICIT_0, extension_request)
    return tlv(SEQUENCE, _VERSION_0, fields[_SUBJECT_AT], spki, attributes)


def first_request_info(subject: str, san: Iterable[str], spki: bytes) -> bytes:
    """Return what ``make_csr`` signs, for a public key (DER).

    Raises:
        ValueError: a name that cannot be read.
    """
    other = request_builder(subject, san).sign(make_key(), hashes.SHA256())
    version, name, _, attributes = children(other.tbs_certrequest_bytes)
    return tlv(SEQUENCE, version, name, spki, attributes)


def signed_request(info: bytes, signature: bytes, key: TokenKey) -> bytes:
    """Return a request (DER) that a token signed."""
    algorithm = _RSA_SHA256
    if isinstance(key.public, ec.EllipticCurvePublicKey):
        algorithm = bytes.fromhex(_HASHES[key.public.curve.key_size][1])
    return tlv(SEQUENCE, info, algorithm, tlv(BIT_STRING, b"\x00", signature))


def _san_extension(fields: list[bytes]) -> bytes | None:
    for field in fields:
        if field[0] != _EXPLICIT_3:
            continue
        for extension in children(children(field)[0]):
            if children(extension)[0] == _SAN_OID:
                return extension
    return None


def _sign(key: PrivateKey, info: bytes) -> tuple[bytes, bytes]:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        algorithm, identifier = _HASHES[key.curve.key_size]
        return bytes.fromhex(identifier), key.sign(info, ec.ECDSA(algorithm))
    if isinstance(key, rsa.RSAPrivateKey):
        return _RSA_SHA256, key.sign(info, padding.PKCS1v15(), hashes.SHA256())
    return _ED25519, key.sign(info)


def _general_name(entry: str) -> x509.GeneralName:
    kind, _, value = entry.partition(":")
    match kind:
        case "dns":
            return x509.DNSName(value)
        case "ip":
            return x509.IPAddress(ipaddress.ip_address(value))
        case "uri":
            return x509.UniformResourceIdentifier(value)
        case "email":
            return x509.RFC822Name(value)
        case _:
            raise ValueError(f"{entry!r} is not dns:, ip:, uri: or email:")
