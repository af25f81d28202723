"""Compact JWS (RFC 7515): one strict reader, algorithms by joserfc.

- The text is parsed here, once, so that no second reader can see another header in the same octets.
- There is one spelling of everything: base64url without padding or spare bits, UTF-8, no member
  twice, nothing that cannot be written again.
- The algorithm follows from the key; the header's ``alg`` is only compared with it, so ``none``, a
  MAC over the public key or a weaker hash are never tried.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey

from estcore.errors import MalformedRequest, NotAuthenticated
from estcore.pki.parsers import PARSER_ERRORS

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
JSONWebKey = ECKey | OKPKey | RSAKey

MALFORMED, SIGNATURE = "command.malformed", "command.signature"
ALGORITHMS = ("ES256", "ES384", "ES512", "PS256", "RS256", "Ed25519", "EdDSA")
"""Accepted anywhere. RFC 9864 renames EdDSA with Ed25519 to Ed25519; both names are in use."""
_CURVES = {256: "ES256", 384: "ES384", 521: "ES512"}
_REGISTRY = jws.JWSRegistry(algorithms=[name for name in ALGORITHMS if name != "EdDSA"])
_MODELS = {name: _REGISTRY.get_alg("Ed25519" if name == "EdDSA" else name) for name in ALGORITHMS}
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")
_PARTS = 3
JOSE_ERRORS: tuple[type[Exception], ...] = (JoseError, *PARSER_ERRORS)
"""All that joserfc is known to raise when it reads a key or verifies a signature."""


@dataclass(frozen=True)
class CompactJWS:
    """The parts of a compact JWS; nothing of it is trusted before its signature was verified."""

    header: dict[str, Any]
    payload: bytes
    signed: bytes
    signature: bytes


@dataclass(frozen=True)
class Signed:
    """A payload and the certificate whose key signed it."""

    payload: bytes
    certificate: x509.Certificate
    certificate_der: bytes


def parse(text: str) -> CompactJWS:
    """Return the parts of a compact JWS.

    Raises:
        ValueError: not a compact JWS in its one spelling; the reason has no part of the text.
    """
    parts = text.split(".")
    if len(parts) != _PARTS:
        raise ValueError("this is not a compact JWS")
    header, payload, signature = (_decode(part) for part in parts)
    signed = f"{parts[0]}.{parts[1]}".encode()
    return CompactJWS(read_object(header), payload, signed, signature)


def accepted_algorithms(key: object) -> tuple[str, ...]:
    """Return the algorithms a public key may have signed with, the preferred one first.

    Raises:
        ValueError: no algorithm is for it.
    """
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.key_size in _CURVES:
        return (_CURVES[key.curve.key_size],)
    if isinstance(key, rsa.RSAPublicKey):
        return ("PS256", "RS256")
    if isinstance(key, ed25519.Ed25519PublicKey):
        return ("Ed25519", "EdDSA")
    raise ValueError("only EC, RSA and Ed25519 keys sign")


def algorithm(key: object) -> str:
    """Return the algorithm that a key of this kind signs with.

    Raises:
        ValueError: no algorithm is for it.
    """
    return accepted_algorithms(key)[0]


def signature_matches(token: CompactJWS, key: JSONWebKey, algorithm_name: str) -> bool:
    """Return whether the key made the signature with one of ``ALGORITHMS``."""
    try:
        return bool(_MODELS[algorithm_name].verify(token.signed, token.signature, key))
    except JOSE_ERRORS:
        return False


def signature_by(token: CompactJWS, public_key: object) -> bool:
    """Return whether a public key made the signature with the algorithm its header names.

    Raises:
        ValueError: no algorithm is for this kind of key.
    """
    name = token.header.get("alg")
    accepted = accepted_algorithms(public_key)
    return name in accepted and signature_matches(token, _json_web_key(public_key), str(name))


def sign_compact(payload: bytes, key: PrivateKey, header: Mapping[str, Any] = {}) -> str:
    """Return the compact JWS over ``payload``; ``alg`` follows from the key."""
    name = algorithm(key.public_key())
    octets = json.dumps({"alg": name, **header}, separators=(",", ":")).encode()
    signed = f"{_encode(octets)}.{_encode(payload)}"
    signature = _MODELS[name].sign(signed.encode(), _json_web_key(key))
    return f"{signed}.{_encode(signature)}"


def sign(payload: bytes, *, typ: str, key: PrivateKey, certificate_der: bytes) -> str:
    """Return the compact JWS over ``payload`` with its certificate in ``x5c``.

    Raises:
        ValueError: the key is not that of the certificate, or of an unsupported kind.
    """
    if key.public_key() != x509.load_der_x509_certificate(certificate_der).public_key():
        raise ValueError("the key is not the certificate's")
    header = {"typ": typ, "x5c": [base64.b64encode(certificate_der).decode()]}
    return sign_compact(payload, key, header)


def verify(text: str, *, typ: str) -> Signed:
    """Return a payload and the certificate whose key signed it.

    The header has exactly ``alg``, ``typ`` and ``x5c`` with one certificate. Whether the
    certificate is known, valid or not revoked is for the caller to find out.

    Raises:
        MalformedRequest: not a JWS of this type in its one spelling.
        NotAuthenticated: the signature is not by the key of the certificate in it.
    """
    try:
        token = parse(text)
    except ValueError as exc:
        raise _malformed(str(exc)) from exc
    header = token.header
    if header.keys() != {"alg", "typ", "x5c"} or header["typ"] != typ:
        raise _malformed(f"the header is not that of {typ}")
    certificate_der = _certificate(header["x5c"])
    try:
        certificate = x509.load_der_x509_certificate(certificate_der)
        public = certificate.public_key()
        key_algorithm = algorithm(public)
    except PARSER_ERRORS as exc:
        raise _malformed("the certificate in x5c cannot be used") from exc
    if header["alg"] != key_algorithm:
        raise _malformed(f"a key like this signs with {key_algorithm}")
    if not signature_matches(token, _json_web_key(public), key_algorithm):
        raise NotAuthenticated("the signature is not by the key of the certificate", code=SIGNATURE)
    return Signed(token.payload, certificate, certificate_der)


def read_object(octets: bytes) -> dict[str, Any]:
    """Return a JSON object in UTF-8; see ``read_json``.

    Raises:
        ValueError: anything else.
    """
    value = read_json(octets)
    if not isinstance(value, dict):
        raise ValueError("this is not a JSON object")
    return value


def read_json(octets: bytes) -> Any:
    r"""Return the value of a JSON text in UTF-8.

    Half a character (``\ud800``) is refused because it cannot be written to a log or a message,
    a repeated member because readers differ on which one counts.

    Raises:
        ValueError: anything else than one JSON value, or nested too deeply.
    """
    try:
        text = octets.decode()
        value = json.loads(text, object_pairs_hook=_members, parse_constant=_no_constant)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc
    return value


def _json_web_key(key: object) -> JSONWebKey:
    if isinstance(key, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey):
        return ECKey.import_key(key)
    if isinstance(key, rsa.RSAPublicKey | rsa.RSAPrivateKey):
        return RSAKey.import_key(key)
    if isinstance(key, ed25519.Ed25519PublicKey | ed25519.Ed25519PrivateKey):
        return OKPKey.import_key(key)
    raise ValueError("only EC, RSA and Ed25519 keys sign")


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


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member stands twice")
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _encode(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def _decode(part: str) -> bytes:
    if not _BASE64URL.fullmatch(part):
        raise ValueError("this is not base64url")
    octets = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    # Spare bits of the last character would let one text be spelled in several ways.
    if _encode(octets) != part:
        raise ValueError("this is not base64url")
    return octets


def _malformed(reason: str) -> MalformedRequest:
    return MalformedRequest(reason, code=MALFORMED)
