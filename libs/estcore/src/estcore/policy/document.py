"""The policy file: labels, and which principal may ask for what. Versioned by its hash.

est-frontend and ca-signer read the same file; the signer decides with its own copy. Anything
unknown stops the start: a policy that is half understood is not a policy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from estcore.errors import ConfigurationError, NotAuthorized
from estcore.est.paths import is_label
from estcore.ids import is_token
from estcore.pki.durations import Duration
from estcore.pki.name_templates import PLACEHOLDER, placeholders
from estcore.pki.names import canonical_name, parse_name
from estcore.pki.profile import Priority, StrictModel, Token, parse_model, read_yaml
from estcore.policy.labels import Label, Operation, Truststore
from estcore.policy.operators import CampaignPolicy, Operator
from estcore.policy.templates import (
    ClaimValue,
    claim_matches,
    fill,
    star_matches,
    unify,
)

SecretId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
DNSPattern = Annotated[str, Field(pattern=r"^[A-Za-z0-9*._{}-]{1,253}$")]
OtherNamePattern = Annotated[str, Field(pattern=r"^[0-2](\.[0-9]{1,19}){1,30}(=[^*]*\*?[^*]*)?$")]
OwnerToken = Annotated[str, Field(pattern=r"^(?:[a-z0-9-]|\{[A-Za-z0-9_.]+\}){1,63}$")]
ClaimPath = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$")]


class Names(StrictModel):
    """Which names a rule allows. Empty means none of that kind; a pattern has at most one ``*``."""

    common_names: tuple[DNSPattern, ...] = ()
    dns: tuple[DNSPattern, ...] = ()
    dns_suffixes: tuple[DNSPattern, ...] = ()
    dns_wildcards: bool = Field(
        default=False,
        description="*.domain as a DNS name, for what stands so in dns or lies under dns_suffixes",
    )
    dns_underscores: bool = Field(default=False, description="underscores in labels")
    ips: tuple[str, ...] = Field(default=(), description="addresses or networks in CIDR form")
    uri_prefixes: tuple[str, ...] = ()
    emails: tuple[str, ...] = Field(
        default=(), description="e-mail addresses, in the SAN and as emailAddress of the subject"
    )
    other_names: tuple[OtherNamePattern, ...] = Field(
        default=(),
        description="otherName entries as OID=text with at most one *; an OID alone allows any",
    )
    organizations: tuple[str, ...] = Field(default=(), description="allowed values of O")
    organizational_units: tuple[str, ...] = ()
    countries: tuple[str, ...] = ()
    states: tuple[str, ...] = Field(default=(), description="allowed values of ST")
    localities: tuple[str, ...] = Field(default=(), description="allowed values of L")
    serial_numbers: tuple[DNSPattern, ...] = Field(
        default=(), description="allowed serialNumber patterns"
    )
    user_ids: tuple[DNSPattern, ...] = Field(default=(), description="allowed UID patterns")
    domain_components: tuple[str, ...] = Field(default=(), description="allowed values of DC")
    unstructured_names: tuple[DNSPattern, ...] = Field(
        default=(), description="allowed unstructuredName patterns (RFC 2985 section 5.4.2)"
    )

    def lists(self) -> dict[str, tuple[str, ...]]:
        """Return the names and patterns of each kind."""
        return {kind: texts for kind, texts in self if isinstance(texts, tuple)}

    def with_lists(self, lists: Mapping[str, tuple[str, ...]]) -> Names:
        """Return the same rules with other names and patterns, checked as at the start."""
        return Names.model_validate({**self.model_dump(), **lists})


class Owner(StrictModel):
    """Who a certificate belongs to. Both become topic tokens; ``{claim}`` stands for a claim."""

    tenant: OwnerToken
    service: OwnerToken
    team: OwnerToken | None = Field(default=None, description="who to call; from claims as well")
    cluster: OwnerToken | None = Field(default=None, description="where it runs")


class TokenMatch(StrictModel):
    """Which access tokens a rule is for."""

    issuer: Token = Field(description="id of a token issuer in the front end's settings")
    claims: dict[ClaimPath, str] = Field(
        min_length=1,
        description="claim path to value; at most one * in it; lists match by an element",
    )
    role_claim: ClaimPath = Field(
        default="resource_access.est.roles", description="where the profiles' roles stand"
    )
    profiles_by_role: bool = Field(
        default=True, description="a profile needs the role of its name in role_claim"
    )
    sender_constrained: bool = Field(
        default=False, description="only tokens bound to a key (RFC 8705, RFC 9449)"
    )

    def matches(self, claims: Mapping[str, ClaimValue]) -> bool:
        """Return whether the claims fulfil every condition."""
        return all(claim_matches(claims.get(p), pattern) for p, pattern in self.claims.items())


class PrincipalMatch(StrictModel):
    """Which principal a rule is for: exactly one way."""

    secret: SecretId | None = None
    user: SecretId | None = Field(default=None, description="HTTP Basic or Digest user, or SRP")
    token: TokenMatch | None = None
    certificate_issuer: Token | None = Field(
        default=None, description="issuer id or truststore whose certificates match"
    )
    certificate_subject: str | None = Field(
        default=None,
        description="with certificate_issuer: this subject, as CN=…,O=…; "
        "a value may have one * for a truststore",
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = (self.secret, self.user, self.token, self.certificate_issuer)
        if sum(way is not None for way in ways) != 1:
            raise ValueError("give exactly one of secret, user, token, certificate_issuer")
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
    operations: tuple[Operation, ...] = Field(
        default=("simpleenroll", "simplereenroll", "serverkeygen"),
        min_length=1,
        description="of those the label offers",
    )
    names: Names
    priority: Priority | None = Field(default=None, description="default: the label's")
    max_lifetime: Duration | None = Field(default=None, description="caps the profile's lifetime")
    max_per_day: int | None = Field(
        default=None, ge=1, description="certificates the owner may get in 24 hours"
    )
    approval: bool = Field(default=False, description="an operator approves each enrollment")
    registrar: bool = Field(
        default=False,
        description="a registration authority: certificate of profile ra, asks for others",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.registrar and self.principal.certificate_issuer is None:
            raise ValueError("a registrar is identified by its certificate")
        return self

    @cached_property
    def placeholders(self) -> frozenset[str]:
        """Claims that stand in braces in owner and names."""
        texts = [text for text in self.owner.model_dump().values() if text is not None]
        for patterns in self.names.lists().values():
            texts.extend(patterns)
        return frozenset(name for text in texts for name in placeholders(text))

    def bound(self, claims: Mapping[str, ClaimValue]) -> Rule:
        """Return the rule with claims put in for the names in braces.

        Raises:
            NotAuthorized: a claim is missing, not a single text, or not a plain name.
        """
        if not self.placeholders:
            return self
        owner_fields = {
            name: fill(text, claims)
            for name, text in self.owner.model_dump().items()
            if text is not None
        }
        if not all(map(is_token, owner_fields.values())):
            raise NotAuthorized(
                f"{'/'.join(owner_fields.values())} cannot be an owner", code="policy.claim"
            )
        owner = Owner(**owner_fields)
        names = {
            kind: tuple(fill(text, claims) for text in texts)
            for kind, texts in self.names.lists().items()
        }
        return self._filled(owner, names)

    def _filled(self, owner: Owner, names: Mapping[str, tuple[str, ...]]) -> Rule:
        rule = self.model_copy(update={"owner": owner, "names": self.names.with_lists(names)})
        rule.__dict__.pop("placeholders", None)  # cached for the rule that it is a copy of
        return rule

    def bound_to_owner(self, tenant: str, service: str) -> Rule | None:
        """Return the rule as it is for an owner; None when it can never be that owner.

        For renewals, which keep the names of their certificate: a claim that the owner does not
        determine matches any plain value in a pattern; where there are no patterns such a name
        is left out.
        """
        claims: dict[str, str] = {}
        for template, value in ((self.owner.tenant, tenant), (self.owner.service, service)):
            unified = unify(template, value)
            if unified is None or any(claims.get(k, v) != v for k, v in unified.items()):
                return None
            claims |= unified
        if not self.placeholders:
            return self
        names = {
            kind: tuple(_filled_or_open(kind, texts, claims))
            for kind, texts in self.names.lists().items()
        }
        owner = Owner(tenant=tenant, service=service)
        return self._filled(owner, names)


_PATTERNS = frozenset({"common_names", "dns", "serial_numbers", "user_ids", "unstructured_names"})


def _filled_or_open(
    kind: str, texts: tuple[str, ...], claims: Mapping[str, ClaimValue]
) -> Iterator[str]:
    for text in texts:
        if set(placeholders(text)) <= claims.keys():
            yield fill(text, claims)
        elif kind in _PATTERNS:
            opened = PLACEHOLDER.sub(lambda m: str(claims.get(m[1], "*")), text)
            if opened.count("*") == 1:
                yield opened


class PolicyDocument(StrictModel):
    """The whole policy."""

    default_label: str
    truststores: dict[Token, Truststore] = Field(default_factory=dict)
    labels: dict[str, Label] = Field(min_length=1)
    rules: tuple[Rule, ...] = ()
    operators: tuple[Operator, ...] = ()
    campaigns: CampaignPolicy = CampaignPolicy()
    _version: str = PrivateAttr(default="unversioned")
    _by_secret: dict[str, Rule] = PrivateAttr(default_factory=dict)
    _by_user: dict[str, Rule] = PrivateAttr(default_factory=dict)
    _by_certificate: dict[tuple[str, str], Rule] = PrivateAttr(default_factory=dict)
    _by_pattern: list[Rule] = PrivateAttr(default_factory=list)
    _by_token: list[Rule] = PrivateAttr(default_factory=list)
    _by_owner: dict[tuple[str, str], list[Rule]] = PrivateAttr(default_factory=dict)
    _with_open_owner: list[Rule] = PrivateAttr(default_factory=list)
    _places: dict[str, int] = PrivateAttr(default_factory=dict)
    _operators: dict[tuple[str, str], Operator] = PrivateAttr(default_factory=dict)

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
        for name, label in self.labels.items():
            self._check_label(name, label)
        seen: set[str] = set()
        for rule in self.rules:
            if rule.name in seen:
                raise ValueError(f"rule {rule.name!r} stands twice")
            self._places[rule.name] = len(seen)
            seen.add(rule.name)
            self._index(rule)
            self._index_owner(rule)
        self._operators = {operator.key: operator for operator in self.operators}
        names = {operator.name for operator in self.operators}
        if len(self._operators) != len(self.operators) or len(names) != len(self.operators):
            raise ValueError("two operators have one name or one certificate")
        return self

    def _check_label(self, name: str, label: Label) -> None:
        for store in label.truststores:
            if store not in self.truststores:
                raise ValueError(f"label {name!r} names the unknown truststore {store!r}")
        for issuer in label.issuers:
            if issuer in self.truststores:
                raise ValueError(f"{issuer!r} is an issuer and a truststore")
        for choice in label.other_issuers:
            if not set(choice.profiles) <= set(label.profiles):
                raise ValueError(f"label {name!r} does not have all profiles of its issuers")

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
        elif match.user is not None:
            if match.user in self._by_user:
                raise ValueError(f"two rules are for the user {match.user!r}")
            self._by_user[match.user] = rule
        elif match.token is not None:
            self._by_token.append(rule)
        else:
            self._index_certificate(rule)

    def _index_owner(self, rule: Rule) -> None:
        owner = rule.owner
        if placeholders(owner.tenant) or placeholders(owner.service):
            self._with_open_owner.append(rule)
        else:
            self._by_owner.setdefault((owner.tenant, owner.service), []).append(rule)

    def _index_certificate(self, rule: Rule) -> None:
        issuer, subject = rule.principal.certificate_issuer, rule.principal.certificate_subject
        if "*" in (subject or ""):
            if issuer not in self.truststores:
                raise ValueError(f"rule {rule.name!r}: only a truststore's subjects may have a *")
            self._by_pattern.append(rule)
            return
        key = (issuer or "", _canonical(subject))
        if key in self._by_certificate:
            raise ValueError(f"two rules are for the certificate {subject!r}")
        self._by_certificate[key] = rule

    @property
    def version(self) -> str:
        """First 16 hexadecimal digits of SHA-256 over the file."""
        return self._version

    def rule_for_secret(self, secret_id: str) -> Rule | None:
        """Return the one rule for a secret."""
        return self._by_secret.get(secret_id)

    def rule_for_user(self, user: str) -> Rule | None:
        """Return the one rule for a user with a password."""
        return self._by_user.get(user)

    def rule_for_certificate(self, issuer_id: str, subject_canonical: str) -> Rule | None:
        """Return the rule for the subject of a certificate from that issuer or truststore.

        A rule that names the subject comes before one with a ``*``; of those the first counts.
        """
        exact = self._by_certificate.get((issuer_id, subject_canonical))
        if exact is not None:
            return exact
        for rule in self._by_pattern:
            match = rule.principal
            if match.certificate_issuer == issuer_id and star_matches(
                subject_canonical, _canonical(match.certificate_subject), not_in_star=",+="
            ):
                return rule
        return None

    def rule_for_token(self, issuer_id: str, claims: Mapping[str, ClaimValue]) -> Rule | None:
        """Return the first rule whose conditions the claims of a token fulfil."""
        for rule in self._by_token:
            match = rule.principal.token
            if match is not None and match.issuer == issuer_id and match.matches(claims):
                return rule
        return None

    def operator(self, issuer_id: str, subject_canonical: str) -> Operator | None:
        """Return the operator with that certificate; None when there is none."""
        return self._operators.get((issuer_id, subject_canonical))

    def claims_wanted(self, issuer_id: str) -> frozenset[str]:
        """Return the claim paths that any rule for tokens of the issuer looks at."""
        paths: set[str] = set()
        for rule in self._by_token:
            match = rule.principal.token
            if match is not None and match.issuer == issuer_id:
                paths |= {*match.claims, match.role_claim, *rule.placeholders}
        return frozenset(paths)

    def rules_of_owner(self, tenant: str, service: str) -> list[Rule]:
        """Return the rules whose owner this is or can be, in file order, bound to it."""
        named = self._by_owner.get((tenant, service), [])
        rules = sorted([*named, *self._with_open_owner], key=lambda r: self._places[r.name])
        bound = (rule.bound_to_owner(tenant, service) for rule in rules)
        return [rule for rule in bound if rule is not None]


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
