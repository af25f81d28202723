"""Certificate profiles: what may be in a certificate, and how its rotation behaves.

Read from YAML by ca-signer; a wrong file stops the start with one line that names the place.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
import re
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from estcore.errors import ConfigurationError, MalformedRequest
from estcore.pki.crl_shards import ISSUER_PLACEHOLDER
from estcore.pki.crl_shards import PLACEHOLDER as PARTITION_PLACEHOLDER
from estcore.pki.der import header
from estcore.pki.durations import Duration
from estcore.pki.name_templates import (
    PLACEHOLDER,
    check_template,
    general_name,
    placeholders,
    subject_parts,
)
from estcore.pki.names import LONG_NAMES
from estcore.pki.usages import ExtendedKeyUsageName

M = TypeVar("M", bound=BaseModel)
Token = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,63}$")]
KeyAlgorithm = Literal[
    "ec-p256", "ec-p384", "ec-p521", "rsa-2048", "rsa-3072", "rsa-4096", "ed25519"
]
KeyUsageName = Literal[
    "digital_signature",
    "key_encipherment",
    "key_agreement",
    "content_commitment",
    "data_encipherment",
]
SubjectAttribute = Literal[
    "CN", "O", "OU", "C", "ST", "L", "serialNumber", "DC", "UID", "emailAddress", "unstructuredName"
]
SANKind = Literal["dns", "ip", "uri", "email", "other"]
OID = Annotated[str, Field(pattern=r"^[0-2](\.(0|[1-9][0-9]{0,18})){1,30}$")]

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


class ManagedRenewal(StrictModel):
    """How ca-signer renews certificates of this profile by itself, for clients that fetch them."""

    same_key: bool = Field(
        default=False,
        description="certify the same key again, from the stored CSR, until max_key_age",
    )
    max_key_age: Duration | None = Field(
        default=None,
        description="goes with same_key: the age of a key, counted from its first certificate, "
        "after which it is not certified again",
    )
    server_key: bool = Field(
        default=False,
        description="make a new key, sealed for the certificate that the enrollment named, or for "
        "the one that is renewed; with same_key for keys that are too old",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.same_key and not self.server_key:
            raise ValueError("managed renewal needs same_key or server_key")
        if self.same_key != (self.max_key_age is not None):
            raise ValueError("max_key_age goes with same_key, and only with it")
        return self


RenewalMode = Literal["agent", "poll", "managed"]
"""Who acts when a certificate is due: the agent, a client that polls, ca-signer."""


Expiry = Literal["unexpected", "expected"]
"""Whether the end of a certificate without a successor is a fault."""


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
    mode: RenewalMode = Field(
        default="agent",
        description="who acts when a certificate is due: agent (notified by NATS), poll (asks for "
        "renewal information), managed (ca-signer renews, the client fetches)",
    )
    managed: ManagedRenewal | None = Field(
        default=None, description="goes with mode: managed, and only with it"
    )
    expiry: Expiry = Field(
        default="unexpected",
        description="expected: certificates of this profile may end without a successor, as those "
        "of pods that are deleted; their ends are recorded and raise no alarm",
    )
    revoke_replaced: bool = Field(
        default=False,
        description="revoke the old certificate (superseded) when the overlap is over and the "
        "new one was seen in use; else it runs to its end",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.mode == "managed") != (self.managed is not None):
            raise ValueError("renewal.managed goes with renewal.mode: managed, and only with it")
        return self


class ExtensionPolicy(StrictModel):
    """What becomes of extensions that a request asks for.

    ``override``: only the profile's own apply. ``append``: a requested one is added if the
    profile allows it. ``deny``: a request that asks is refused.
    """

    subject_alternative_name: Literal["override", "append", "deny"] = Field(
        default="append", description="the request's SAN and the profile's san_templates"
    )
    key_usage: Literal["override", "append", "deny"] = "override"
    extended_key_usage: Literal["override", "append", "deny"] = "override"
    other: Literal["override", "deny"] = Field(
        default="override", description="all other extensions; they are never copied"
    )
    requestable_key_usage: tuple[KeyUsageName, ...] = Field(
        default=(), description="with append: what a request may add"
    )
    requestable_extended_key_usage: tuple[ExtendedKeyUsageName, ...] = Field(
        default=(), description="with append: what a request may add"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        pairs = (
            ("key_usage", self.key_usage, self.requestable_key_usage),
            ("extended_key_usage", self.extended_key_usage, self.requestable_extended_key_usage),
        )
        for name, policy, requestable in pairs:
            if (policy == "append") != bool(requestable):
                raise ValueError(f"requestable_{name} goes with {name}: append, and only with it")
        return self

    @property
    def reads_request(self) -> bool:
        """Whether a request's KeyUsage, ExtendedKeyUsage and other extensions matter at all."""
        return {self.key_usage, self.extended_key_usage, self.other} != {"override"}


