"""The four services as deployments see them: command, prefix, settings, configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from audit.settings import Settings as AuditSettings
from ca_signer.settings import SignerSettings
from est_frontend.settings import FrontendSettings
from est_issuer.settings import IssuerSettings
from est_witness.settings import WitnessSettings
from estcore.runtime.settings import ServiceSettings
from estsetup.service_settings import ADMIN_PORT, DATABASE, EST_PORT, USER_ID, Places
from renewal.settings import RenewalSettings

__all__ = [
    "ADMIN_PORT",
    "DATABASE",
    "EST_PORT",
    "IMAGES",
    "SERVICES",
    "USER_ID",
    "AnySettings",
    "Places",
    "flat",
]


AnySettings: TypeAlias = ServiceSettings | IssuerSettings | WitnessSettings


@dataclass(frozen=True)
class Service:
    """A service's names."""

    name: str
    distribution: str
    command: str
    prefix: str
    settings: type[AnySettings]
    schema: str | None = None


SERVICES = {
    service.name: service
    for service in (
        Service(
            "ca-signer", "estsuite-signer", "ca-signer", "CA_SIGNER", SignerSettings, "ca_signer"
        ),
        Service(
            "renewal", "estsuite-renewal", "est-renewal", "EST_RENEWAL", RenewalSettings, "renewal"
        ),
        Service("audit", "estsuite-audit", "est-audit", "EST_AUDIT", AuditSettings, "audit"),
        Service(
            "est-frontend", "estsuite-frontend", "est-frontend", "EST_FRONTEND", FrontendSettings
        ),
    )
}

ISSUER = Service("est-issuer", "estsuite-issuer", "est-issuer", "EST_ISSUER", IssuerSettings)
"""The controller for cert-manager, which is no part of a running suite."""
WITNESS = Service("est-witness", "estsuite-witness", "est-witness", "EST_WITNESS", WitnessSettings)
"""The witness of audit logs, which a different team runs."""


@dataclass(frozen=True)
class Image:
    """The build arguments of one image, and its target in the Dockerfile."""

    package: str
    command: str
    extras: str = ""
    target: str = "service"
    licences: str = "Apache-2.0"

    @property
    def arguments(self) -> dict[str, str]:
        """The build arguments; EXTRAS only where there are any."""
        extras = {"EXTRAS": self.extras} if self.extras else {}
        return {"PACKAGE": self.package, **extras, "COMMAND": self.command}


IMAGES = {
    **{
        s.name: Image(s.distribution, s.command, "otlp pkcs11" if s.name == "ca-signer" else "otlp")
        for s in SERVICES.values()
    },
    "ca-signer-check-store": Image("estsuite-signer", "ca-signer", "lint", "job"),
    "ca-signer-upstream": Image("estsuite-signer", "ca-signer-upstream", "otlp upstream"),
    "est-frontend-srp": Image(
        "estsuite-frontend-srp",
        "est-frontend-srp",
        licences="Apache-2.0 AND LGPL-2.1-only",
    ),
    "est-witness": Image("estsuite-witness", "est-witness"),
    "est-issuer": Image("estsuite-issuer", "est-issuer"),
    "estctl": Image("estsuite-client", "estctl", "pkcs11", "job"),
    "nats-server": Image("estsuite-nats-server", "nats-server", target="job"),
    "setup": Image("estsuite-setup", "est-setup", target="job"),
}
"""Every image, by the name after ``estsuite/``."""


def flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return dotted key to value; the first item stands for all of a list."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        dotted = f"{above}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{dotted}.")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            found |= flat(value[0], f"{dotted}.")
        else:
            found[dotted] = value
    return found
