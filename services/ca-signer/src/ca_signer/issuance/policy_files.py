"""Read policy, profiles and groups: they must fit together, and fit the issuers that are served.

All three may change while the service runs and count together: a group that names a new label is
accepted when the policy has that label, whichever file was written first.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from ca_signer.settings import RequestHandlingSettings
from estcore.errors import ConfigurationError
from estcore.pki.crl_shards import PLACEHOLDER
from estcore.pki.profile import ProfileSet, load_profiles
from estcore.policy.document import PolicyDocument, load_policy
from estcore.policy.groups import Groups, check_labels_exist
from estcore.runtime.logs import fields
from estcore.runtime.settings import load_settings

log = logging.getLogger(__name__)
Rules = tuple[PolicyDocument, ProfileSet, Groups]


def rules_files(settings: RequestHandlingSettings) -> tuple[Path, ...]:
    """Return the files whose content ``read_rules`` returns."""
    own = () if settings.file is None else (settings.file,)
    return (settings.policy_file, settings.profiles_file, *own)


def read_rules(
    settings: RequestHandlingSettings,
    *,
    issuers: Collection[str],
    groups: Groups,
    unparted: Collection[str] = (),
) -> Rules:
    """Read policy and profiles, and check that they fit together and to ``groups``.

    ``issuers`` are all that the policy may name; those of ``unparted`` have no CRL in parts.

    Raises:
        ConfigurationError: anything unreadable or inconsistent.
    """
    policy = load_policy(settings.policy_file)
    profiles = load_profiles(settings.profiles_file)
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
    check_labels_exist(groups, policy.labels)
    return policy, profiles, groups


def read_groups(settings: RequestHandlingSettings, prefix: str) -> Groups:
    """Return the groups of the settings file as it is now; ``prefix`` is that of variables.

    Other settings that have changed count after a restart; they are named in the log.

    Raises:
        ConfigurationError: the file is not good, as at a start.
    """
    if settings.file is None:
        return settings.groups
    now = load_settings(type(settings), prefix, settings.file)
    names = set(type(settings).model_fields) - {"groups"}
    waiting = sorted(name for name in names if getattr(now, name) != getattr(settings, name))
    if waiting:
        log.warning("settings changed that count after a restart", extra=fields(settings=waiting))
    return now.groups
