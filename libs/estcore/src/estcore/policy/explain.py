"""Which rule decides, and why: for operators, never for clients.

Asks the very functions that decide, in the order of the services, so the answer cannot differ
from the decision: first what the front end checks, then what ca-signer checks for its group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography import x509

from estcore.errors import MalformedRequest, NotAuthenticated, RequestRejected
from estcore.pki.csr import CertificationRequest
from estcore.pki.names import canonical_name
from estcore.pki.profile import ProfileSet
from estcore.policy.decide import (
    Grant,
    check_names,
    check_profile,
    find_rule,
    grant,
    label_named,
)
from estcore.policy.document import PolicyDocument, Rule
from estcore.policy.granted_names import granted_request, granted_usages
from estcore.policy.groups import Groups, check_group_label, check_group_profile
from estcore.policy.templates import ClaimValue, claim_matches


@dataclass(frozen=True)
class Question:
    """Who would ask for what. ``name`` is as in ``find_rule``."""

    method: str
    name: str
    label: str | None
    operation: str = "simpleenroll"
    claims: Mapping[str, ClaimValue] = field(default_factory=dict)
    subject: x509.Name | None = None
    with_certificate: bool = False
    csr: CertificationRequest | None = None
    group: str = "default"


@dataclass(frozen=True)
class Explanation:
    """The decision and the steps that led to it, one line each."""

    allowed: bool
    steps: tuple[str, ...]


def explain(
    policy: PolicyDocument,
    question: Question,
    profiles: ProfileSet | None = None,
    groups: Groups | None = None,
) -> Explanation:
    """Return what would be decided by this policy, and by which rule.

    ``groups`` are those of ca-signer; without them a step says that they were not looked at.
    """
    steps = [f"policy {policy.version}"]
    try:
        enrollment_grant, label_name = _walk(policy, question, steps)
        if question.csr is not None:
            _walk_names(question.csr, enrollment_grant, profiles, steps)
        _walk_group(question.group, groups, label_name, enrollment_grant, steps)
        if question.csr is not None and profiles is not None:
            _walk_profile(question.csr, enrollment_grant, profiles, steps)
    except RequestRejected as exc:
        steps.append(f"refused: {exc.reason} [{exc.code}]")
        return Explanation(allowed=False, steps=tuple(steps))
    steps.append("allowed")
    return Explanation(allowed=True, steps=tuple(steps))


def _walk(policy: PolicyDocument, question: Question, steps: list[str]) -> tuple[Grant, str]:
    named_label = label_named(policy, question.label)
    if named_label is None:
        raise MalformedRequest(f"there is no label {question.label}", code="request.not_found")
    name, label = named_label
    issuers = ", ".join(label.issuers)
    steps.append(f"label {name}: issuer {issuers}, profiles {', '.join(label.profiles)}")
    if not label.accepts(question.method, with_certificate=question.with_certificate):
        raise NotAuthenticated(
            f"label {name} accepts {', '.join(label.authentication)}, not {question.method}",
            code="auth.required",
        )
    if question.operation not in label.operations:
        raise MalformedRequest(
            f"label {name} does not offer {question.operation}", code="request.not_implemented"
        )
    steps += _why_not(policy, question)
    rule = find_rule(
        policy,
        method=question.method,
        name=question.name,
        claims=question.claims,
        subject=question.subject,
    )
    enrollment_grant = grant(
        policy, rule, name, operation=question.operation, claims=question.claims
    )
    owner = f"{enrollment_grant.rule.owner.tenant}/{enrollment_grant.rule.owner.service}"
    steps.append(
        f"rule {enrollment_grant.rule.name}: owner {owner}, profile {enrollment_grant.profile}"
    )
    steps += _conditions(enrollment_grant.rule)
    if label.linking == "require":
        steps.append("the request must be bound to the TLS connection")
    return enrollment_grant, name


def _walk_names(
    csr: CertificationRequest,
    enrollment_grant: Grant,
    profiles: ProfileSet | None,
    steps: list[str],
) -> None:
    owner = (enrollment_grant.rule.owner.tenant, enrollment_grant.rule.owner.service)
    profile = None if profiles is None else profiles.get(enrollment_grant.profile)
    check_names(csr, enrollment_grant.rule.names, profile, owner)
    steps.append(f"names are allowed: {csr.subject_text}")


def _walk_group(
    group: str,
    groups: Groups | None,
    label_name: str,
    enrollment_grant: Grant,
    steps: list[str],
) -> None:
    if groups is None:
        steps.append("groups of ca-signer: not looked at, their settings are not given")
        return
    check_group_label(groups, group, label_name)
    check_group_profile(groups, group, enrollment_grant.profile)
    steps.append(
        f"group {group}: may use label {label_name} and profile {enrollment_grant.profile}, "
        f"{groups[group].max_per_minute} requests a minute at each signer"
    )


def _walk_profile(
    csr: CertificationRequest, enrollment_grant: Grant, profiles: ProfileSet, steps: list[str]
) -> None:
    owner = (enrollment_grant.rule.owner.tenant, enrollment_grant.rule.owner.service)
    profile = profiles.get(enrollment_grant.profile)
    granted = granted_request(csr, profile, *owner)
    check_profile(granted, profile)
    granted_usages(csr, profile)
    issuer = enrollment_grant.label.issuer_for(enrollment_grant.profile, csr.key_algorithm)
    steps.append(f"issuer {issuer} signs")
    if (granted.subject_text, granted.san) != (csr.subject_text, csr.san):
        steps.append(f"the certificate will say {granted.subject_text} {' '.join(granted.san)}")
    steps.append(f"profile {enrollment_grant.profile} takes the key and the names")
    if profile.approval:
        steps.append("an operator has to approve")
    if profile.max_active is not None:
        steps.append(f"at most {profile.max_active} good certificates of one identity")


def _conditions(rule: Rule) -> list[str]:
    conditions = []
    if rule.approval:
        conditions.append("an operator has to approve")
    if rule.max_per_day is not None:
        conditions.append(f"at most {rule.max_per_day} certificates in 24 hours")
    if rule.max_lifetime is not None:
        conditions.append(f"at most {rule.max_lifetime} valid")
    if rule.registrar:
        conditions.append("may act for others, with a certificate of profile ra")
    return conditions


def _why_not(policy: PolicyDocument, question: Question) -> list[str]:
    """Say of rules of the same kind why they do not match; the first that matches ends it."""
    steps = []
    for rule in policy.rules:
        match = rule.principal
        if question.method == "token" and match.token is not None:
            if match.token.issuer != question.name.partition("/")[0]:
                steps.append(f"rule {rule.name}: for tokens of {match.token.issuer}")
                continue
            missing = [
                path
                for path, pattern in match.token.claims.items()
                if not claim_matches(question.claims.get(path), pattern)
            ]
            if not missing:
                break
            steps.append(f"rule {rule.name}: claim {', '.join(missing)} differs")
        elif question.method == "certificate" and match.certificate_subject is not None:
            presented = canonical_name(question.subject) if question.subject is not None else ""
            expected = f"{match.certificate_issuer}/{match.certificate_subject}"
            steps.append(f"rule {rule.name}: for {expected}, asked by {question.name}{presented}")
    return steps
