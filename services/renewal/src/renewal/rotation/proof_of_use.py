"""Proof of use: a compact JWS by the key of the new certificate (pure).

The service that presents the new certificate signs ``{"rotation_id", "serial", "iat"}`` with its
key. The algorithm follows from the key alone; what the header says is only compared with it, so
``none``, a MAC over the public key or a weaker hash are never tried.
"""

from __future__ import annotations

import datetime as dt
import json
import warnings
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jws
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, OKPKey, RSAKey

from estcore.errors import MalformedRequest, NotAuthenticated

MAX_BYTES = 4096
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_KNOWN = ("ES256", "ES384", "ES512", "RS256", "PS256", "EdDSA", "Ed25519")


@dataclass(frozen=True)
class Claims:
    """What a proof says. Not verified until ``verify`` returned."""

    rotation_id: str
    serial: str
    issued_at: dt.datetime


def read_claims(token: str) -> Claims:
    """Return the claims of a proof without checking its signature, to find the key by.

    Raises:
        MalformedRequest: not a compact JWS with these claims.
    """
    if len(token) > MAX_BYTES:
        raise MalformedRequest("the proof is too long", code="proof.malformed")
    try:
        found = jws.extract_compact(token.encode("ascii"))
        claims = json.loads(found.payload or b"")
        if found.headers().get("alg") not in _KNOWN:
            raise MalformedRequest("the proof's algorithm is not accepted", code="proof.algorithm")
        return Claims(
            rotation_id=_text(claims, "rotation_id"),
            serial=_text(claims, "serial").lower(),
            issued_at=dt.datetime.fromtimestamp(_seconds(claims), dt.UTC),
        )
    except (JoseError, ValueError, TypeError, KeyError, OverflowError, OSError) as exc:
        raise MalformedRequest("not a proof of use", code="proof.malformed") from exc


def verify(token: str, certificate: bytes) -> None:
    """Check that the key in ``certificate`` (DER) signed the proof.

    Does not check the claims, nor that the certificate is valid.

    Raises:
        NotAuthenticated: another key, another algorithm, or a damaged signature.
    """
    public_key = x509.load_der_x509_certificate(certificate).public_key()
    key, algorithms = _key(public_key)
    try:
        with warnings.catch_warnings():
            # RFC 9864 renames EdDSA to Ed25519; agents in the field say either.
            warnings.simplefilter("ignore", SecurityWarning)
            jws.deserialize_compact(token, key, algorithms=algorithms)
    except (JoseError, ValueError, TypeError) as exc:
        raise NotAuthenticated(
            "the proof is not signed by the new certificate's key", code="proof.signature"
        ) from exc


def _key(public_key: CertificatePublicKeyTypes) -> tuple[ECKey | RSAKey | OKPKey, list[str]]:
    pem = public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        algorithm = _CURVES.get(public_key.curve.name)
        if algorithm is not None:
            return ECKey.import_key(pem), [algorithm]
    if isinstance(public_key, rsa.RSAPublicKey):
        return RSAKey.import_key(pem), ["PS256", "RS256"]
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        return OKPKey.import_key(pem), ["Ed25519", "EdDSA"]
    raise NotAuthenticated("no proof is known for this kind of key", code="proof.algorithm")


def _text(claims: dict[str, object], name: str) -> str:
    value = claims[name]
    if not isinstance(value, str) or not 1 <= len(value) <= 64:  # noqa: PLR2004 - hex or UUID
        raise ValueError(name)
    return value


def _seconds(claims: dict[str, object]) -> int:
    value = claims["iat"]
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("iat")
    return value
