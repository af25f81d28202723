"""DPoP proofs (RFC 9449): the sender of a token holds the key the token is bound to."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from est_frontend.auth.tokens.access_token import seconds_in
from est_frontend.auth.tokens.jwks import MEMBERS, public_key
from est_frontend.auth.tokens.jws import KEY_KINDS, PublicKey, SignedClaims, fits, read, refuse
from est_frontend.auth.tokens.jws import signature_matches as matches
from estcore.clock import Clock

_LIMIT = 4096
_SKEW_S = 60
_MAX_ID = 255


def check_proof(
    proof: str, token: str, *, thumbprint: str, method: str, url: str, clock: Clock
) -> str:
    """Check a proof for one request; returns the id under which it is spent (one use only).

    ``thumbprint`` is the token's ``cnf.jkt``, ``url`` the request's without query, ``token`` as
    it stood in the Authorization header.

    Raises:
        NotAuthenticated: not a proof for this request, this token, this moment, this key.
    """
    if len(proof) > _LIMIT:
        raise refuse("the DPoP proof is too long", "auth.dpop")
    signed_claims = read(proof, "auth.dpop")
    key, algorithm = _key(signed_claims, thumbprint)
    if not matches(signed_claims, key, algorithm):
        raise refuse("the DPoP proof's signature is wrong", "auth.dpop")
    payload = signed_claims.payload
    if payload.get("htm") != method or not _same_url(payload.get("htu"), url):
        raise refuse("the DPoP proof is for another request", "auth.dpop")
    if payload.get("ath") != _base64url(sha256(token.encode()).digest()):
        raise refuse("the DPoP proof is for another token", "auth.dpop")
    issued = seconds_in(payload, "iat")
    if issued is None or abs(clock.now().timestamp() - issued) > _SKEW_S:
        raise refuse("the DPoP proof is too old or too new", "auth.dpop")
    identifier = payload.get("jti")
    if not isinstance(identifier, str) or not 1 <= len(identifier) <= _MAX_ID:
        raise refuse("the DPoP proof has no jti", "auth.dpop")
    return sha256(f"{thumbprint}/{identifier}".encode()).hexdigest()


def _key(signed_claims: SignedClaims, thumbprint: str) -> tuple[PublicKey, str]:
    """Return the proof's own key, which counts only because the token names its thumbprint."""
    header = signed_claims.header
    algorithm, jwk = header.get("alg"), header.get("jwk")
    if header.get("typ") != "dpop+jwt" or "crit" in header or "b64" in header:
        raise refuse("the DPoP proof is not one", "auth.dpop")
    if not isinstance(algorithm, str) or algorithm not in KEY_KINDS or not isinstance(jwk, dict):
        raise refuse("the DPoP proof has no key of an accepted algorithm", "auth.dpop")
    try:
        key = public_key(jwk)
    except ValueError as exc:
        raise refuse("the DPoP proof's key is not a public key", "auth.dpop") from exc
    if not fits(key, algorithm):
        raise refuse("the DPoP proof has no key of an accepted algorithm", "auth.dpop")
    if not hmac.compare_digest(_thumbprint(jwk).encode(), thumbprint.encode()):
        raise refuse("the DPoP proof is by another key than the token's", "auth.dpop")
    return key, algorithm


def _same_url(claimed: Any, url: str) -> bool:
    """RFC 9449 section 4.3: without query and fragment, host and default port normalised."""
    if not isinstance(claimed, str):
        return False
    try:
        return _normalised(claimed) == _normalised(url)
    except ValueError:
        return False


def _normalised(url: str) -> tuple[str, str | None, int, str]:
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError("a user in the URL")
    return parts.scheme, parts.hostname, parts.port or 443, parts.path


def _thumbprint(jwk: Mapping[str, Any]) -> str:
    """RFC 7638: base64url of SHA-256 over the required members in order."""
    ordered = {name: jwk[name] for name in MEMBERS[jwk["kty"]]}
    return _base64url(sha256(json.dumps(ordered, separators=(",", ":")).encode()).digest())


def _base64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()
