"""Settings of token issuers: whose access tokens are believed, and for what."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from estcore.pki.profile import StrictModel, Token

Algorithm = Literal["RS256", "PS256", "ES256", "ES384", "EdDSA", "Ed25519"]


class TokenIssuerSettings(StrictModel):
    """One issuer of access tokens: a Keycloak realm, or the API server of a cluster."""

    id: Token = Field(description="the name policy rules use")
    issuer: str = Field(min_length=1, description="the exact value of the claim iss")
    jwks_url: str = Field(description="where its public keys are; https only")
    audience: str = Field(min_length=1, description="a value the claim aud must contain: ours")
    kind: Literal["oauth2", "kubernetes"] = Field(
        default="oauth2", description="kubernetes: service-account tokens, without client id"
    )
    algorithms: tuple[Algorithm, ...] = Field(
        default=("RS256", "PS256", "ES256", "EdDSA", "Ed25519"), min_length=1
    )
    ca_file: Path | None = Field(
        default=None, description="the only roots believed when keys are fetched, PEM"
    )
    leeway_s: int = Field(default=30, ge=0, le=60, description="clock difference forgiven")
    max_age_s: int = Field(default=3600, ge=60, le=86_400, description="oldest token accepted")
    refresh_s: float = Field(default=300, ge=1, le=3600, description="keys are fetched this often")
    keep_s: float = Field(
        default=86_400, ge=60, le=604_800, description="keys outlive the issuer's outage this long"
    )
    cool_down_s: float = Field(
        default=30, ge=0.1, le=600, description="unknown key ids cause one fetch in this time"
    )

    @field_validator("jwks_url")
    @classmethod
    def _https(cls, url: str) -> str:
        parts = urlsplit(url)
        if not url.startswith("https://") or not parts.hostname:
            raise ValueError("jwks_url must be https")
        if "@" in parts.netloc or parts.fragment:
            raise ValueError("jwks_url has a user or a fragment")
        return url
