"""Where everything of a local suite lives, and the configuration of every service in it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from estcore.errors import ConfigurationError
from estcore.messages import permissions
from estcore.policy.document import load_policy
from estdev.nats import EmbeddedNATS
from estdev.ports import check_free, free_port
from estdev.postgres import EmbeddedPostgres, Role
from estsetup.keep import keep_secret
from estsetup.service_settings import (
    audit_settings,
    frontend_settings,
    group_settings,
    signer_settings,
)

COMMANDS = {
    "ca-signer": "ca-signer",
    "audit": "est-audit",
    "renewal": "est-renewal",
    "est-frontend": "est-frontend",
}
"""Service to command, in the order of starting."""
WITH_DATABASE = ("ca-signer", "audit", "renewal")
AGENTS = {"agent-web": ("demo", "web"), "agent-rotating": ("demo", "rotating")}


@dataclass
class Ports:
    """TCP ports on loopback; 0 means any free one."""

    est: int = 8443
    postgres: int = 15432
    nats: int = 14222
    siem: int = 16514
    admin: int = 19100

    @classmethod
    def free(cls) -> Ports:
        """Return free ports."""
        return cls(est=0, postgres=0, nats=0, siem=0, admin=0)

    def choose(self) -> None:
        """Choose the free ones and make sure the chosen ones are free.

        Raises:
            ConfigurationError: a chosen port is taken.
        """
        for name, what in (
            ("est", "EST"),
            ("postgres", "PostgreSQL"),
            ("nats", "NATS"),
            ("siem", "the local SIEM"),
        ):
            if getattr(self, name) == 0:
                setattr(self, name, free_port())
            else:
                check_free(getattr(self, name), what, f"--{name}-port")


@dataclass
class Layout:
    """Folders and files of one suite."""

    folder: Path
    ports: Ports
    postgres: EmbeddedPostgres = field(init=False)
    nats: EmbeddedNATS = field(init=False)
    roles: dict[str, Role] = field(default_factory=dict)
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    more_sinks: list[dict[str, Any]] = field(default_factory=list)
    """Settings of sinks of audit beside the local SIEM."""

    def __post_init__(self) -> None:
        self.folder = self.folder.resolve()
        self.postgres = EmbeddedPostgres(self.folder, self.ports.postgres)
        self.nats = EmbeddedNATS(self.folder, self.ports.nats, nats_users())

    @property
    def ca(self) -> Path:
        """The development CA."""
        return self.folder / "ca"

    @property
    def root_file(self) -> Path:
        """The root certificate, for ``curl --cacert``."""
        return self.ca / "root.pem"

    @property
    def secrets(self) -> Path:
        """Passwords, seeds, passphrases: 0600 each."""
        return self.folder / "secrets"

    @property
    def logs(self) -> Path:
        """One file per process."""
        return self.folder / "logs"

    @property
    def config(self) -> Path:
        """Settings, written at every start; policy, profiles and users, which may be edited."""
        return self.folder / "config"

    @property
    def users_file(self) -> Path:
        """Verifiers of passwords; may be edited, best by ``estctl password --users-file``."""
        return self.config / "users.yaml"

    @property
    def siem_file(self) -> Path:
        """What the local SIEM received."""
        return self.logs / "siem.log"

    def config_file(self, instance: str) -> Path:
        """Return the settings file of a service instance."""
        return self.config / f"{instance}.yaml"

    def prepare(self) -> None:
        """Make the folders, the CA's passphrase, the examples and an empty users_file."""
        for folder in (self.folder, self.secrets, self.logs, self.config):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        keep_secret(self.secrets / "ca.passphrase", secrets.token_urlsafe(24))
        for name in ("policy.yaml", "profiles.yaml"):
            path = self.config / name
            if not path.exists():
                text = resources.files("estsetup").joinpath("examples", name).read_text()
                path.write_text(text, encoding="utf-8")
        keep_secret(self.users_file, "users: {}\n")
        self.nats.serve_issuers(_label_issuers(self.config / "policy.yaml"))

    def write_settings(self, service: str, instance: str, admin_port: int) -> Path:
        """Write a service's settings file; returns it."""
        settings = _base(self, service, instance, admin_port)
        settings["state_folder"] = str(self.folder / "state" / instance)
        settings.update(_own(self, service, instance))
        merge(settings, self.overrides.get(service, {}))
        path = self.config_file(instance)
        path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        return path


def nats_users() -> dict[str, permissions.Permissions]:
    """Return every NATS user of a local suite with its permissions."""
    users = {
        "migrate": permissions.provisioner(),
        "est-frontend": permissions.frontend("default"),
        "ca-signer": permissions.signer(),
        "renewal": permissions.renewal(),
        "audit": permissions.audit(),
        "operator": permissions.operator(),
    }
    for name, (tenant, service) in AGENTS.items():
        users[name] = permissions.agent(tenant, service)
    return users


def _label_issuers(policy: Path) -> list[str]:
    """Return the issuers of a policy's labels; a wrong policy is reported by the services."""
    try:
        labels = load_policy(policy).labels.values()
    except ConfigurationError:
        return ["issuing"]
    return list(dict.fromkeys(issuer for label in labels for issuer in label.issuers))


def merge(settings: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Lay ``overrides`` over ``settings``, mapping by mapping."""
    for key, value in overrides.items():
        if isinstance(value, dict) and isinstance(settings.get(key), dict):
            merge(settings[key], value)
        else:
            settings[key] = value


def _base(layout: Layout, service: str, instance: str, admin_port: int) -> dict[str, Any]:
    nats = layout.nats
    settings: dict[str, Any] = {
        "instance": instance,
        "bus": {
            "url": nats.url,
            "nkey_seed_file": str(nats.seed_file(service)),
            "migration_nkey_seed_file": str(nats.seed_file("migrate")),
            "senders_file": str(nats.senders_file),
        },
        "admin": {"port": admin_port},
    }
    role = layout.roles.get(service)
    if role is not None:
        settings["database"] = {
            "url": layout.postgres.url(role.runtime),
            "password_file": str(role.runtime_password_file),
            "migration_url": layout.postgres.url(role.owner),
            "migration_password_file": str(role.owner_password_file),
        }
    return settings


def _own(layout: Layout, service: str, instance: str) -> dict[str, Any]:
    config, ca = layout.config, layout.ca
    if service == "est-frontend":
        settings = frontend_settings(
            config=config,
            port=layout.ports.est,
            certificate=ca / "server" / "server.pem",
            key=ca / "server" / "server.key",
            spool=layout.folder / "spool" / f"{instance}.sqlite",
            state=layout.folder / "state" / instance,
        )
        return settings | {"users_file": str(layout.users_file)}
    if service == "ca-signer":
        return signer_settings(
            config=config,
            certificates=ca,
            key=ca / "issuing.key",
            passphrase=layout.secrets / "ca.passphrase",
            group=group_settings(config),
        )
    if service == "audit":
        local_siem = {
            "name": "local-siem",
            "host": "127.0.0.1",
            "port": layout.ports.siem,
            "ca_file": str(layout.root_file),
            "server_name": "localhost",
        }
        return audit_settings(
            key=layout.secrets / "audit-checkpoint.pem", sinks=[local_siem, *layout.more_sinks]
        )
    return {}
