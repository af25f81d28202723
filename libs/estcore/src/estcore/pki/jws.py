"""Compact JWS signed by the key of a certificate that travels with it (RFC 7515, ``x5c``).

There is one spelling of everything: base64url without padding or spare bits, the header's
members exactly ``alg``, ``typ`` and ``x5c``, one certificate in it, one algorithm for a key.
What a signature is worth, whether the certificate is known, valid or not revoked, is for the
caller to find out; here it is only the key that signed.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from estcore.errors import MalformedRequest, NotAuthenticated

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey

MALFORMED, SIGNATURE = "command.malformed", "command.signature"
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")
_PARTS = 3
_EC: dict[int, tuple[str, hashes.HashAlgorithm]] = {
    256: ("ES256", hashes.SHA256()),
    384: ("ES384", hashes.SHA384()),
    521: ("ES512", hashes.SHA512()),
}
_PSS = padding.PSS(padding.MGF1(hashes.SHA256()), hashes.SHA256.digest_size)


@dataclass(frozen=True)
class Signed:
    """A payload and the certificate whose key signed it."""

    payload: bytes
    certificate: x509.Certificate
    certificate_der: bytes


def sign(payload: bytes, *, typ: str, key: PrivateKey, certificate_der: bytes) -> str:
    """Return the compact JWS over ``payload``.

    Raises:
        ValueError: the key is not that of the certificate, or of a kind nobody signs with.
    """
    public = key.public_key()
    if public != x509.load_der_x509_certificate(certificate_der).public_key():
        raise ValueError("the key is not the certificate's")
    header = {
        "alg": algorithm(public),
        "typ": typ,
        "x5c": [base64.b64encode(certificate_der).decode()],
    }
    parts = (_encode(json.dumps(header, separators=(",", ":")).encode()), _encode(payload))
    signed = ".".join(parts).encode()
    return f"{signed.decode()}.{_encode(_signature(key, signed))}"


def verify(text: str, *, typ: str) -> Signed:
    """Return what a compact JWS says and whose key signed it; nothing else is believed of it.

    Raises:
        MalformedRequest: not a JWS of this type in its one spelling.
        NotAuthenticated: the signature is not by the key of the certificate in it.
    """
    parts = text.split(".")
    if len(parts) != _PARTS:
        raise _malformed("this is not a compact JWS")
    header_octets, payload, signature = (_decode(part) for part in parts)
    header = _header(header_octets, typ)
    certificate_der = _certificate(header["x5c"])
    try:
        certificate = x509.load_der_x509_certificate(certificate_der)
        public = certificate.public_key()
        wanted = algorithm(public)
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as exc:
        raise _malformed("the certificate in x5c cannot be used") from exc
    if header["alg"] != wanted:
        raise _malformed(f"a key like this signs with {wanted}")
    try:
        _verify(public, f"{parts[0]}.{parts[1]}".encode(), signature)
    except (InvalidSignature, ValueError) as exc:
        raise NotAuthenticated(
            "the signature is not by the key of the certificate", code=SIGNATURE
        ) from exc
    return Signed(payload, certificate, certificate_der)


def algorithm(key: Any) -> str:
    """Return the one algorithm a key of this kind signs with.

    Raises:
        ValueError: no algorithm is for it.
    """
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.key_size in _EC:
        return _EC[key.curve.key_size][0]
    if isinstance(key, rsa.RSAPublicKey):
        return "PS256"
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "Ed25519"
    raise ValueError("only EC, RSA and Ed25519 keys sign")


def _signature(key: PrivateKey, signed: bytes) -> bytes:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        size = (key.curve.key_size + 7) // 8
        r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(_EC[key.curve.key_size][1])))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(signed, _PSS, hashes.SHA256())
    return key.sign(signed)


def _verify(key: object, signed: bytes, signature: bytes) -> None:
    if isinstance(key, ec.EllipticCurvePublicKey):
        size = (key.curve.key_size + 7) // 8
        if len(signature) != 2 * size:
            raise InvalidSignature
        r, s = (int.from_bytes(half, "big") for half in (signature[:size], signature[size:]))
        key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(_EC[key.curve.key_size][1]))
    elif isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, signed, _PSS, hashes.SHA256())
    elif isinstance(key, ed25519.Ed25519PublicKey):
        key.verify(signature, signed)
    else:
        raise InvalidSignature


def _header(octets: bytes, typ: str) -> dict[str, Any]:
    try:
        header = read_object(octets)
    except ValueError as exc:
        raise _malformed("the header is not a JSON object") from exc
    if header.keys() != {"alg", "typ", "x5c"} or header["typ"] != typ:
        raise _malformed(f"the header is not that of {typ}")
    return header


def _certificate(x5c: object) -> bytes:
    # RFC 7515 section 4.1.6: base64, not base64url.
    if not isinstance(x5c, list) or len(x5c) != 1 or not isinstance(x5c[0], str):
        raise _malformed("x5c is one certificate")
    try:
        octets = base64.b64decode(x5c[0], validate=True)
    except ValueError as exc:
        raise _malformed("x5c is not base64") from exc
    if base64.b64encode(octets).decode() != x5c[0]:
        raise _malformed("x5c is not base64")
    return octets


def read_object(octets: bytes) -> dict[str, Any]:
    """Return a JSON object in UTF-8; a member that stands twice is refused.

    Raises:
        ValueError: anything else.
    """
    try:
        value = json.loads(octets.decode(), object_pairs_hook=_members)
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member stands twice")
    return found


def _encode(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def _decode(part: str) -> bytes:
    if not _BASE64URL.fullmatch(part):
        raise _malformed("this is not base64url")
    try:
        octets = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError as exc:
        raise _malformed("this is not base64url") from exc
    # Spare bits of the last character would let one command be spelled in several ways.
    if _encode(octets) != part:
        raise _malformed("this is not base64url")
    return octets


def _malformed(reason: str) -> MalformedRequest:
    return MalformedRequest(reason, code=MALFORMED)
