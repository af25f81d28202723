"""Certificate profiles: what may be in a certificate, and how its rotation behaves.

Read from YAML by ca-signer; a wrong file stops the start with one line that names the place.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from estcore.errors import ConfigurationError
from estcore.pki.durations import Duration

M = TypeVar("M", bound=BaseModel)
Token = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,63}$")]
KeyAlgorithm = Literal[
    "ec-p256", "ec-p384", "ec-p521", "rsa-2048", "rsa-3072", "rsa-4096", "ed25519"
]
KeyUsageName = Literal[
    "digital_signature", "key_encipherment", "key_agreement", "content_commitment"
]
ExtendedKeyUsageName = Literal["server_auth", "client_auth", "cmc_ra"]
SubjectAttribute = Literal["CN", "O", "OU", "C", "ST", "L", "serialNumber", "DC", "UID"]
SANKind = Literal["dns", "ip", "uri", "email"]

BACKDATE_CAP = dt.timedelta(hours=1)
BACKDATE_SHARE = 20


class Priority(StrEnum):
    """How urgent: decides queue share when signing and backoff when renewing."""

    CRITICAL = "critical"
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


PRIORITIES = tuple(Priority)


class StrictModel(BaseModel):
    """Configuration that refuses what it does not know and never changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RenewalRules(StrictModel):
    """When a certificate of this profile is due and how long old and new live side by side."""

    reaction_time: Duration = Field(
        default=dt.timedelta(days=7),
        description="renewal is never announced later than this before expiry",
    )
    overlap: Duration = Field(
        default=dt.timedelta(days=1),
        description="how long the old certificate stays valid in use after the new one is proven",
    )
    spread: float = Field(
        default=0.05, ge=0, le=0.3, description="share of the lifetime over which a fleet spreads"
    )
    mode: Literal["agent", "poll"] = "agent"


class Profile(StrictModel):
    """One certificate profile."""

    name: Token
    version: int = Field(default=1, ge=1)
    lifetime: Duration
    backdate: Literal["auto", "none"] = Field(
        default="auto", description="auto: notBefore is min(1 h, lifetime/20) in the past"
    )
    key_algorithms: tuple[KeyAlgorithm, ...] = Field(min_length=1)
    subject_attributes: tuple[SubjectAttribute, ...] = ("CN", "O", "OU", "C")
    san_kinds: tuple[SANKind, ...] = ("dns",)
    san_required: bool = False
    common_name_to_dns_san: bool = Field(
        default=False, description="add the CN as a DNS name when the request has no SAN"
    )
    key_usage: tuple[KeyUsageName, ...] = ("digital_signature",)
    extended_key_usage: tuple[ExtendedKeyUsageName, ...] = ("client_auth",)
    crl_url: str | None = None
    ocsp_url: str | None = None
    issuer_url: str | None = None
    same_key: Literal["allow", "deny"] = Field(
        default="allow", description="may a re-enrollment keep the key of its predecessor?"
    )
    idempotency_window: Duration = Field(
        default=dt.timedelta(minutes=10),
        description="how long a repeated enrollment gets the stored certificate",
    )
    priority: Priority = Priority.NORMAL
    renewal: RenewalRules = RenewalRules()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.lifetime < dt.timedelta(seconds=60):
            raise ValueError("lifetime is at least 60s")
        if self.renewal.reaction_time >= self.lifetime:
            raise ValueError("renewal.reaction_time must be shorter than lifetime")
        if self.common_name_to_dns_san and "dns" not in self.san_kinds:
            raise ValueError("common_name_to_dns_san needs dns among san_kinds")
        return self

    @property
    def backdating(self) -> dt.timedelta:
        """How far notBefore lies before the moment of issuance, whole seconds."""
        if self.backdate == "none":
            return dt.timedelta(0)
        share = dt.timedelta(seconds=int(self.lifetime.total_seconds()) // BACKDATE_SHARE)
        return min(BACKDATE_CAP, share)

    @property
    def window(self) -> dt.timedelta:
        """The idempotency window: min(profile's window, lifetime/10)."""
        return min(self.idempotency_window, self.lifetime / 10)


class ProfileSet(StrictModel):
    """All profiles of a signer and the hash of the file they came from."""

    profiles: dict[str, Profile]
    version: str

    def get(self, name: str) -> Profile:
        """Return the profile by name.

        Raises:
            ConfigurationError: no such profile.
        """
        profile = self.profiles.get(name)
        if profile is None:
            raise ConfigurationError(f"there is no profile {name!r}", code="profile.unknown")
        return profile


class _File(StrictModel):
    profiles: tuple[Profile, ...] = Field(min_length=1)


def load_profiles(path: Path) -> ProfileSet:
    """Read the profiles file.

    Raises:
        ConfigurationError: unreadable, not YAML, or a profile that is not right.
    """
    raw = read_yaml(path)
    parsed = parse_model(_File, raw, path)
    names = [p.name for p in parsed.profiles]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"{path}: profile {name!r} stands twice")
    version = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return ProfileSet(profiles={p.name: p for p in parsed.profiles}, version=version)


def read_yaml(path: Path) -> Any:
    """Return what the YAML file holds.

    Raises:
        ConfigurationError: unreadable or not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigurationError(f"cannot read {path}: {exc.strerror}") from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        line = str(exc).replace("\n", " ")
        raise ConfigurationError(f"{path} is not YAML: {line}") from exc


def parse_model(model: type[M], raw: Any, path: Path) -> M:
    """Return ``raw`` as ``model``.

    Raises:
        ConfigurationError: one line naming the file, the first wrong place and why.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(p) for p in first["loc"]) or "the file"
        raise ConfigurationError(f"{path}: {place}: {first['msg'].lower()}") from exc
