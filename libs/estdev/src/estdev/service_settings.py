"""Settings that services of the suite's own deployments share: local, and under compose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from estcore.policy.internal_profiles import OPERATOR_PROFILE

AUDIT_ORIGIN = "estsuite.local/audit"
"""The first line of the audit log's checkpoints."""


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
