"""Settings of ca-signer-upstream (prefix ``CA_SIGNER_UPSTREAM``). None names a key of a CA."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from ca_signer.settings import GroupSettings
from estcore.pki.profile import StrictModel, Token
from estcore.runtime.settings import DatabaseSettings, ServiceSettings

_MARGIN_S = 5


class UpstreamIssuerSettings(StrictModel):
    """One issuer whose key another CA holds."""

    issuer_id: Token
    certificate_file: Path = Field(description="the issuing CA's certificate, PEM")
    chain_file: Path = Field(description="certificates above it up to the root, PEM")
    plugin: str = Field(
        pattern=r"^[a-z0-9_-]{1,63}$", description="`est`, `vault`, or one that was installed"
    )
    options: dict[str, Any] = Field(description="what the plug-in wants to know")
    timeout_s: float = Field(
        default=20, ge=0.1, le=280, description="one request to the other CA, whole"
    )
    concurrency: int = Field(default=8, ge=1, le=256, description="requests at once")
    backdating_s: int = Field(
        default=3600, ge=0, le=172_800, description="how far back its notBefore may lie"
    )
    failures: int = Field(default=5, ge=1, le=1000, description="in a row, then it is left alone")
    pause_s: float = Field(
        default=2, ge=0.05, le=600, description="for so long; doubled as long as it fails"
    )
    longest_pause_s: float = Field(default=60, ge=0.05, le=3600, description="never for longer")


class UpstreamSettings(ServiceSettings):
    """All settings of ca-signer-upstream."""

    database: DatabaseSettings
    policy_file: Path
    profiles_file: Path
    issuers: tuple[UpstreamIssuerSettings, ...] = Field(min_length=1)
    issuers_elsewhere: tuple[Token, ...] = Field(
        default=(), description="issuers of the policy that another process serves"
    )
    groups: dict[Token, GroupSettings] = Field(min_length=1)
    lease_s: int = Field(
        default=30, ge=2, le=300, description="how long a process owns a submission"
    )
    sign_within_s: int = Field(
        default=600, ge=10, le=86_400, description="what was not sent by then is abandoned"
    )
    unknown_retry_after_s: int = Field(
        default=300,
        ge=1,
        le=3600,
        description="Retry-After while a person finds out what another CA did",
    )
    pending_lifetime_s: int = Field(
        default=604_800,
        ge=60,
        le=7_776_000,
        description="how long a client may stay away while the other CA takes its time",
    )
    approval_lifetime_s: int = Field(
        default=604_800,
        ge=60,
        le=7_776_000,
        description="how long a request waits for an operator; as ca-signer has it",
    )
    approval_retry_after_s: int = Field(
        default=10, ge=1, le=3600, description="Retry-After of a new request that waits"
    )
    approval_max_waiting: int = Field(
        default=100, ge=1, le=10_000, description="requests of one owner that may wait at once"
    )
    max_attempts: int = Field(default=20, ge=2, le=1000, description="then it is a dead letter")
    reload_every_s: float = Field(
        default=2, ge=0.1, le=3600, description="files are looked at: rules, certificates, TLS"
    )
    sweep_every_s: float = Field(default=2, ge=0.1, le=60)

    @model_validator(mode="after")
    def _leases_last(self) -> Self:
        """Whoever sends still holds the row when the answer comes."""
        for issuer in self.issuers:
            if issuer.timeout_s + _MARGIN_S > self.lease_s:
                raise ValueError(f"lease_s must be {_MARGIN_S} s longer than every timeout_s")
        return self
