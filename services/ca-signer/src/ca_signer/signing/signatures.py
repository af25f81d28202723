"""Signatures in the form of certificates (pure): verify, and translate from PKCS#11 forms."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from ca_signer.signing.hsm.protocol import Key, Mechanism
from estcore.errors import MalformedRequest
from estcore.pki import der
from estcore.pki.certificate import signing_hash

# RFC 8017 section 9.2, note 1: DigestInfo of SHA-256 up to the digest. RSA issuers sign SHA-256.
_DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")
_CURVES: dict[str, type[ec.EllipticCurve]] = {
    "06082a8648ce3d030107": ec.SECP256R1,
    "06052b81040022": ec.SECP384R1,
    "06052b81040023": ec.SECP521R1,
}
_OCTET_STRING = 0x04
_ED25519_OCTETS = 32


def verify(key: CertificatePublicKeyTypes, tbs: bytes, signature: bytes) -> None:
    """Check that ``signature`` is over exactly these bytes, by an issuer with this key.

    Raises:
        InvalidSignature: it is not, or no issuer has a key like this.
    """
    algorithm = signing_hash(key)
    if isinstance(key, ec.EllipticCurvePublicKey) and algorithm is not None:
        key.verify(signature, tbs, ec.ECDSA(algorithm))
    elif isinstance(key, rsa.RSAPublicKey) and algorithm is not None:
        key.verify(signature, tbs, padding.PKCS1v15(), algorithm)
    elif isinstance(key, ed25519.Ed25519PublicKey):
        key.verify(signature, tbs)
    else:
        raise InvalidSignature


def for_token(key: CertificatePublicKeyTypes, tbs: bytes) -> tuple[Mechanism, bytes]:
    """Return how a token signs ``tbs`` with this key: the mechanism and what to give it."""
    algorithm = signing_hash(key)
    if algorithm is None:
        return Mechanism.EDDSA, tbs
    context = hashes.Hash(algorithm)
    context.update(tbs)
    digest = context.finalize()
    if isinstance(key, ec.EllipticCurvePublicKey):
        return Mechanism.ECDSA, digest
    return Mechanism.RSA_PKCS, _DIGEST_INFO + digest


def from_token(key: CertificatePublicKeyTypes, raw: bytes) -> bytes:
    """Return a token's raw signature as certificates carry it (RFC 3279 section 2.2.3).

    Does not verify it.

    Raises:
        InvalidSignature: an ECDSA signature that is not two numbers of the curve's size.
    """
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return raw
    size = (key.curve.key_size + 7) // 8
    if len(raw) != 2 * size:
        raise InvalidSignature
    r, s = int.from_bytes(raw[:size], "big"), int.from_bytes(raw[size:], "big")
    return encode_dss_signature(r, s)


def public_key(key: Key) -> CertificatePublicKeyTypes | None:
    """Return the public key of a token's attributes; None where they are not sufficient."""
    try:
        if key.kind == "RSA" and key.modulus:
            exponent = int(key.exponent or "10001", 16)
            return rsa.RSAPublicNumbers(exponent, int(key.modulus, 16)).public_key()
        if key.kind == "EC" and key.ec_point and key.ec_params in _CURVES:
            curve = _CURVES[key.ec_params]()
            return ec.EllipticCurvePublicKey.from_encoded_point(curve, _point(key))
        if key.kind == "EC_EDWARDS" and len(_point(key)) == _ED25519_OCTETS:
            return ed25519.Ed25519PublicKey.from_public_bytes(_point(key))
    except ValueError:
        return None
    return None


def _point(key: Key) -> bytes:
    """Return CKA_EC_POINT without the OCTET STRING that most tokens put around it."""
    octets = bytes.fromhex(key.ec_point)
    try:
        tag, start, end = der.header(octets, 0)
    except MalformedRequest:
        return octets
    return octets[start:end] if tag == _OCTET_STRING and end == len(octets) else octets
