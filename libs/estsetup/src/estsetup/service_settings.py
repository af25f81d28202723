"""Settings that services of the suite's own deployments share: local, and under compose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from estcore.policy.internal_profiles import OPERATOR_PROFILE

AUDIT_ORIGIN = "estsuite.local/audit"
"""The first line of the audit log's checkpoints."""
ADMIN_PORT = 9100
EST_PORT = 8443
USER_ID = 10001
"""The images' user; numeric, as ``runAsNonRoot`` wants it."""
DATABASE = "estsuite"
_SCHEMAS = {"ca-signer": "ca_signer", "renewal": "renewal", "audit": "audit"}


@dataclass(frozen=True)
class Places:
    """Where a service finds things: paths inside its container, or real ones in tests."""

    config: Path = Path("/etc/estsuite")
    secrets: Path = Path("/run/secrets")
    data: Path = Path("/var/lib/estsuite")
    nats: str = "nats://nats:4222"
    postgres: str = "postgres:5432"


def frontend_settings(
    *, config: Path, port: int, certificate: Path, key: Path, spool: Path, state: Path
) -> dict[str, Any]:
    """Return the settings of est-frontend, with the policy in the folder ``config``."""
    return {
        "group": "default",
        "listen": {"port": port, "certificate_file": str(certificate), "key_file": str(key)},
        "trail": {"spool_file": str(spool)},
        "policy_file": str(config / "policy.yaml"),
        "state_folder": str(state),
    }


def signer_settings(
    *,
    config: Path,
    certificates: Path,
    key: Path,
    passphrase: Path,
    group: dict[str, list[str]],
) -> dict[str, Any]:
    """Return the settings of ca-signer with one issuer, its key in a file."""
    return {
        "policy_file": str(config / "policy.yaml"),
        "profiles_file": str(config / "profiles.yaml"),
        "software_keys": "allow",
        "issuers": [
            {
                "issuer_id": "issuing",
                "certificate_file": str(certificates / "issuing.pem"),
                "chain_file": str(certificates / "chain.pem"),
                "key_file": str(key),
                "passphrase_file": str(passphrase),
            }
        ],
        "groups": {"default": group},
    }


def audit_settings(*, key: Path, sinks: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the settings of audit."""
    return {"checkpoint": {"origin": AUDIT_ORIGIN, "key_file": str(key)}, "sinks": sinks}


def group_settings(config: Path) -> dict[str, list[str]]:
    """Return what a group may request: all labels and profiles of the files in ``config``.

    The profile of operators is left out: ca-signer alone issues their certificates.
    """
    policy = yaml.safe_load((config / "policy.yaml").read_text(encoding="utf-8"))
    profiles = yaml.safe_load((config / "profiles.yaml").read_text(encoding="utf-8"))
    names = {profile["name"] for profile in profiles["profiles"]} - {OPERATOR_PROFILE}
    return {"labels": sorted(policy["labels"]), "profiles": sorted(names)}


def compose_settings(name: str, places: Places, policy_folder: Path) -> dict[str, Any]:
    """Return the settings file of a service under compose; the same keys as ``estsuite up``.

    Only what ``migrate`` needs is left out: the migration containers get it by environment, so
    that the services never see the owner's password.
    """
    settings: dict[str, Any] = {
        "instance": name,
        "bus": _bus(name, places),
        "admin": {"port": ADMIN_PORT},
        "state_folder": str(places.data / "state"),
    }
    schema = _SCHEMAS.get(name)
    if schema is not None:
        settings["database"] = {
            "url": f"postgresql://{schema}@{places.postgres}/{DATABASE}",
            "password_file": str(places.secrets / f"{schema}.password"),
            "allow_plaintext": True,  # the network "data" is internal, too
        }
    return settings | _own(name, places, policy_folder)


def operator_settings(places: Places) -> dict[str, Any]:
    """Return the settings file of ``estctl`` under compose."""
    return {
        "bus": _bus("operator", places),
        "certificate_file": str(places.data / "operator.pem"),
        "key_file": str(places.secrets / "operator.key"),
    }


def _bus(user: str, places: Places) -> dict[str, Any]:
    return {
        "url": places.nats,
        "nkey_seed_file": str(places.secrets / f"nats-{user}.seed"),
        "senders_file": str(places.config / "senders.json"),
        # The network "bus" is internal: it has no way off this machine.
        "allow_plaintext": True,
    }


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
