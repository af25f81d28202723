"""Settings of a renewal agent (environment prefix ``EST_AGENT``)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from estclient.est.keys import request_builder
from estcore.pki.profile import KeyAlgorithm, StrictModel, Token
from estcore.runtime.settings import BusSettings, Port, TelemetrySettings

URL = Annotated[str, Field(pattern=r"^https://[^/?#@\s]+/?$")]


class ServerSettings(StrictModel):
    """Where the agent enrolls."""

    urls: tuple[URL, ...] = Field(
        min_length=1, description="https://host:port of front ends, tried in turn"
    )
    trust_file: Path = Field(
        description="CA certificates (PEM) that the front ends' certificates must chain to"
    )
    label: str | None = Field(default=None, description="EST label; none is the default one")
    timeout_s: float = Field(default=15, gt=0, le=300)
    pending_limit_s: float = Field(
        default=300, ge=0, le=86_400, description="how long to poll while approval is pending"
    )


class OwnerSettings(StrictModel):
    """Whose rotations the agent listens to."""

    tenant: Token
    service: Token


class BootstrapSettings(StrictModel):
    """How the first certificate is asked for, and the next one after all have expired."""

    subject: str = Field(description="for example CN=web.demo")
    san: tuple[str, ...] = Field(default=(), description="dns:, ip:, uri:, email:")
    user: str = Field(description="id of the enrollment secret")
    secret_file: Path = Field(description="file with the enrollment secret")

    @model_validator(mode="after")
    def _readable(self) -> Self:
        request_builder(self.subject, self.san)
        return self


class PresenceSettings(StrictModel):
    """Where the service presents its certificate, to see that it uses the new one."""

    host: str
    port: Port
    server_name: str | None = Field(default=None, description="SNI, if not the host")
    timeout_s: float = Field(default=60, gt=0, le=3600)


class HookSettings(StrictModel):
    """A command that makes the service reload; it finds the paths in its environment."""

    command: tuple[str, ...] = Field(
        min_length=1, description="EST_CERTIFICATE_FILE, EST_KEY_FILE, EST_CA_FILE are set"
    )
    timeout_s: float = Field(default=30, gt=0, le=3600)


class AgentSettings(StrictModel):
    """All settings of one agent: one service, one credential."""

    name: Token = Field(default="agent", description="shown by the bus")
    server: ServerSettings
    store: Path = Field(description="folder of the credential; readable by its owner only")
    owner: OwnerSettings | None = None
    bus: BusSettings | None = Field(
        default=None, description="without it the agent renews by lifetime alone"
    )
    bootstrap: BootstrapSettings | None = None
    key_algorithm: KeyAlgorithm = "ec-p256"
    hook: HookSettings | None = None
    presence: PresenceSettings | None = None
    renew_at: float = Field(
        default=0.85, ge=0.5, le=0.95, description="share of the lifetime to renew at unasked"
    )
    cacerts_every_s: float = Field(
        default=3600,
        ge=0.1,
        le=604_800,
        description="/cacerts is asked for new CA certificates, at half of it at the earliest",
    )
    retry_s: float = Field(
        default=5,
        ge=0.1,
        le=3600,
        description="first pause after a failure; half of it at the least, to spread agents",
    )
    longest_retry_s: float = Field(default=300, ge=0.1, le=86_400)
    ack_timeout_s: float = Field(
        default=30, ge=0, le=3600, description="how long a proof not yet accepted is repeated"
    )
    telemetry: TelemetrySettings = TelemetrySettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.bus is not None and self.owner is None:
            raise ValueError("bus needs owner: whose rotations to listen to")
        return self
