"""Settings of ca-signer (environment prefix ``CA_SIGNER``)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from estcore.pki.profile import StrictModel, Token
from estcore.policy.groups import GroupSettings
from estcore.runtime.settings import DatabaseSettings, ServiceSettings

SERVICE = "ca-signer"
PREFIX = "CA_SIGNER"


class TokenSettings(StrictModel):
    """A key in a PKCS#11 token. Issuers with keys in one token share its worker process."""

    module: Path = Field(description="the PKCS#11 module, a shared library")
    label: str | None = Field(
        default=None,
        min_length=1,
        max_length=32,
        description="PKCS#11 token label; set `label` or `serial`, not both",
    )
    serial: str | None = Field(
        default=None,
        min_length=1,
        max_length=16,
        description="PKCS#11 token serial number; set `label` or `serial`, not both",
    )
    pin_file: Path = Field(description="file with the user's PIN")
    key_id: str = Field(pattern=r"^([0-9a-f]{2}){1,64}$", description="CKA_ID of the key, hex")
    key_label: str | None = Field(
        default=None, min_length=1, description="CKA_LABEL of the key, where `key_id` is not unique"
    )
    timeout_s: float = Field(
        default=5,
        ge=0.05,
        le=60,
        description="seconds for one signature; then the worker process is killed",
    )
    wait_s: float = Field(
        default=10,
        ge=0.1,
        le=120,
        description="seconds a request may wait in the queue; shorter than `lease_s`",
    )
    open_s: float = Field(
        default=10,
        ge=0.5,
        le=120,
        description="seconds to start the worker process, open the token and log in",
    )
    queue: int = Field(
        default=256, ge=1, le=4096, description="signatures asked for at once; more wait outside"
    )
    failures: int = Field(
        default=3, ge=1, le=100, description="consecutive failures that open the circuit breaker"
    )
    pause_s: float = Field(
        default=1, ge=0.05, le=60, description="for so long; doubled as long as it fails"
    )
    longest_pause_s: float = Field(default=60, ge=0.05, le=3600, description="never for longer")

    @model_validator(mode="after")
    def _one_name(self) -> Self:
        if (self.label is None) == (self.serial is None):
            raise ValueError("give the token's label or its serial")
        return self


class IssuerCertificateSettings(StrictModel):
    """The certificate of one issuer and the chain to its root."""

    issuer_id: Token
    certificate_file: Path = Field(description="the issuing CA's certificate, PEM")
    chain_file: Path = Field(description="certificates above it up to the root, PEM")


class IssuerSettings(IssuerCertificateSettings):
    """One issuer with its key: in a file or a token."""

    key_file: Path | None = Field(
        default=None, description="PKCS#8 private key, PEM, encrypted; this or `token`"
    )
    passphrase_file: Path | None = Field(default=None, description="file with its passphrase")
    token: TokenSettings | None = None
    generation_of: Token | None = Field(
        default=None,
        description="the issuer that labels name and that rollovers lead to this one",
    )
    cross_file: Path | None = Field(
        default=None, description="OldWithNew and NewWithOld where the root changes, PEM"
    )
    crl_partitions: tuple[Literal[2, 4, 8, 16, 32, 64, 128, 256], ...] = Field(
        default=(),
        description="in how many parts its CRL is for certificates of profiles with {partition} "
        "in crl_url; the first counts for new ones, the others for those issued before",
    )
    crl_urls: tuple[str, ...] = Field(
        default=(),
        description="with {partition}: what live certificates name besides today's crl_url",
    )

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if (self.key_file is None) == (self.token is None):
            raise ValueError("give key_file or token, exactly one")
        if (self.key_file is None) != (self.passphrase_file is None):
            raise ValueError("key_file and passphrase_file go together")
        return self


