"""Settings of ``est-issuer``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from estcore.pki.profile import StrictModel, Token
from estcore.runtime.settings import AdminSettings, TelemetrySettings, default_instance

PREFIX = "EST_ISSUER"
_NAME = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"


class LeaseSettings(StrictModel):
    """The Lease by which replicas elect their leader."""

    name: str = Field(default="est-issuer", pattern=_NAME, description="name of the Lease")
    duration_s: int = Field(
        default=15,
        ge=5,
        le=300,
        description="how long a leader that does not renew stays the leader, in seconds",
    )


class IssuerSettings(StrictModel):
    """The whole configuration of ``est-issuer``."""

    instance: Token = Field(
        default_factory=default_instance, description="name of this replica; the pod's name"
    )
    namespace: str = Field(
        default="est-issuer",
        pattern=_NAME,
        description="namespace of the Lease, and of the Secrets of every ESTClusterIssuer",
    )
    kubeconfig_file: Path | None = Field(
        default=None, description="kubeconfig; without it the service account of the pod is used"
    )
    signing_requests: bool = Field(
        default=False,
        description="also sign CertificateSigningRequests of the API group certificates.k8s.io",
    )
    pod_certificate_requests: bool = Field(
        default=False,
        description="also sign PodCertificateRequests (certificates.k8s.io/v1beta1), where the API "
        "server has them",
    )
    workers: int = Field(
        default=4, ge=1, le=64, description="requests that are sent to EST servers at a time"
    )
    request_timeout_s: float = Field(
        default=15, ge=1, le=120, description="how long one request to an EST server may last"
    )
    check_every_s: float = Field(
        default=300,
        ge=1,
        le=86_400,
        description="seconds between checks of an issuer that is Ready; the CA certificates are "
        "fetched again",
    )
    longest_pause_s: float = Field(
        default=300,
        ge=1,
        le=86_400,
        description="longest pause between attempts while an EST server does not answer",
    )
    lease: LeaseSettings = LeaseSettings()
    stop_timeout_s: int = Field(default=30, ge=1, le=600, description="time to finish at SIGTERM")
    admin: AdminSettings = AdminSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
