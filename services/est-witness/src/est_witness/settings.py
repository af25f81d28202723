"""Settings of ``est-witness``."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from estcore.errors import MalformedRequest
from estcore.pki.profile import StrictModel
from estcore.runtime.settings import AdminSettings, Port, TelemetrySettings
from estcore.tlog.checkpoint import VerifierKey, check_name

PREFIX = "EST_WITNESS"


class ListenSettings(StrictModel):
    """Where logs ask for cosignatures, over HTTPS."""

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: Port = Field(default=8460, description="port to listen on")
    certificate_file: Path = Field(description="certificate chain of this server, PEM")
    key_file: Path = Field(description="its key")
    client_ca_file: Path | None = Field(
        default=None, description="clients need a certificate of these CAs"
    )


class WitnessSettings(StrictModel):
    """The whole configuration of ``est-witness``."""

    name: str = Field(
        pattern=r"^[^\s+]{1,200}$",
        description="name of the witness and of its key, for example witness.example.org/est",
    )
    key_file: Path = Field(
        description="Ed25519 key, PKCS#8 PEM, for its owner alone; no key of the suite"
    )
    logs: tuple[str, ...] = Field(
        min_length=1, description="verifier keys (vkey) of the logs that are witnessed"
    )
    state_folder: Path = Field(
        description="what was seen of each log; never restore it from a copy"
    )
    listen: ListenSettings
    admin: AdminSettings = AdminSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @model_validator(mode="after")
    def _readable(self) -> Self:
        try:
            check_name(self.name)
            names = [VerifierKey.parse(text).name for text in self.logs]
        except MalformedRequest as exc:
            raise ValueError(exc.reason) from exc
        if len(names) != len(set(names)):
            raise ValueError("two logs have the same origin")
        return self

    def keys(self) -> dict[str, VerifierKey]:
        """Return the verifier key of each log by its origin."""
        return {key.name: key for key in map(VerifierKey.parse, self.logs)}
