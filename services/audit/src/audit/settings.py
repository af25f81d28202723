"""Settings of the audit service."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from audit.sink_settings import SinkSettings
from estcore.errors import MalformedRequest
from estcore.pki.profile import StrictModel
from estcore.runtime.settings import DatabaseSettings, ServiceSettings
from estcore.tlog.cosignature import CosignerKey

SCHEMA = "audit"
SERVICE = "audit"
LEGAL_YEARS = 6
"""45 CFR 164.316(b)(2)(i)."""


class AppendSettings(StrictModel):
    """How records are gathered into transactions."""

    max_records: int = Field(
        default=500, ge=1, le=5000, description="records per transaction, at the most about"
    )
    linger_ms: int = Field(
        default=100,
        ge=0,
        le=1000,
        description="milliseconds a first message waits for others to share its transaction",
    )
    credit: int = Field(default=256, ge=1, le=1000, description="messages in hand per stream")
    retry_s: float = Field(
        default=2,
        gt=0,
        le=60,
        description="seconds before redelivery while the database is unavailable",
    )


class CheckpointSettings(StrictModel):
    """Who signs the tree, and how often."""

    origin: str = Field(
        pattern=r"^[^\s+]{1,200}$",
        description="name of the log and of the key in checkpoints, for example example.org/est",
    )
    key_file: Path = Field(
        description="Ed25519 key, PKCS#8 PEM, for its owner alone; never the CA's key"
    )
    interval_s: float = Field(default=60, gt=0, le=3600)
    every_records: int = Field(default=1000, ge=1, le=1_000_000)


class WindowSettings(StrictModel):
    """Anti-entropy with the ledger: how often a window that differs is asked for again."""

    retry_s: float = Field(default=10, gt=0, le=600, description="between two comparisons")
    attempts: int = Field(
        default=8, ge=2, le=100, description="comparisons before a window is given up"
    )
    ledger_every_s: float = Field(
        default=3600,
        ge=1,
        le=86_400,
        description="distance of two comparisons of the last day with the ledger",
    )


class RetentionSettings(StrictModel):
    """How long records are kept before ``est-audit retention purge`` may drop a month."""

    keep_years: int = Field(
        default=LEGAL_YEARS,
        ge=1,
        le=100,
        description="full years after the end of a month; less than 6 needs legal_basis",
    )
    legal_basis: str | None = Field(
        default=None,
        min_length=20,
        max_length=500,
        description="why less than 6 years are enough, as the documentation of the organization "
        "has it; goes on record with each purge",
    )

    @model_validator(mode="after")
    def _long_enough(self) -> Self:
        if self.keep_years < LEGAL_YEARS and self.legal_basis is None:
            raise ValueError(
                "keep_years below 6 needs legal_basis: 45 CFR 164.316(b)(2)(i) asks for six years"
            )
        return self


class WitnessSettings(StrictModel):
    """A process of a different team that cosigns checkpoints (C2SP tlog-witness)."""

    url: str = Field(pattern=r"^https://[^\s?#@]+$", description="https://host:port")
    vkey: str = Field(description="verifier key of the witness, as est-witness keygen printed it")
    ca_file: Path = Field(description="trust anchors of its certificate")
    certificate_file: Path | None = Field(default=None, description="client certificate chain")
    key_file: Path | None = Field(default=None, description="client key")
    every_s: float = Field(
        default=60, gt=0, le=86_400, description="shortest distance of two cosignatures"
    )
    timeout_s: float = Field(default=10, gt=0, le=300, description="to connect, and for an answer")

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file go together")
        try:
            CosignerKey.parse(self.vkey)
        except MalformedRequest as exc:
            raise ValueError(exc.reason) from exc
        return self


class TimestampSettings(StrictModel):
    """An authority that stamps checkpoints with the time (RFC 3161)."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9._/-]{1,200}$",
        description="name of the authority in the signature lines of checkpoints",
    )
    url: str = Field(
        pattern=r"^https?://[^\s#@]+$",
        description="where requests are posted to; plain http will do, the answer is signed",
    )
    anchors_file: Path = Field(
        description="PEM: trust anchors of its time stamps, and intermediates it does not send"
    )
    ca_file: Path | None = Field(
        default=None, description="trust anchors of its TLS certificate, if not the system's"
    )
    every_s: float = Field(
        default=3600, gt=0, le=86_400, description="shortest distance of two time stamps"
    )
    timeout_s: float = Field(default=10, gt=0, le=300, description="to connect, and for an answer")


class Settings(ServiceSettings):
    """The whole configuration of ``est-audit``."""

    database: DatabaseSettings
    append: AppendSettings = AppendSettings()
    checkpoint: CheckpointSettings
    windows: WindowSettings = WindowSettings()
    retention: RetentionSettings = RetentionSettings()
    sinks: tuple[SinkSettings, ...] = ()
    witnesses: tuple[WitnessSettings, ...] = ()
    timestamps: tuple[TimestampSettings, ...] = ()

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [sink.name for sink in self.sinks]
        if len(names) != len(set(names)):
            raise ValueError("two sinks have the same name")
        keys = [witness.vkey for witness in self.witnesses]
        if len(keys) != len(set(keys)):
            raise ValueError("two witnesses have the same key")
        signers = [one.name for one in self.timestamps]
        signers += [CosignerKey.parse(one).name for one in keys]
        if len(signers) != len(set(signers)):
            raise ValueError("two witnesses or time-stamping authorities have the same name")
        return self
