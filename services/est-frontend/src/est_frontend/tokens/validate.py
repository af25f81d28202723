"""Access tokens: RFC 9068 and RFC 8725, as strict as an issuer of certificates must be.

Only compact JWS; algorithm by allow-list and by the kind of the issuer's key, never by the
token's wish; issuer and audience exactly; never an ID or refresh token; keys only from the
issuer's set, whatever ``jwk``, ``jku`` or ``x5c`` a token brings along.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError

from est_frontend.tokens.jwks import KeySource, PublicKey
from est_frontend.tokens.settings import TokenIssuerSettings
from estcore.clock import Clock
from estcore.errors import NotAuthenticated
from estcore.policy.templates import ClaimValue

MAX_TOKEN_BYTES = 8192
_TYPES = {"at+jwt", "application/at+jwt", "jwt"}
KEY_KINDS = {"RS256": "RSA", "PS256": "RSA", "ES256": "EC", "ES384": "EC", "EdDSA": "OKP"}
CURVES = {"ES256": "P-256", "ES384": "P-384", "EdDSA": "Ed25519"}
_PARTS = 3


@dataclass(frozen=True)
class AccessToken:
    """A token that was validated: whose it is and what it says."""

    issuer_id: str
    subject: str
    payload: Mapping[str, Any]

    @property
    def certificate_thumbprint(self) -> str | None:
        """``cnf.x5t#S256`` (RFC 8705): the token is good with that client certificate only."""
        return self._confirmation("x5t#S256")

    @property
    def key_thumbprint(self) -> str | None:
        """``cnf.jkt`` (RFC 9449): the token is good with a DPoP proof by that key only."""
        return self._confirmation("jkt")

    def _confirmation(self, name: str) -> str | None:
        confirmation = self.payload.get("cnf")
        value = confirmation.get(name) if isinstance(confirmation, dict) else None
        return value if isinstance(value, str) else None

    @property
    def bound(self) -> bool:
        """The token is bound to something, by ``cnf`` of any kind."""
        return "cnf" in self.payload

    def claims(self, paths: frozenset[str]) -> dict[str, ClaimValue]:
        """Return the claims at these paths that are a text or texts; the others are left out."""
        found = {path: claim_at(self.payload, path) for path in paths}
        return {path: value for path, value in found.items() if value is not None}


class TokenValidator:
    """Validates tokens of the configured issuers."""

    def __init__(
        self, issuers: Mapping[str, tuple[TokenIssuerSettings, KeySource]], clock: Clock
    ) -> None:
        """``issuers`` by the exact value of ``iss``."""
        self._issuers = issuers
        self._clock = clock

    async def validate(self, token: str) -> AccessToken:
        """Return the token's contents.

        Raises:
            NotAuthenticated: with one line that says why, and never the token.
        """
        if len(token) > MAX_TOKEN_BYTES:
            raise refuse("the token is too long", "auth.token_malformed")
        token = unwrapped(token)
        header, payload = read_unverified(token)
        settings, source = self._issuer(payload)
        algorithm = _checked_header(header, settings)
        key = await source.key(str(header["kid"]))
        if key is None:
            raise refuse("the token's key is not the issuer's", "auth.token_key")
        _verify(token, key, algorithm)
        self._check_times(payload, settings)
        _check_claims(payload, settings)
        subject = payload.get("sub") or payload.get("azp") or payload.get("client_id")
        if not isinstance(subject, str) or not 1 <= len(subject) <= 255:  # noqa: PLR2004
            raise refuse("the token has no subject", "auth.token_claims")
        return AccessToken(settings.id, subject, payload)

    def _issuer(self, payload: Mapping[str, Any]) -> tuple[TokenIssuerSettings, KeySource]:
        issuer = payload.get("iss")
        found = self._issuers.get(issuer) if isinstance(issuer, str) else None
        if found is None:
            raise refuse("the token is of another issuer", "auth.token_issuer")
        return found

    def _check_times(self, payload: Mapping[str, Any], settings: TokenIssuerSettings) -> None:
        now = self._clock.now().timestamp()
        expires = _time(payload, "exp", required=True)
        issued = _time(payload, "iat", required=True)
        not_before = _time(payload, "nbf", required=False)
        leeway = settings.leeway_s
        if expires <= now - leeway:
            raise refuse("the token has expired", "auth.token_expired")
        if max(issued, not_before) > now + leeway:
            raise refuse("the token is not yet valid", "auth.token_not_yet_valid")
        if now - issued > settings.max_age_s + leeway:
            raise refuse("the token is too old", "auth.token_expired")


