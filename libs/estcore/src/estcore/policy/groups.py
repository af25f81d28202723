"""Groups of front ends: what each may request at ca-signer, for any client it authenticated.

A front end is trusted only for who was authenticated on which label, so a group has the labels and
profiles that its clients need and no more. ca-signer decides with these functions, and
``estctl policy explain`` explains with them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from estcore.errors import ConfigurationError, NotAuthorized
from estcore.pki.profile import StrictModel, Token, parse_model, read_yaml
from estcore.policy.internal_profiles import INTERNAL_PROFILES

GroupName = Token


class GroupSettings(StrictModel):
    """What one group of front ends may request, for any client it authenticated."""

    labels: tuple[str, ...] = Field(min_length=1)
    profiles: tuple[Token, ...] = Field(
        min_length=1,
        description="`operator` and `ocsp-responder` never; `ra` only where registrars bootstrap",
    )
    max_per_minute: int = Field(default=60_000, ge=1, description="requests per signer process")

    @model_validator(mode="after")
    def _no_operators(self) -> Self:
        internal = sorted(set(INTERNAL_PROFILES) & set(self.profiles))
        if internal:
            raise ValueError(
                f"profile {internal[0]} is for certificates of the CA itself; no front end may "
                "request it (operators: see ca-signer operator enroll)"
            )
        return self


Groups = Mapping[str, GroupSettings]


class _SignerSettings(StrictModel):
    """The one setting of ca-signer that is read here."""

    groups: dict[GroupName, GroupSettings] = Field(min_length=1)


def load_groups(path: Path) -> Groups:
    """Return the groups of a settings file of ca-signer; its other settings are not looked at.

    Raises:
        ConfigurationError: unreadable, or no groups in it.
    """
    raw: Any = read_yaml(path)
    if not isinstance(raw, dict) or "groups" not in raw:
        raise ConfigurationError(f"{path}: there are no groups; is it the settings of ca-signer?")
    return parse_model(_SignerSettings, {"groups": raw["groups"]}, path).groups


def check_labels_exist(groups: Groups, labels: Collection[str]) -> None:
    """Check that groups name only labels of the policy.

    Raises:
        ConfigurationError: one names another label.
    """
    for name, group in groups.items():
        unknown = set(group.labels) - set(labels)
        if unknown:
            raise ConfigurationError(f"group {name!r} names unknown labels {sorted(unknown)}")


def check_group_label(groups: Groups, group_name: str, label: str) -> None:
    """Check that a group of front ends may use a label.

    Raises:
        NotAuthorized: it may not, or there is no such group.
    """
    group = groups.get(group_name)
    if group is None or label not in group.labels:
        raise NotAuthorized(f"group {group_name} may not use label {label}", code="frontend.label")


def check_group_profile(groups: Groups, group_name: str, profile: str) -> None:
    """Check that a group of front ends may ask for a profile.

    Raises:
        NotAuthorized: it may not, or there is no such group.
    """
    group = groups.get(group_name)
    if group is None or profile not in group.profiles:
        raise NotAuthorized(
            f"group {group_name} may not ask for profile {profile}", code="frontend.profile"
        )
