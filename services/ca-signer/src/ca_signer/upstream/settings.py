"""Settings of ca-signer-upstream (prefix ``CA_SIGNER_UPSTREAM``). None names a key of a CA."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from ca_signer.settings import IssuerCertificateSettings, RequestHandlingSettings

_MARGIN_S = 5


class UpstreamIssuerSettings(IssuerCertificateSettings):
    """One issuer whose key an upstream CA holds."""

    plugin: str = Field(
        pattern=r"^[a-z0-9_-]{1,63}$", description="`est`, `vault`, or one that was installed"
    )
    options: dict[str, Any] = Field(description="what the plug-in wants to know")
    timeout_s: float = Field(
        default=20,
        ge=0.1,
        le=280,
        description="seconds for one request to the upstream CA, in total",
    )
    concurrency: int = Field(default=8, ge=1, le=256, description="requests at once")
    backdating_s: int = Field(
        default=3600, ge=0, le=172_800, description="how far back its notBefore may lie"
    )
    failures: int = Field(
        default=5, ge=1, le=1000, description="consecutive failures that open the circuit breaker"
    )
    pause_s: float = Field(
        default=2, ge=0.05, le=600, description="for so long; doubled as long as it fails"
    )
    longest_pause_s: float = Field(default=60, ge=0.05, le=3600, description="never for longer")


class UpstreamSettings(RequestHandlingSettings):
    """All settings of ca-signer-upstream."""

    issuers: tuple[UpstreamIssuerSettings, ...] = Field(
        min_length=1, description="issuers whose certificates an upstream CA signs"
    )
    lease_s: int = Field(
        default=30, ge=2, le=300, description="seconds a process holds the lease on a submission"
    )
    unknown_retry_after_s: int = Field(
        default=300,
        ge=1,
        le=3600,
        description="Retry-After while the outcome of a submission is unknown",
    )
    pending_lifetime_s: int = Field(
        default=604_800,
        ge=60,
        le=7_776_000,
        description="seconds a client may take to return for a pending upstream certificate",
    )

    @model_validator(mode="after")
    def _leases_last(self) -> Self:
        """A lease outlives the longest request to its upstream CA."""
        for issuer in self.issuers:
            if issuer.timeout_s + _MARGIN_S > self.lease_s:
                raise ValueError(f"lease_s must be {_MARGIN_S} s longer than every timeout_s")
        return self
