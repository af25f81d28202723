"""JWS of access tokens and DPoP proofs: the core's strict reader, with this service's errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from estcore.errors import NotAuthenticated
from estcore.pki import jws
from estcore.pki.jws import JSONWebKey

PublicKey = JSONWebKey
KEY_KINDS = {
    "RS256": "RSA", "PS256": "RSA", "ES256": "EC", "ES384": "EC", "EdDSA": "OKP", "Ed25519": "OKP",
}  # fmt: skip
_CURVES = {"ES256": "P-256", "ES384": "P-384", "EdDSA": "Ed25519", "Ed25519": "Ed25519"}


@dataclass(frozen=True)
class SignedClaims:
    """A JWS whose payload is a JSON object; not trusted before its signature was verified."""

    parsed: jws.CompactJWS
    payload: dict[str, Any]
    code: str
    """Of the error when it turns out to be wrong in form."""

    @property
    def header(self) -> dict[str, Any]:
        """The header's members."""
        return self.parsed.header


def read(text: str, code: str) -> SignedClaims:
    """Return the parts of a JWS whose payload is a JSON object.

    Raises:
        NotAuthenticated: with ``code``, for anything else.
    """
    try:
        parsed = jws.parse(text)
        return SignedClaims(parsed, jws.read_object(parsed.payload), code)
    except ValueError as exc:
        raise refuse("this is not a signed JWT", code) from exc


def fits(key: PublicKey, algorithm: str) -> bool:
    """Return whether the algorithm is for keys of this kind, curve and declared purpose."""
    curve = _CURVES.get(algorithm)
    declared = key.get("alg")
    names = {"EdDSA", "Ed25519"} if algorithm in {"EdDSA", "Ed25519"} else {algorithm}
    return (
        key.key_type == KEY_KINDS[algorithm]
        and (declared is None or declared in names)
        and (curve is None or key.get("crv") == curve)
    )


def signature_matches(signed_claims: SignedClaims, key: PublicKey, algorithm: str) -> bool:
    """Return whether the key made the signature; ``fits`` was asked before."""
    return jws.signature_matches(signed_claims.parsed, key, algorithm)


def refuse(reason: str, code: str) -> NotAuthenticated:
    """Return the error to raise; the reason never has a part of the token in it."""
    return NotAuthenticated(reason, code=code)