class NameLimits(StrictModel):
    """Names outside of which this profile is never issued, even if a rule allows. Empty: any."""

    dns_suffixes: tuple[str, ...] = Field(default=(), description="domains, names under them")
    ips: tuple[str, ...] = Field(default=(), description="addresses or networks in CIDR form")
    uri_prefixes: tuple[str, ...] = Field(default=(), description="as spiffe://clinic.example/")
    email_domains: tuple[str, ...] = ()
    other_names: tuple[OID, ...] = Field(default=(), description="types of otherName")

    @field_validator("ips")
    @classmethod
    def _networks(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        for text in texts:
            ipaddress.ip_network(text)
        return texts


class FixedExtension(StrictModel):
    """An extension that every certificate of a profile carries, as it stands here."""

    oid: OID
    value: Annotated[str, Field(pattern=r"^([0-9a-f]{2})+$", max_length=4096)] = Field(
        description="DER in lower-case hexadecimal"
    )
    critical: bool = False

    @model_validator(mode="after")
    def _nobodys(self) -> Self:
        reserved = ("2.5.29.", "1.3.6.1.5.5.7.1.", "1.3.6.1.5.5.7.48.1.5", "1.3.6.1.4.1.11129.2.4.")
        if self.oid.startswith(reserved):
            raise ValueError(f"extension {self.oid} is for the settings made for it")
        octets = bytes.fromhex(self.value)
        try:
            is_element = header(octets, 0)[2] == len(octets)
        except MalformedRequest:
            is_element = False
        if not is_element:
            raise ValueError(f"the value of extension {self.oid} is not one DER element")
        return self


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
    subject_template: str | None = Field(
        default=None,
        max_length=500,
        description="the subject of every certificate, as CN={csr.CN},O=Clinic",
    )
    san_templates: tuple[str, ...] = Field(
        default=(), max_length=20, description="SAN entries, as uri:spiffe://clinic/{service}"
    )
    dns_wildcards: bool = Field(
        default=False, description="DNS names may be wildcards, where the rule allows them as well"
    )
    dns_underscores: bool = Field(
        default=False,
        description="labels of DNS names may have underscores, where the rule allows them as well",
    )
    limits: NameLimits = NameLimits()
    extensions: ExtensionPolicy = ExtensionPolicy()
    key_usage: tuple[KeyUsageName, ...] = Field(default=("digital_signature",), min_length=1)
    extended_key_usage: tuple[ExtendedKeyUsageName, ...] = Field(
        default=("client_auth",), min_length=1
    )
    certificate_policies: tuple[OID, ...] = ()
    must_staple: bool = Field(default=False, description="TLS feature status_request (RFC 7633)")
    fixed_extensions: tuple[FixedExtension, ...] = ()
    crl_url: str | None = Field(
        default=None,
        description="CRL distribution point; {issuer} and {partition} are put in",
    )
    ocsp_url: str | None = Field(default=None, description="OCSP responder; {issuer} is put in")
    issuer_url: str | None = Field(
        default=None, description="where the issuer's certificate is; {issuer} is put in"
    )
    same_key: Literal["allow", "deny"] = Field(
        default="allow", description="may a re-enrollment keep the key of its predecessor?"
    )
    idempotency_window: Duration = Field(
        default=dt.timedelta(minutes=10),
        description="how long a repeated enrollment gets the stored certificate",
    )
    max_active: int | None = Field(
        default=None,
        ge=1,
        description="certificates of one identity that are good at the same time; "
        "a rotation has two",
    )
    approval: bool = Field(default=False, description="an operator approves each enrollment")
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
        self._check_managed()
        self._check_templates()
        for url, allowed in (
            (self.crl_url, {ISSUER_PLACEHOLDER, PARTITION_PLACEHOLDER}),
            (self.ocsp_url, {ISSUER_PLACEHOLDER}),
            (self.issuer_url, {ISSUER_PLACEHOLDER}),
        ):
            if set(re.findall(r"\{[^}]*\}?", url or "")) - allowed:
                raise ValueError(f"{url!r} has other braces than {' and '.join(sorted(allowed))}")
        oids = [extension.oid for extension in self.fixed_extensions]
        if len(set(oids)) != len(oids):
            raise ValueError("two fixed_extensions have one oid")
        if self.max_active == 1 and self.renewal.overlap:
            raise ValueError("a rotation has two certificates: max_active 1 needs overlap 0s")
        return self

    def _check_managed(self) -> None:
        managed = self.renewal.managed
        if managed is None:
            return
        if self.approval:
            raise ValueError("with approval: true an operator decides; nothing renews by itself")
        if managed.same_key and self.same_key == "deny":
            raise ValueError("renewal.managed.same_key contradicts same_key: deny")

    def _check_templates(self) -> None:
        """Check what can be checked of templates before a request is there.

        Raises:
            ValueError: with a sentence for the operator.
        """
        attributes = frozenset[str](LONG_NAMES)
        if self.subject_template is not None:
            check_template(self.subject_template, attributes=attributes)
            for short, _ in subject_parts(self.subject_template):
                if short not in self.subject_attributes:
                    raise ValueError(f"subject_template needs {short} among subject_attributes")
        for template in self.san_templates:
            check_template(template, attributes=attributes)
            kind = template.partition(":")[0]
            if kind not in self.san_kinds:
                raise ValueError(f"{template!r} needs {kind!r} among san_kinds")
            # With something in the braces it must be an entry of its kind.
            general_name(PLACEHOLDER.sub("x", template))

    @cached_property
    def own_subject_attributes(self) -> frozenset[str] | None:
        """The subject attributes a request fills in; None where the whole subject is its own.

        What only a SAN template takes is the client's choice as well.
        """
        if self.subject_template is None:
            return None
        texts = (self.subject_template, *self.san_templates)
        names = [name for text in texts for name in placeholders(text)]
        return frozenset(n.removeprefix("csr.") for n in names if n.startswith("csr."))

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
        # A key or value of the file may have line breaks in it.
        line = " ".join(f"{place}: {first['msg'].lower()}".split())
        raise ConfigurationError(f"{path}: {line}") from exc
