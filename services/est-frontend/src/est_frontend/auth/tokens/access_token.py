"""Access tokens: RFC 9068 and RFC 8725, as strict as an issuer of certificates must be.

Only compact JWS; algorithm by allow-list and by the kind of the issuer's key, never by the
token's wish; issuer and audience exactly; never an ID or refresh token; keys only from the
issuer's set; ``jwk``, ``jku`` and ``x5c`` of a token are ignored.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from est_frontend.auth.tokens.jwks import KeySource
from est_frontend.auth.tokens.jws import fits, read, refuse, signature_matches
from est_frontend.settings import TokenClaimSettings, TokenIssuerSettings
from estcore.clock import Clock
from estcore.errors import ConfigurationError, IssuerUnavailable
from estcore.policy.templates import ClaimValue

MAX_TOKEN_BYTES = 8192
_MAX_NAME = 255
_MEDIA_TYPE = "application/"
# Keycloak says in a claim what it issued: also "ID", "Refresh", "Offline", "Logout".
_KEYCLOAK_TYPES = ("Bearer", "DPoP")
# OpenID Connect puts these into ID and logout tokens only.
_NOT_IN_ACCESS_TOKENS = ("nonce", "at_hash", "c_hash", "s_hash", "events")
_BINDINGS = ("x5t#S256", "jkt")
# What IANA has registered as confirmation methods.
_CONFIRMATIONS = {"jwk", "jwe", "kid", "jku", "x5t#S256", "osc", "jkt"}
_THUMBPRINT = re.compile(r"[A-Za-z0-9_-]{43}")


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
        values = {path: claim_at(self.payload, path) for path in paths}
        return {path: value for path, value in values.items() if value is not None}


class TokenValidator:
    """Validates tokens of the configured issuers."""

    def __init__(
        self, issuers: Mapping[str, tuple[TokenIssuerSettings, KeySource]], clock: Clock
    ) -> None:
        """``issuers`` by the exact value of ``iss``.

        Raises:
            ConfigurationError: two issuers have one id, under which policy could mix them up.
        """
        ids = [settings.id for settings, _ in issuers.values()]
        for name in ids:
            if ids.count(name) > 1:
                raise ConfigurationError(f"two token issuers have the id {name}")
        self._issuers = issuers
        self._clock = clock

    async def validate(self, token: str) -> AccessToken:
        """Return the token's contents.

        Does not check what it is bound to (``cnf``) beyond that the binding is one of those the
        caller can check.

        Raises:
            NotAuthenticated: with one line that says why, and never the token.
        """
        # 1. Form: one compact JWS of bounded size.
        if len(token) > MAX_TOKEN_BYTES:
            raise refuse("the token is too long", "auth.token_malformed")
        signed_claims = read(_unwrapped(token), "auth.token_malformed")
        # 2. Whose it claims to be decides which rules and which keys count.
        settings, source = self._issuer(signed_claims.payload)
        # 3. Algorithm and key, then the signature.
        algorithm, kid = _checked_header(signed_claims.header, settings)
        key = await source.key(kid)
        if key is None:
            if not source.usable:
                raise IssuerUnavailable(
                    "the issuer's keys are not known now", code="auth.token_keys_unavailable"
                )
            raise refuse("the token's key is not one of the issuer's", "auth.token_key")
        if not fits(key, algorithm):
            raise refuse("the token's algorithm is not its key's", "auth.token_algorithm")
        if not signature_matches(signed_claims, key, algorithm):
            raise refuse("the token's signature is wrong", "auth.token_signature")
        # 4. When, for whom, what kind, who.
        _check_times(signed_claims.payload, settings, self._clock.now().timestamp())
        _check_audience(signed_claims.payload, settings)
        if settings.kind == "oauth2":
            _check_kind(signed_claims.payload, settings.claims)
        _check_required(signed_claims.payload, settings.claims)
        _check_binding(signed_claims.payload)
        subject = _subject(signed_claims.payload, settings.claims)
        return AccessToken(settings.id, subject, signed_claims.payload)

    def _issuer(self, payload: Mapping[str, Any]) -> tuple[TokenIssuerSettings, KeySource]:
        issuer_name = payload.get("iss")
        issuer = self._issuers.get(issuer_name) if isinstance(issuer_name, str) else None
        if issuer is None:
            raise refuse("the token is of another issuer", "auth.token_issuer")
        return issuer


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


def _unwrapped(token: str) -> str:
    """Libest sends base64 of the token (conformance L11); a JWS has two dots, base64 has none."""
    if "." in token:
        return token
    try:
        octets = base64.b64decode(token, validate=True)
        if base64.b64encode(octets).decode() != token:
            raise ValueError("spare bits")
        return octets.decode("ascii")
    except ValueError as exc:
        raise refuse("the token is not a JWT", "auth.token_malformed") from exc


def _checked_header(header: Mapping[str, Any], settings: TokenIssuerSettings) -> tuple[str, str]:
    """Return algorithm and key id."""
    algorithm, kind, kid = header.get("alg"), header.get("typ"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in settings.algorithms:
        raise refuse("the token's algorithm is not accepted", "auth.token_algorithm")
    if not _is_accepted_type(kind, settings):
        raise refuse("the token is not an access token", "auth.token_type")
    if "crit" in header or "b64" in header:
        raise refuse("the token demands an extension", "auth.token_malformed")
    if not isinstance(kid, str) or not 1 <= len(kid) <= _MAX_NAME:
        raise refuse("the token names no key", "auth.token_key")
    return algorithm, kid


def _is_accepted_type(kind: Any, settings: TokenIssuerSettings) -> bool:
    if kind is None:
        return "none" in settings.types or settings.kind == "kubernetes"
    # RFC 7515 section 4.1.9: "application/" may be left out.
    return isinstance(kind, str) and kind.lower().removeprefix(_MEDIA_TYPE) in (
        set(settings.types) - {"none"}
    )


def _check_times(payload: Mapping[str, Any], settings: TokenIssuerSettings, now: float) -> None:
    expires = seconds_in(payload, "exp")
    issued = seconds_in(payload, "iat")
    not_before = seconds_in(payload, "nbf") if "nbf" in payload else issued
    if expires is None or issued is None or not_before is None:
        raise refuse("the token lacks one of its times", "auth.token_claims")
    leeway = settings.leeway_s
    if expires <= now - leeway:
        raise refuse("the token has expired", "auth.token_expired")
    if max(issued, not_before) > now + leeway:
        raise refuse("the token is not yet valid", "auth.token_not_yet_valid")
    if now - issued > settings.max_age_s + leeway:
        raise refuse("the token is too old", "auth.token_expired")


def seconds_in(payload: Mapping[str, Any], name: str) -> float | None:
    """Return a NumericDate (RFC 7519 section 2); None when there is none that can be one."""
    value = payload.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 2**53:
        return None
    return float(value)


def _check_audience(payload: Mapping[str, Any], settings: TokenIssuerSettings) -> None:
    audience = payload.get(settings.claims.audience)
    audiences = audience if isinstance(audience, list) else [audience]
    if settings.audience not in audiences:
        raise refuse("the token is not for this service", "auth.token_audience")


def _check_kind(payload: Mapping[str, Any], claims: TokenClaimSettings) -> None:
    if payload.get("typ", "Bearer") not in _KEYCLOAK_TYPES:
        raise refuse("the token is not an access token", "auth.token_type")
    if any(name in payload for name in _NOT_IN_ACCESS_TOKENS):
        raise refuse("the token is not an access token", "auth.token_type")
    if all(_name(payload, claim) is None for claim in claims.client):
        raise refuse("the token names no client", "auth.token_claims")
    if claims.token_id is not None and _name(payload, claims.token_id) is None:
        raise refuse(f"the token has no {claims.token_id}", "auth.token_claims")


def _check_required(payload: Mapping[str, Any], claims: TokenClaimSettings) -> None:
    for claim, text in claims.required.items():
        if payload.get(claim) != text:
            raise refuse(f"the token has another {claim} than is required", "auth.token_claims")


def _check_binding(payload: Mapping[str, Any]) -> None:
    if "cnf" not in payload:
        return
    confirmation = payload["cnf"]
    # Bound to two things at once would mean that one of them is not looked at. Members that bind
    # to nothing are ignored (RFC 7800 section 3.1); Keycloak adds "kc-jkt-type".
    ways = _CONFIRMATIONS & confirmation.keys() if isinstance(confirmation, dict) else set()
    way = ways.pop() if len(ways) == 1 else None
    if way not in _BINDINGS or not isinstance(confirmation[way], str):
        raise refuse("the token is bound in a way not known here", "auth.token_claims")
    if not _THUMBPRINT.fullmatch(confirmation[way]):
        raise refuse("the token's binding is not a SHA-256 thumbprint", "auth.token_claims")


def _subject(payload: Mapping[str, Any], claims: TokenClaimSettings) -> str:
    # The first that is present counts, also where it cannot be used: no silent second choice.
    present = next((claim for claim in claims.subject if claim in payload), None)
    subject = None if present is None else _name(payload, present)
    if subject is not None:
        return subject
    raise refuse("the token has no subject", "auth.token_claims")


def _name(payload: Mapping[str, Any], claim: str) -> str | None:
    value = payload.get(claim)
    plain = isinstance(value, str) and 1 <= len(value) <= _MAX_NAME and value.isprintable()
    return value if plain else None
