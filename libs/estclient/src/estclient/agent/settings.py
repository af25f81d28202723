"""Settings of one credential of an agent: a definition (environment prefix ``EST_AGENT``)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from estclient.agent.output_settings import WITH_KEY, OutputSettings
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


class ClientCredentialsSettings(StrictModel):
    """A client of an authorization server (RFC 6749 section 4.4)."""

    token_url: str = Field(
        pattern=r"^https://[^/?#@\s]+/[^?#\s]*$", description="https URL of the token endpoint"
    )
    client_id: str = Field(min_length=1, max_length=255, description="id of the client")
    client_secret_file: Path | None = Field(
        default=None, description="file with the client's secret"
    )
    private_key_file: Path | None = Field(
        default=None, description="key that signs a JWT in place of a secret (RFC 7523)"
    )
    scope: str | None = Field(default=None, description="scope to request")
    audience: str | None = Field(default=None, description="audience to request, where one must")
    ca_file: Path | None = Field(
        default=None, description="roots for the token endpoint; those of the system without it"
    )
    dpop: bool = Field(
        default=True,
        description="requests carry a DPoP proof (RFC 9449); a token bound by it is used with one",
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.client_secret_file is None) == (self.private_key_file is None):
            raise ValueError("give either client_secret_file or private_key_file")
        return self


class TokenSettings(StrictModel):
    """Where an access token comes from: a file, or an authorization server."""

    token_file: Path | None = Field(
        default=None, description="file with the token, read for each request"
    )
    service_account_file: Path | None = Field(
        default=None,
        description="projected service-account token of Kubernetes, read for each request; the "
        "kubelet chooses its mode",
    )
    client_credentials: ClientCredentialsSettings | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        ways = (self.token_file, self.service_account_file, self.client_credentials)
        if sum(way is not None for way in ways) != 1:
            raise ValueError(
                "give exactly one of token_file, service_account_file, client_credentials"
            )
        return self


class CertificateSettings(StrictModel):
    """A certificate from before, an IDevID for example (IEEE 802.1AR)."""

    certificate_file: Path = Field(description="certificate and its chain, PEM")
    key_file: Path = Field(description="its private key, PEM")


class PKCS11Settings(StrictModel):
    """A PKCS#11 token in which the keys are made and stay."""

    module: Path = Field(description="PKCS#11 module, a shared library")
    label: str = Field(min_length=1, max_length=32, description="label of the token")
    pin_file: Path = Field(description="file with the PIN of the token's user")


class BootstrapSettings(StrictModel):
    """How the first certificate is asked for, and the next one after all have expired.

    The credential is exactly one of: ``user`` with ``secret_file``, ``token``, ``certificate``.
    """

    subject: str = Field(description="for example CN=web.demo")
    san: tuple[str, ...] = Field(default=(), description="dns:, ip:, uri:, email:")
    user: str | None = Field(default=None, description="id of the enrollment secret")
    secret_file: Path | None = Field(default=None, description="file with the enrollment secret")
    token: TokenSettings | None = None
    certificate: CertificateSettings | None = None

    @model_validator(mode="after")
    def _readable(self) -> Self:
        request_builder(self.subject, self.san)
        if (self.user is None) != (self.secret_file is None):
            raise ValueError("user and secret_file belong together")
        ways = (self.user, self.token, self.certificate)
        if sum(way is not None for way in ways) != 1:
            raise ValueError("give exactly one of user with secret_file, token, certificate")
        return self


OnFirst = Literal["run", "skip"]


class PresenceSettings(StrictModel):
    """Where the service presents its certificate, to see that it uses the new one."""

    host: str
    port: Port
    server_name: str | None = Field(default=None, description="SNI, if not the host")
    timeout_s: float = Field(default=60, gt=0, le=3600)
    on_first: OnFirst = Field(
        default="skip",
        description="`run`: also after the very first enrollment, when the service may still wait "
        "for its certificate",
    )


class HookSettings(StrictModel):
    """A command that makes the service reload; it finds the paths in its environment."""

    command: tuple[str, ...] = Field(
        min_length=1, description="EST_CERTIFICATE_FILE, EST_KEY_FILE, EST_CA_FILE are set"
    )
    timeout_s: float = Field(default=30, gt=0, le=3600)
    on_first: OnFirst = Field(
        default="run",
        description="`skip`: not after the very first enrollment, when the service is not running",
    )


class AgentSettings(StrictModel):
    """Settings of one credential; the agent has one such definition for each."""

    name: Token = Field(default="agent", description="shown by the bus")
    server: ServerSettings
    store: Path = Field(description="folder of the credential; readable by its owner only")
    owner: OwnerSettings | None = None
    bus: BusSettings | None = Field(
        default=None, description="without it the agent renews by lifetime alone"
    )
    bootstrap: BootstrapSettings | None = None
    key_algorithm: KeyAlgorithm = "ec-p256"
    pkcs11: PKCS11Settings | None = None
    outputs: tuple[OutputSettings, ...] = ()
    hook: HookSettings | None = None
    presence: PresenceSettings | None = None
    renew_at: float = Field(
        default=0.85, ge=0.5, le=0.95, description="share of the lifetime to renew at unasked"
    )
    renewal_info: bool = Field(
        default=True, description="ask the server when to renew (RFC 9773); the earlier time counts"
    )
    managed: bool = Field(
        default=False,
        description="the server renews the certificate by itself, and the agent fetches it; where "
        "renewal information does not say so, the agent renews as ever",
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
    attention_retry_s: float = Field(
        default=3600,
        ge=0.1,
        le=86_400,
        description="longest pause in the state `needs attention`, when only an operator can help",
    )
    ack_timeout_s: float = Field(
        default=30, ge=0, le=3600, description="how long a proof not yet accepted is repeated"
    )
    telemetry: TelemetrySettings = TelemetrySettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.bus is not None and self.owner is None:
            raise ValueError("bus needs owner: whose rotations to listen to")
        if self.pkcs11 is not None and any(o.format in WITH_KEY for o in self.outputs):
            raise ValueError("a key in a token is in no combined-pem, pkcs12 or jks output")
        if self.managed and not self.renewal_info:
            raise ValueError("managed needs renewal_info: it says when there is something to fetch")
        files = [file for output in self.outputs for file in output.files]
        if len(set(files)) != len(files):
            raise ValueError("two outputs write one file")
        return self