def claim_at(payload: Any, path: str) -> ClaimValue | None:
    """Return the text or texts at a dotted path; a key may itself have dots (longest first)."""
    if isinstance(payload, dict):
        parts = path.split(".")
        for end in range(len(parts), 0, -1):
            key = ".".join(parts[:end])
            if key not in payload:
                continue
            value = payload[key]
            return _texts(value) if end == len(parts) else claim_at(value, ".".join(parts[end:]))
    return None


def _texts(value: Any) -> ClaimValue | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    return None


def refuse(reason: str, code: str) -> NotAuthenticated:
    return NotAuthenticated(reason, code=code)


def unwrapped(token: str) -> str:
    """Libest sends base64 of the token; a JWS has two dots, base64 has none."""
    if "." in token:
        return token
    try:
        return base64.b64decode(token, validate=True).decode("ascii")
    except (binascii.Error, ValueError) as exc:
        raise refuse("the token is not a JWT", "auth.token_malformed") from exc


def read_unverified(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header and payload, believed not at all yet."""
    parts = token.split(".")
    if len(parts) != _PARTS or not all(parts):
        raise refuse("the token is not a signed JWT", "auth.token_malformed")
    return _object(parts[0]), _object(parts[1])


def _object(part: str) -> dict[str, Any]:
    try:
        octets = base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
        value = json.loads(octets)
    except (ValueError, RecursionError) as exc:
        raise refuse("the token is not a JWT", "auth.token_malformed") from exc
    if not isinstance(value, dict):
        raise refuse("the token is not a JWT", "auth.token_malformed")
    return value


def _checked_header(header: Mapping[str, Any], settings: TokenIssuerSettings) -> str:
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in settings.algorithms:
        raise refuse("the token's algorithm is not accepted", "auth.token_algorithm")
    kind = header.get("typ")
    if kind is None and settings.kind != "kubernetes":
        raise refuse("the token is not an access token", "auth.token_type")
    if kind is not None and (not isinstance(kind, str) or kind.lower() not in _TYPES):
        raise refuse("the token is not an access token", "auth.token_type")
    if "crit" in header or "b64" in header:
        raise refuse("the token demands an extension", "auth.token_malformed")
    if not isinstance(header.get("kid"), str) or not 1 <= len(header["kid"]) <= 255:  # noqa: PLR2004
        raise refuse("the token names no key", "auth.token_key")
    return algorithm


def _verify(token: str, key: PublicKey, algorithm: str) -> None:
    wanted = key.get("alg")
    fits = key.key_type == KEY_KINDS[algorithm] and wanted in (None, algorithm)
    curve = CURVES.get(algorithm)
    if not fits or (curve is not None and key.get("crv") != curve):
        raise refuse("the token's algorithm is not its key's", "auth.token_algorithm")
    # What else stands in the header was looked at above or does not matter.
    registry = jws.JWSRegistry(algorithms=[algorithm], strict_check_header=False)
    try:
        jws.deserialize_compact(token, key, algorithms=[algorithm], registry=registry)
    except (JoseError, ValueError) as exc:
        raise refuse("the token's signature is wrong", "auth.token_signature") from exc


def _time(payload: Mapping[str, Any], name: str, *, required: bool) -> float:
    value = payload.get(name)
    if value is None and not required:
        return 0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 2**53:
        raise refuse(f"the token has no usable {name}", "auth.token_claims")
    return float(value)


def _check_claims(payload: Mapping[str, Any], settings: TokenIssuerSettings) -> None:
    audience = payload.get("aud")
    audiences = [audience] if isinstance(audience, str) else audience
    if not isinstance(audiences, list) or settings.audience not in audiences:
        raise refuse("the token is not for this service", "auth.token_audience")
    if settings.kind == "kubernetes":
        return
    # Keycloak says in a claim what it issued: "ID" and "Refresh" are no access tokens.
    if payload.get("typ", "Bearer") not in {"Bearer", "DPoP"} or "nonce" in payload:
        raise refuse("the token is not an access token", "auth.token_type")
    if not isinstance(payload.get("azp") or payload.get("client_id"), str):
        raise refuse("the token names no client", "auth.token_claims")
    if not isinstance(payload.get("jti"), str):
        raise refuse("the token has no jti", "auth.token_claims")
