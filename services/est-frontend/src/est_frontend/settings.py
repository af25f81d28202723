"""Settings of est-frontend (environment prefix ``EST_FRONTEND``)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from estcore.pki.profile import StrictModel, Token
from estcore.runtime.settings import Port, ServiceSettings

Algorithm = Literal["RS256", "PS256", "ES256", "ES384", "EdDSA", "Ed25519"]


ClaimName = Annotated[str, Field(min_length=1, max_length=255)]


class TokenClaimSettings(StrictModel):
    """Where an issuer writes what RFC 9068 calls ``sub``, ``client_id``, ``jti`` and ``aud``.

    The defaults are RFC 9068's and Keycloak's. A claim that a user can change must be none of them.
    """

    subject: tuple[ClaimName, ...] = Field(
        default=("sub", "azp", "client_id"),
        min_length=1,
        description="whose token it is: the first of these claims that is present",
    )
    client: tuple[ClaimName, ...] = Field(
        default=("azp", "client_id"),
        min_length=1,
        description="one of these must name the client: ID tokens have none of them",
    )
    token_id: ClaimName | None = Field(
        default="jti",
        description="must identify the token; null accepts tokens without identifier. Not counted: "
        "a token is good until it expires, each DPoP proof once",
    )
    audience: ClaimName = Field(default="aud", description="must contain `audience`")
    required: dict[ClaimName, str] = Field(
        default_factory=dict, description="claims that must have exactly this text"
    )


class TokenIssuerSettings(StrictModel):
    """One issuer of access tokens: a Keycloak realm, or the API server of a cluster."""

    id: Token = Field(description="the name policy rules use")
    issuer: str = Field(min_length=1, description="the exact value of the claim iss")
    jwks_url: str = Field(description="where its public keys are; https only")
    audience: str = Field(min_length=1, description="a value the claim aud must contain: ours")
    kind: Literal["oauth2", "kubernetes"] = Field(
        default="oauth2", description="kubernetes: service-account tokens, without client id"
    )
    types: tuple[Literal["jwt", "at+jwt", "none"], ...] = Field(
        default=("jwt", "at+jwt"),
        min_length=1,
        description="`typ` in the header of a token, without regard to case; none: may be absent",
    )
    claims: TokenClaimSettings = TokenClaimSettings()
    algorithms: tuple[Algorithm, ...] = Field(
        default=("RS256", "PS256", "ES256", "EdDSA", "Ed25519"), min_length=1
    )
    ca_file: Path | None = Field(
        default=None, description="trust anchors for fetching the keys, PEM; replaces the system's"
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


class ListenSettings(StrictModel):
    """Where EST is served. TLS ends here; there is no mode behind a terminating proxy."""

    host: str = "127.0.0.1"
    port: Port = 8443
    certificate_file: Path = Field(description="server certificate chain, PEM")
    key_file: Path = Field(description="its key, PEM")
    backlog: int = Field(default=1024, ge=16, le=65_535)
    handshake_timeout_s: float = Field(default=10, ge=1, le=120)
    idle_timeout_s: float = Field(
        default=60, ge=1, le=3600, description="keep-alive without request"
    )
    max_connections: int = Field(
        default=10_000, ge=10, le=1_000_000, description="all connections; one more is closed"
    )
    max_connections_per_source: int = Field(
        default=5000,
        ge=1,
        le=1_000_000,
        description="of one IPv4 address or IPv6 /64; a proxy or NAT is one source",
    )
    max_handshakes: int = Field(
        default=1000,
        ge=1,
        le=1_000_000,
        description="handshakes not complete; one more ends the oldest of the source with the most",
    )
    max_handshakes_per_source: int = Field(
        default=200, ge=1, le=1_000_000, description="of one IPv4 address or IPv6 /64"
    )


class CRLListenSettings(StrictModel):
    """Listener for CRLs and OCSP: plain HTTP for all relying parties (RFC 5280 8, RFC 6960)."""

    host: str = "127.0.0.1"
    port: Port = Field(default=8080, description="GET /crl/<issuer>.crl")
    max_connections: int = Field(
        default=500,
        ge=10,
        le=100_000,
        description="one more ends the oldest of the source with the most",
    )
    max_connections_per_source: int = Field(
        default=100, ge=1, le=100_000, description="of one IPv4 address or IPv6 /64"
    )
    ocsp: bool = Field(
        default=False, description="also GET and POST /ocsp/<issuer>; ca-signer needs `ocsp`"
    )
    ocsp_per_s: float = Field(
        default=200,
        gt=0,
        description="questions relayed to ca-signer; beyond it a kept answer or tryLater",
    )
    ocsp_source_per_s: float = Field(
        default=50, gt=0, description="the same for one IPv4 address or IPv6 /64"
    )
    max_ocsp_waiting: int = Field(
        default=64, ge=1, le=10_000, description="questions relayed and not answered yet"
    )


class LimitSettings(StrictModel):
    """What a request may be."""

    max_body_bytes: int = Field(default=65_536, ge=4096, le=1_048_576)
    max_header_bytes: int = Field(default=8190, ge=1024, le=65_536)
    head_timeout_s: float = Field(
        default=10, ge=0.5, le=120, description="from the handshake to the end of the first head"
    )
    body_timeout_s: float = Field(default=10, ge=1, le=120)
    max_key_generations: int = Field(
        default=16, ge=1, le=1000, description="RSA keys made or waited for at once; then 503"
    )
    max_in_flight: int = Field(default=2000, ge=1, le=100_000, description="enrollments at once")


class RateSettings(StrictModel):
    """How often, per front-end process; beyond it 429 (or 503) with Retry-After."""

    source_per_s: float = Field(default=1000, gt=0, description="requests of one address")
    source_burst: float = Field(default=5000, ge=1)
    identity_per_s: float = Field(default=200, gt=0, description="enrollments of one principal")
    identity_burst: float = Field(default=1000, ge=1)


class DigestSettings(StrictModel):
    """HTTP Digest, for labels that offer it."""

    realm: str = Field(
        default="est", pattern=r"^[A-Za-z0-9 ._-]{1,64}$", description="part of every verifier"
    )
    key_file: Path | None = Field(
        default=None, description="32 octets or more, the same on all front ends; else own nonces"
    )


class TrailSettings(StrictModel):
    """The audit trail of operations that have no ledger row."""

    spool_file: Path = Field(
        description="SQLite file that keeps audit records while the bus is unavailable"
    )
    max_spooled: int = Field(default=1_000_000, ge=1000, description="then enrollments get 503")
    flush_every_s: float = Field(default=0.25, ge=0.01, le=5)
    refusals_per_source: int = Field(
        default=50, ge=1, description="records per source and 10 s; the rest is counted in one"
    )


class RenewalInfoSettings(StrictModel):
    """Renewal information (RFC 9773), kept in ``state_folder``."""

    poll_s: float = Field(
        default=2, ge=0.05, le=300, description="distance of two looks at the stream of renewal"
    )
    retry_after_s: int = Field(
        default=21_600,
        ge=1,
        le=86_400,
        description="Retry-After at most; less near the window and for short lifetimes",
    )
    expired_days: int = Field(
        default=7,
        ge=1,
        le=400,
        description="days after its expiry that a certificate is known as expired, not as unknown",
    )


class FrontendSettings(ServiceSettings):
    """All settings of est-frontend."""

    group: Token = Field(default="default", description="front ends with the same caps and rights")
    listen: ListenSettings
    crl_listen: CRLListenSettings | None = Field(default=None, description="off unless given")
    limits: LimitSettings = LimitSettings()
    rates: RateSettings = RateSettings()
    trail: TrailSettings
    policy_file: Path
    users_file: Path | None = Field(
        default=None, description="verifiers of passwords, YAML; see estctl password"
    )
    digest: DigestSettings = DigestSettings()
    renewal_info: RenewalInfoSettings = RenewalInfoSettings()
    token_issuers: tuple[TokenIssuerSettings, ...] = ()
    keygen_secrets_file: Path | None = Field(
        default=None,
        description="YAML: id to base64 of 16, 24 or 32 octets, to seal generated keys",
    )
    state_folder: Path = Field(description="CA certificates and verifiers outlive outages here")
    answer_timeout_s: float = Field(
        default=5, ge=0.1, le=60, description="then 202 or 503, as the label says"
    )
