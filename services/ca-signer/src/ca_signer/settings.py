"""Settings of ca-signer (environment prefix ``CA_SIGNER``)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from estcore.pki.profile import StrictModel, Token
from estcore.runtime.settings import DatabaseSettings, ServiceSettings


class IssuerSettings(StrictModel):
    """One issuer: its certificate, its key and the chain to its root."""

    issuer_id: Token
    certificate_file: Path = Field(description="the issuing CA certificate, PEM")
    chain_file: Path = Field(description="certificates above it up to the root, PEM")
    key_file: Path = Field(description="PKCS#8 private key, PEM, encrypted")
    passphrase_file: Path = Field(description="file with the key's passphrase")


class GroupSettings(StrictModel):
    """What one group of front ends may ask for, whoever it says was authenticated."""

    labels: tuple[str, ...] = Field(min_length=1)
    profiles: tuple[Token, ...] = Field(min_length=1)
    max_per_minute: int = Field(default=60_000, ge=1, description="requests per signer process")


class SignerSettings(ServiceSettings):
    """All settings of ca-signer."""

    database: DatabaseSettings
    policy_file: Path
    profiles_file: Path
    issuers: tuple[IssuerSettings, ...] = Field(min_length=1)
    groups: dict[Token, GroupSettings] = Field(min_length=1)
    software_keys: Literal["allow", "refuse"] = Field(
        default="refuse", description="allow keys in files; refused unless said, as in production"
    )
    batch_size: int = Field(default=64, ge=1, le=256, description="requests signed together")
    batches_in_flight: int = Field(
        default=1, ge=1, le=16, description="1: what comes meanwhile makes the next batch fuller"
    )
    linger_ms: int = Field(
        default=4, ge=0, le=100, description="under load, how long a batch waits to fill"
    )
    lease_s: int = Field(default=15, ge=2, le=300, description="how long a signer owns an intent")
    sign_within_s: int = Field(
        default=600, ge=10, le=86_400, description="an older intent is abandoned, not signed"
    )
    max_attempts: int = Field(default=20, ge=2, le=1000, description="then it is a dead letter")
    sweep_every_s: float = Field(default=2, ge=0.1, le=60)
    window_s: int = Field(default=60, ge=5, le=3600, description="length of a closed window")
    window_settle_s: int = Field(
        default=60, ge=1, le=3600, description="wait before a window counts as closed"
    )
