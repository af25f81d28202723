"""Settings of the probe (environment prefix ``EST_PROBE``)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from estclient.agent.settings import ServerSettings
from estclient.est.keys import request_builder
from estclient.operators.settings import OperatorSettings
from estcore.pki.profile import KeyAlgorithm, StrictModel, Token
from estcore.runtime.settings import AdminSettings, TelemetrySettings

Seconds = Annotated[float, Field(gt=0, le=600)]


class ProbeSecret(StrictModel):
    """Enroll with an enrollment secret."""

    user: str = Field(min_length=1, description="id of the enrollment secret")
    secret_file: Path = Field(description="file with the enrollment secret; not a one-time secret")


class ProbeCredential(StrictModel):
    """Enroll with an existing certificate."""

    certificate_file: Path = Field(description="certificate chain that authenticates, PEM")
    key_file: Path = Field(description="its private key, PEM, readable by its owner only")


class RevocationSettings(StrictModel):
    """Which revocation information a certificate of the probe must have."""

    require_ocsp: bool = Field(
        default=False, description="a certificate that names no OCSP responder is a failure"
    )
    require_crl: bool = Field(
        default=False, description="a certificate that names no CRL is a failure"
    )


class SIEMSettings(StrictModel):
    """Where the audit record of the issuance must arrive."""

    file: Path = Field(description="file that receives the records; the serial must appear in it")
    timeout_s: Seconds = Field(default=30, description="the record must arrive in this time")


class CommandSettings(StrictModel):
    """A check of the operator's own: repeated until it ends with exit code 0, or the deadline."""

    name: Token = Field(description="name of the step is command-<name>")
    command: tuple[str, ...] = Field(
        min_length=1,
        description="no shell; EST_SERIAL, EST_FINGERPRINT and EST_CORRELATION_ID are set",
    )
    timeout_s: Seconds = Field(default=30, description="it must succeed in this time")


class ProbeSettings(StrictModel):
    """All settings of one probe of one label."""

    name: Token = Field(default="probe", description="shown in its log")
    server: ServerSettings
    issuer_trust_file: Path | None = Field(
        default=None,
        description="roots (PEM) that issued certificates must chain to; without it those of "
        "`server.trust_file`",
    )
    subject: str = Field(description="name that people recognize, for example CN=probe.clinic.test")
    san: tuple[str, ...] = Field(default=(), description="dns:, ip:, uri:, email:")
    secret: ProbeSecret | None = Field(default=None, description="enroll with a secret")
    credential: ProbeCredential | None = Field(
        default=None, description="enroll with an existing certificate"
    )
    key_algorithm: KeyAlgorithm = "ec-p256"
    revocation: RevocationSettings = RevocationSettings()
    operator: OperatorSettings | None = Field(
        default=None, description="look the certificate up in the ledger as an operator"
    )
    siem: SIEMSettings | None = None
    commands: tuple[CommandSettings, ...] = ()
    every_s: float = Field(
        default=60, ge=1, le=86_400, description="from the start of a round to the next"
    )
    step_timeout_s: Seconds = Field(default=30, description="deadline of each other step")
    admin: AdminSettings = AdminSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        request_builder(self.subject, self.san)
        if (self.secret is None) == (self.credential is None):
            raise ValueError("give exactly one of secret and credential")
        names = [command.name for command in self.commands]
        if len(set(names)) != len(names):
            raise ValueError("two commands have the same name")
        return self
