"""The policy file: labels, and which principal may ask for what. Versioned by its hash.

est-frontend and ca-signer read the same file; the signer decides with its own copy. Anything
unknown stops the start: a policy that is half understood is not a policy.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from estcore.errors import ConfigurationError
from estcore.est.paths import is_label
from estcore.est.transfer import Base64Form
from estcore.pki.names import canonical_name, parse_name
from estcore.pki.profile import Priority, StrictModel, Token, parse_model, read_yaml

SecretId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
DNSPattern = Annotated[str, Field(pattern=r"^[A-Za-z0-9*._-]{1,253}$")]


class Label(StrictModel):
    """One EST label: picks issuer, profiles, accepted authentication and wire habits."""

    issuer: Token
    profiles: tuple[Token, ...] = Field(min_length=1, description="the first is the default")
    authentication: tuple[Literal["certificate", "secret"], ...] = Field(
        default=("certificate", "secret"), min_length=1, description="any one of these suffices"
    )
    priority: Priority = Priority.NORMAL
    when_slow: Literal["pending", "unavailable"] = Field(
        default="pending", description="no answer in time: 202 (pending) or 503 (unavailable)"
    )
    retry_after_s: int = Field(default=5, ge=1, le=172_800)
    response_base64: Base64Form = "auto"


class Names(StrictModel):
    """Which names a rule allows. Empty means none of that kind; a pattern has at most one ``*``."""

    common_names: tuple[DNSPattern, ...] = ()
    dns: tuple[DNSPattern, ...] = ()
    dns_suffixes: tuple[DNSPattern, ...] = ()
    ips: tuple[str, ...] = Field(default=(), description="addresses or networks in CIDR form")
    uri_prefixes: tuple[str, ...] = ()
    emails: tuple[str, ...] = ()
    organizations: tuple[str, ...] = Field(default=(), description="allowed values of O")
    organizational_units: tuple[str, ...] = ()
    countries: tuple[str, ...] = ()


class Owner(StrictModel):
    """Who a certificate belongs to. Both become topic tokens."""

    tenant: Token
    service: Token


class PrincipalMatch(StrictModel):
    """Which principal a rule is for: exactly one way."""

    secret: SecretId | None = None
    certificate_issuer: Token | None = Field(
        default=None, description="issuer id whose certificates match"
    )
    certificate_subject: str | None = Field(
        default=None, description="with certificate_issuer: this subject, as CN=…,O=…"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.secret is None) == (self.certificate_issuer is None):
            raise ValueError("give either secret or certificate_issuer")
        if self.certificate_issuer is not None and self.certificate_subject is None:
            raise ValueError("certificate_issuer needs certificate_subject")
        if self.certificate_subject is not None:
            canonical_name(parse_name(self.certificate_subject))
        return self


class Rule(StrictModel):
    """One principal, its owner, and what it may ask for."""

    name: Token
    principal: PrincipalMatch
    owner: Owner
    labels: tuple[str, ...] = Field(min_length=1)
    profiles: tuple[Token, ...] = Field(min_length=1, description="the first is the default")
    names: Names
    priority: Priority | None = Field(default=None, description="default: the label's")


class PolicyDocument(StrictModel):
    """The whole policy."""

    default_label: str
    labels: dict[str, Label] = Field(min_length=1)
    rules: tuple[Rule, ...] = ()
    _version: str = PrivateAttr(default="unversioned")
    _by_secret: dict[str, Rule] = PrivateAttr(default_factory=dict)
    _by_certificate: dict[tuple[str, str], Rule] = PrivateAttr(default_factory=dict)

    @field_validator("labels")
    @classmethod
    def _label_names(cls, labels: dict[str, Label]) -> dict[str, Label]:
        for name in labels:
            if not is_label(name):
                raise ValueError(
                    f"{name!r} cannot be a label: it is an operation or not a plain name"
                )
        return labels

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.default_label not in self.labels:
            raise ValueError(f"default_label {self.default_label!r} is not among labels")
        seen: set[str] = set()
        for rule in self.rules:
            if rule.name in seen:
                raise ValueError(f"rule {rule.name!r} stands twice")
            seen.add(rule.name)
            self._index(rule)
        return self

    def _index(self, rule: Rule) -> None:
        for label in rule.labels:
            if label not in self.labels:
                raise ValueError(f"rule {rule.name!r} names the unknown label {label!r}")
            offered = self.labels[label].profiles
            if not set(rule.profiles) & set(offered):
                raise ValueError(f"rule {rule.name!r} allows no profile of label {label!r}")
        match = rule.principal
        if match.secret is not None:
            if match.secret in self._by_secret:
                raise ValueError(f"two rules are for the secret {match.secret!r}")
            self._by_secret[match.secret] = rule
            return
        key = (match.certificate_issuer or "", _canonical(match.certificate_subject))
        if key in self._by_certificate:
            raise ValueError(f"two rules are for the certificate {match.certificate_subject!r}")
        self._by_certificate[key] = rule

    @property
    def version(self) -> str:
        """First 16 hexadecimal digits of SHA-256 over the file."""
        return self._version

    def rule_for_secret(self, secret_id: str) -> Rule | None:
        """Return the one rule for a secret."""
        return self._by_secret.get(secret_id)

    def rule_for_certificate(self, issuer_id: str, subject_canonical: str) -> Rule | None:
        """Return the one rule for the subject of a certificate from that issuer."""
        return self._by_certificate.get((issuer_id, subject_canonical))

    def rules_of_owner(self, tenant: str, service: str) -> list[Rule]:
        """Return the rules whose owner this is, in file order."""
        return [r for r in self.rules if (r.owner.tenant, r.owner.service) == (tenant, service)]


def _canonical(subject: str | None) -> str:
    return canonical_name(parse_name(subject)) if subject else ""


def load_policy(path: Path) -> PolicyDocument:
    """Read the policy file.

    Raises:
        ConfigurationError: unreadable, not YAML, or not a policy; names the first wrong place.
    """
    document = parse_model(PolicyDocument, read_yaml(path), path)
    try:
        octets = path.read_bytes()
    except OSError as exc:
        raise ConfigurationError(f"cannot read {path}: {exc.strerror}") from exc
    document._version = hashlib.sha256(octets).hexdigest()[:16]  # noqa: SLF001 - own class
    return document