class OCSPSettings(StrictModel):
    """How this signer answers OCSP requests that front ends relay (RFC 6960)."""

    answer_lifetime_s: int = Field(
        default=3600, ge=60, le=604_800, description="from thisUpdate to nextUpdate"
    )
    certificate_lifetime_s: int = Field(
        default=604_800,
        ge=3600,
        le=2_592_000,
        description="of the responder's certificate; a new key and certificate after half of it",
    )
    max_per_s: float = Field(
        default=500,
        ge=1,
        le=100_000,
        description="answers signed by this process, a tenth while requests for certificates wait; "
        "beyond it tryLater",
    )


class RequestHandlingSettings(ServiceSettings):
    """What ca-signer and ca-signer-upstream configure alike."""

    database: DatabaseSettings
    policy_file: Path = Field(description="policy, YAML; the same file as est-frontend's")
    profiles_file: Path = Field(description="certificate profiles, YAML")
    remote_issuers: tuple[Token, ...] = Field(
        default=(), description="issuers that the policy names and another process serves"
    )
    groups: dict[Token, GroupSettings] = Field(
        min_length=1, description="what each group of front ends may request"
    )
    sign_within_s: int = Field(
        default=600,
        ge=10,
        le=86_400,
        description="seconds after which an unsigned request expires and is abandoned",
    )
    max_attempts: int = Field(
        default=20, ge=2, le=1000, description="deliveries after which a request is dead-lettered"
    )
    sweep_every_s: float = Field(
        default=2, ge=0.1, le=60, description="seconds between sweeps for expired leases"
    )
    approval_lifetime_s: int = Field(
        default=604_800,
        ge=60,
        le=7_776_000,
        description="seconds a request awaits approval, and an approval its client",
    )
    approval_retry_after_s: int = Field(
        default=10,
        ge=1,
        le=3600,
        description="Retry-After of a new request awaiting approval; grows with its age to an hour",
    )
    approval_max_waiting: int = Field(
        default=100,
        ge=1,
        le=10_000,
        description="maximum number of requests of one owner that await approval",
    )


class SignerSettings(RequestHandlingSettings):
    """All settings of ca-signer."""

    issuers: tuple[IssuerSettings, ...] = Field(
        min_length=1, description="issuers whose keys this process uses"
    )
    software_keys: Literal["allow", "refuse"] = Field(
        default="refuse", description="`allow` accepts keys in files; use an HSM in production"
    )
    batch_size: int = Field(
        default=64, ge=1, le=256, description="maximum number of requests signed in one batch"
    )
    batches_in_flight: int = Field(
        default=1, ge=1, le=16, description="batches processed at once; 1 makes batches fuller"
    )
    linger_ms: int = Field(
        default=4, ge=0, le=100, description="milliseconds a batch waits to fill under load"
    )
    lease_s: int = Field(
        default=15, ge=2, le=300, description="seconds a signer holds the lease on an intent"
    )
    count_every_s: float = Field(
        default=300, ge=10, le=86_400, description="seconds between counts for the inventory gauges"
    )
    crl_lifetime_s: int = Field(
        default=86_400,
        ge=60,
        le=2_592_000,
        description="seconds from thisUpdate to nextUpdate of a CRL; renewed after half of it",
    )
    ocsp: OCSPSettings | None = Field(
        default=None, description="answer OCSP requests; off unless given"
    )
    window_s: int = Field(
        default=60, ge=5, le=3600, description="seconds of one reconciliation window"
    )
    window_settle_s: int = Field(
        default=60, ge=1, le=3600, description="seconds before a reconciliation window is closed"
    )

    @model_validator(mode="after")
    def _tokens_fit(self) -> Self:
        """A full batch fits into a token's queue, and what waits there ends before its lease."""
        for issuer in self.issuers:
            if issuer.token is None:
                continue
            if issuer.token.queue < self.batch_size * self.batches_in_flight:
                raise ValueError("token.queue is less than batch_size times batches_in_flight")
            if issuer.token.wait_s >= self.lease_s:
                raise ValueError("token.wait_s must be shorter than lease_s")
        return self
