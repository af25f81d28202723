"""Read policy and profiles: they must fit together, and fit the issuers that are served."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from ca_signer.settings import GroupSettings
from estcore.errors import ConfigurationError
from estcore.pki.crl_shards import PLACEHOLDER
from estcore.pki.profile import ProfileSet, load_profiles
from estcore.policy.document import PolicyDocument, load_policy


def read_rules(
    policy_file: Path,
    profiles_file: Path,
    *,
    issuers: Collection[str],
    groups: Mapping[str, GroupSettings],
    unparted: Collection[str] = (),
) -> tuple[PolicyDocument, ProfileSet]:
    """Read policy and profiles.

    ``issuers`` are all that the policy may name; those of ``unparted`` have no CRL in parts.

    Raises:
        ConfigurationError: anything unreadable or inconsistent.
    """
    policy = load_policy(policy_file)
    profiles = load_profiles(profiles_file)
    for name, label in policy.labels.items():
        for issuer in label.issuers:
            if issuer not in issuers:
                raise ConfigurationError(f"label {name!r} names the unknown issuer {issuer!r}")
        for profile in label.profiles:
            url = profiles.get(profile).crl_url or ""
            without_parts = [issuer for issuer in label.issuers if issuer in unparted]
            if PLACEHOLDER in url and without_parts:
                raise ConfigurationError(
                    f"profile {profile!r} has {PLACEHOLDER} in crl_url, but issuer "
                    f"{without_parts[0]!r} has no crl_partitions"
                )
    for group, caps in groups.items():
        unknown = set(caps.labels) - set(policy.labels)
        if unknown:
            raise ConfigurationError(f"group {group!r} names unknown labels {sorted(unknown)}")
    return policy, profiles
