"""The four services as deployments see them: command, prefix, settings, configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audit.settings import Settings as AuditSettings
from ca_signer.settings import SignerSettings
from est_frontend.settings import FrontendSettings
from estcore.runtime.settings import ServiceSettings
from estdev.service_settings import (
    audit_settings,
    frontend_settings,
    group_settings,
    signer_settings,
)
from renewal.settings import RenewalSettings

ADMIN_PORT = 9100
EST_PORT = 8443
USER_ID = 10001
"""The images' user; numeric, as ``runAsNonRoot`` wants it."""
DATABASE = "estsuite"


@dataclass(frozen=True)
class Service:
    """A service's names."""

    name: str
    distribution: str
    command: str
    prefix: str
    settings: type[ServiceSettings]
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


@dataclass(frozen=True)
class Image:
    """The build arguments of one image, and its target in the Dockerfile."""

    package: str
    command: str
    extras: str = ""
    target: str = "service"

    @property
    def arguments(self) -> dict[str, str]:
        """The build arguments; EXTRAS only where there are any."""
        extras = {"EXTRAS": self.extras} if self.extras else {}
        return {"PACKAGE": self.package, **extras, "COMMAND": self.command}


IMAGES = {
    **{s.name: Image(s.distribution, s.command) for s in SERVICES.values()},
    "ca-signer-check-store": Image("estsuite-signer", "ca-signer", "lint", "job"),
    "ca-signer-upstream": Image("estsuite-signer", "ca-signer-upstream", "upstream"),
}
"""Every image, by the name after ``estsuite/``."""


@dataclass(frozen=True)
class Places:
    """Where a service finds things: paths inside its container, or real ones in tests."""

    config: Path = Path("/etc/estsuite")
    secrets: Path = Path("/run/secrets")
    data: Path = Path("/var/lib/estsuite")
    nats: str = "nats://nats:4222"
    postgres: str = "postgres:5432"


def compose_settings(service: Service, places: Places, policy_folder: Path) -> dict[str, Any]:
    """Return the settings file of a service under compose; the same keys as ``estsuite up``.

    Only what ``migrate`` needs is left out: the migration containers get it by environment, so
    that the services never see the owner's password.
    """
    settings: dict[str, Any] = {
        "instance": service.name,
        "bus": {
            "url": places.nats,
            "nkey_seed_file": str(places.secrets / f"nats-{service.name}.seed"),
            "senders_file": str(places.config / "senders.json"),
            # The network "bus" is internal: it has no way off this machine.
            "allow_plaintext": True,
        },
        "admin": {"port": ADMIN_PORT},
        "state_folder": str(places.data / "state"),
    }
    if service.schema is not None:
        settings["database"] = {
            "url": f"postgresql://{service.schema}@{places.postgres}/{DATABASE}",
            "password_file": str(places.secrets / f"{service.schema}.password"),
            "allow_plaintext": True,  # the network "data" is internal, too
        }
    return settings | _own(service.name, places, policy_folder)


def _own(name: str, places: Places, policy_folder: Path) -> dict[str, Any]:
    config, secrets, data = places.config, places.secrets, places.data
    if name == "est-frontend":
        settings = frontend_settings(
            config=config,
            port=EST_PORT,
            certificate=config / "server.pem",
            key=secrets / "server.key",
            spool=data / "spool" / "est-frontend.sqlite",
            state=data / "state",
        )
        settings["listen"]["host"] = "0.0.0.0"  # noqa: S104 - inside the container
        return settings
    if name == "ca-signer":
        return signer_settings(
            config=config,
            certificates=config,
            key=secrets / "issuing.key",
            passphrase=secrets / "ca.passphrase",
            group=group_settings(policy_folder),
        )
    if name == "audit":
        return audit_settings(key=secrets / "audit-checkpoint.pem", sinks=[])
    return {}


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
