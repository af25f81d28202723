"""DPoP proofs (RFC 9449): the sender of a token holds the key the token is bound to."""

from __future__ import annotations

import base64
import hmac
import json
from hashlib import sha256
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError

from est_frontend.tokens.jwks import public_key
from est_frontend.tokens.validate import CURVES, KEY_KINDS, read_unverified, refuse, unwrapped
from estcore.clock import Clock

_LIMIT = 4096
_SKEW_S = 60
_ALGORITHMS = ("ES256", "ES384", "PS256", "RS256", "EdDSA")


def check_proof(
    proof: str, token: str, *, thumbprint: str, method: str, url: str, clock: Clock
) -> str:
    """Check a proof for one request; returns the id under which it is spent (one use only).

    ``thumbprint`` is the token's ``cnf.jkt``, ``url`` the request's without query.

    Raises:
        NotAuthenticated: not a proof for this request, this token, this moment, this key.
    """
    if len(proof) > _LIMIT:
        raise refuse("the DPoP proof is too long", "auth.dpop")
    header, payload = read_unverified(proof)
    algorithm, jwk = header.get("alg"), header.get("jwk")
    if header.get("typ") != "dpop+jwt" or algorithm not in _ALGORITHMS or "crit" in header:
        raise refuse("the DPoP proof is not one", "auth.dpop")
    if not isinstance(jwk, dict) or jwk.get("kty") != KEY_KINDS[algorithm]:
        raise refuse("the DPoP proof has no key of its algorithm", "auth.dpop")
    if algorithm in CURVES and jwk.get("crv") != CURVES[algorithm]:
        raise refuse("the DPoP proof has no key of its algorithm", "auth.dpop")
    if not hmac.compare_digest(_thumbprint(jwk), thumbprint):
        raise refuse("the DPoP proof is by another key than the token's", "auth.dpop")
    registry = jws.JWSRegistry(algorithms=[algorithm], strict_check_header=False)
    try:
        jws.deserialize_compact(proof, public_key(jwk), algorithms=[algorithm], registry=registry)
    except (JoseError, ValueError) as exc:
        raise refuse("the DPoP proof's signature is wrong", "auth.dpop") from exc
    expected = _base64url(sha256(unwrapped(token).encode()).digest())
    issued = payload.get("iat")
    fresh = isinstance(issued, (int, float)) and abs(clock.now().timestamp() - issued) <= _SKEW_S
    if (payload.get("htm"), payload.get("htu"), payload.get("ath")) != (method, url, expected):
        raise refuse("the DPoP proof is for another request", "auth.dpop")
    if not fresh:
        raise refuse("the DPoP proof is too old or too new", "auth.dpop")
    identifier = payload.get("jti")
    if not isinstance(identifier, str) or not 1 <= len(identifier) <= 255:  # noqa: PLR2004
        raise refuse("the DPoP proof has no jti", "auth.dpop")
    return sha256(f"{thumbprint}/{identifier}".encode()).hexdigest()


def _thumbprint(jwk: dict[str, Any]) -> str:
    """RFC 7638: base64url of SHA-256 over the required members in order."""
    members = {"RSA": ("e", "kty", "n"), "EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x")}
    try:
        ordered = {name: jwk[name] for name in members[jwk["kty"]]}
    except KeyError as exc:
        raise refuse("the DPoP proof's key is incomplete", "auth.dpop") from exc
    return _base64url(sha256(json.dumps(ordered, separators=(",", ":")).encode()).digest())


def _base64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()
