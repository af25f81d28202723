"""May this principal have this certificate? Pure decisions with reasons.

est-frontend asks early to refuse cheaply; ca-signer asks again with authority. Both call the
same functions, so they can only differ by the version of their policy file.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cryptography import x509

from estcore.errors import IdentityMismatch, NotAuthorized, ProfileViolation
from estcore.pki.csr import CertificationRequest
from estcore.pki.csr_structure import SAN_OID
from estcore.pki.name_grammar import DNSRules, check_certified_names, check_dns_name
from estcore.pki.name_limits import under_uri_prefix, utf8_text, within_limits
from estcore.pki.names import (
    LONG_NAMES,
    SHORT_NAMES,
    canonical_name,
    fold,
    lower_ascii,
    san_entries,
)
from estcore.pki.profile import Priority, Profile
from estcore.policy.document import Names, PolicyDocument, Rule
from estcore.policy.granted_names import own_names
from estcore.policy.labels import Label
from estcore.policy.templates import ClaimValue, claim_matches, star_matches

NO_CLAIMS: Mapping[str, ClaimValue] = MappingProxyType({})


@dataclass(frozen=True)
class Grant:
    """What was decided: which rule, label, profile name and priority."""

    rule: Rule
    label_name: str
    label: Label
    profile: str
    priority: Priority


def label_named(policy: PolicyDocument, name: str | None) -> tuple[str, Label] | None:
    """Return the label and its name; None stands for the default label, unknown gives None."""
    chosen = policy.default_label if name is None else name
    label = policy.labels.get(chosen)
    return None if label is None else (chosen, label)


def find_rule(
    policy: PolicyDocument,
    *,
    method: str,
    name: str,
    claims: Mapping[str, ClaimValue] = NO_CLAIMS,
    subject: x509.Name | None = None,
) -> Rule | None:
    """Return the rule for a principal, claims put in; None when there is none.

    ``name`` is the secret's id, the user, or issuer and subject joined by ``/``; ``subject``
    is the subject of the certificate that identifies, whose attributes are claims as well
    (``subject.CN``).

    Raises:
        NotAuthorized: a claim that the rule puts into names is missing or not plain.
    """
    match method:
        case "secret":
            rule = policy.rule_for_secret(name)
        case "password" | "digest" | "srp":
            rule = policy.rule_for_user(name)
        case "token":
            rule = policy.rule_for_token(name.partition("/")[0], claims)
        case "certificate" if subject is not None:
            rule = policy.rule_for_certificate(name.partition("/")[0], canonical_name(subject))
            if rule is not None and rule.placeholders:
                claims = _subject_claims(subject)
        case _:
            rule = None
    return None if rule is None else rule.bound(claims)


def _subject_claims(subject: x509.Name) -> dict[str, ClaimValue]:
    claims: dict[str, ClaimValue] = {}
    for attribute in subject:
        key = "subject." + SHORT_NAMES.get(attribute.oid, attribute.oid.dotted_string)
        value = attribute.value
        if isinstance(value, str):
            # A name that stands twice is no single text and fills nothing.
            claims[key] = (str(claims[key]), value) if key in claims else value
    return claims


def grant(
    policy: PolicyDocument,
    rule: Rule | None,
    label_name: str,
    *,
    operation: str = "simpleenroll",
    claims: Mapping[str, ClaimValue] = NO_CLAIMS,
) -> Grant:
    """Return what the rule gives on the label for the operation.

    Raises:
        NotAuthorized: no rule for the principal, or it does not give this.
    """
    if rule is None:
        raise NotAuthorized("no policy rule for this principal", code="policy.no_rule")
    if label_name not in rule.labels:
        raise NotAuthorized(
            f"rule {rule.name} does not allow label {label_name}", code="policy.label"
        )
    if operation not in rule.operations:
        raise NotAuthorized(f"rule {rule.name} does not allow {operation}", code="policy.operation")
    label = policy.labels[label_name]
    offered = [p for p in rule.profiles if p in label.profiles]
    token = rule.principal.token
    if token is not None and token.sender_constrained and "cnf" not in claims:
        raise NotAuthorized(
            f"rule {rule.name} takes only tokens bound to a key", code="policy.sender_constraint"
        )
    if token is not None and token.profiles_by_role:
        offered = [p for p in offered if claim_matches(claims.get(token.role_claim), p)]
        if not offered:
            raise NotAuthorized(
                f"no role in {token.role_claim} names a profile of rule {rule.name}",
                code="policy.role",
            )
    return Grant(rule, label_name, label, offered[0], rule.priority or label.priority)


def inherited_rule(
    policy: PolicyDocument,
    request: CertificationRequest,
    *,
    tenant: str,
    service: str,
    profile: Profile,
    label_name: str,
) -> Rule:
    """Return the rule under which an owner may still renew a profile on a label.

    Re-enrollment inherits owner and profile from the predecessor; the policy of today must
    still give that owner that profile and these names, so taking a rule away ends renewals.

    Raises:
        NotAuthorized: no rule of the owner covers all of it.
    """
    refused = NotAuthorized(
        f"policy no longer gives {tenant}/{service} profile {profile.name} on label {label_name}",
        code="policy.renewal_withdrawn",
    )
    for rule in policy.rules_of_owner(tenant, service):
        if profile.name not in rule.profiles or label_name not in rule.labels:
            continue
        if "simplereenroll" not in rule.operations:
            continue
        try:
            check_names(request, rule.names, profile, (tenant, service))
        except NotAuthorized as exc:
            refused = exc
            continue
        return rule
    raise refused


def check_names(
    request: CertificationRequest,
    names: Names,
    profile: Profile | None = None,
    owner: tuple[str, str] = ("", ""),
) -> None:
    """Check every name the request chose against what the rule allows.

    What the templates of ``profile`` make for ``owner`` (tenant and service) is no choice of
    the request; without a profile all its names are.

    Raises:
        NotAuthorized: naming the first name that is not allowed.
    """
    own = own_names(request, profile, *owner)
    for short, value in own.subject:
        if not _subject_value_allowed(short, value, names):
            # An attribute without a short name has no place in a rule.
            hint = "" if short in LONG_NAMES else "; only a subject_template leaves it out"
            raise NotAuthorized(
                f"subject {short}={value!r} is not allowed{hint}", code="policy.subject"
            )
    for entry in own.san:
        kind, _, value = entry.partition(":")
        check = _SAN_CHECKS.get(kind)
        if check is None or not check(value, names):
            raise NotAuthorized(f"SAN {entry} is not allowed", code="policy.san")
    if own.nobody:
        raise NotAuthorized("the request has neither a subject nor a SAN", code="policy.subject")


def _subject_value_allowed(short: str, value: str, names: Names) -> bool:
    if "\0" in value:
        return False
    if short == "emailAddress":
        return _email_allowed(value, names)
    patterns = {
        "CN": names.common_names,
        "serialNumber": names.serial_numbers,
        "UID": names.user_ids,
        "unstructuredName": names.unstructured_names,
    }.get(short)
    if patterns is not None:
        return _any_pattern(value, patterns) or (short == "CN" and _dns_allowed(value, names))
    # As names are compared everywhere (RFC 5280 section 7.1).
    return fold(value) in map(fold, _fixed_values(short, names))


def _fixed_values(short: str, names: Names) -> tuple[str, ...]:
    by_attribute = {
        "O": names.organizations,
        "OU": names.organizational_units,
        "C": names.countries,
        "ST": names.states,
        "L": names.localities,
        "DC": names.domain_components,
    }
    return by_attribute.get(short, ())


def _any_pattern(value: str, patterns: Iterable[str]) -> bool:
    return any(_matches(lower_ascii(value), lower_ascii(pattern)) for pattern in patterns)


def _matches(value: str, pattern: str) -> bool:
    """One ``*`` stands for one or more characters other than a dot."""
    head, star, tail = pattern.partition("*")
    if not star:
        return value == pattern
    middle = value[len(head) : len(value) - len(tail)]
    return (
        len(value) > len(head) + len(tail)
        and value.startswith(head)
        and value.endswith(tail)
        and "." not in middle
    )


def _dns_allowed(value: str, names: Names) -> bool:
    host = lower_ascii(value)
    base = host.removeprefix("*.")
    if (base != host and not names.dns_wildcards) or ("_" in host and not names.dns_underscores):
        return False
    try:
        check_dns_name(base, DNSRules(underscores=names.dns_underscores))
    except ValueError:
        return False
    # A wildcard stands for every name one label below: the rule names it, or the whole domain.
    if base == host and _any_pattern(host, names.dns):
        return True
    if base != host and host in map(lower_ascii, names.dns):
        return True
    return any(
        host.endswith("." + lower_ascii(suffix).lstrip(".")) for suffix in names.dns_suffixes
    )


def _ip_allowed(value: str, names: Names) -> bool:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:  # a network is the name of no host
        return False
    return any(address in ipaddress.ip_network(allowed) for allowed in names.ips)


def _uri_allowed(value: str, names: Names) -> bool:
    return any(under_uri_prefix(value, prefix) for prefix in names.uri_prefixes)


def _email_allowed(value: str, names: Names) -> bool:
    local, at, host = value.rpartition("@")
    wanted = f"{local}{at}{lower_ascii(host)}"
    for allowed in names.emails:
        allowed_local, _, allowed_host = allowed.rpartition("@")
        if wanted == f"{allowed_local}@{lower_ascii(allowed_host)}":
            return True
    return False


def _other_name_allowed(value: str, names: Names) -> bool:
    oid, _, octets = value.partition(":")
    text = utf8_text(octets)
    for allowed in names.other_names:
        allowed_oid, limited, pattern = allowed.partition("=")
        if oid == allowed_oid and (not limited or (text and star_matches(text, pattern))):
            return True
    return False


_SAN_CHECKS: dict[str, Callable[[str, Names], bool]] = {
    "dns": _dns_allowed,
    "ip": _ip_allowed,
    "uri": _uri_allowed,
    "email": _email_allowed,
    "other": _other_name_allowed,
}


def check_profile(request: CertificationRequest, profile: Profile) -> None:
    """Check key kind, subject attributes and SAN against the profile.

    ``request`` has the names the certificate will have (``granted_request``).

    Raises:
        InvalidCSR: a name is none by its own grammar (``name_grammar``).
        ProfileViolation: naming what the profile does not allow.
    """
    if request.key_algorithm not in profile.key_algorithms:
        allowed = ", ".join(profile.key_algorithms)
        raise ProfileViolation(
            f"profile {profile.name} takes {allowed}, not {request.key_algorithm}",
            code="profile.key_algorithm",
        )
    for attribute in request.subject:
        short = SHORT_NAMES.get(attribute.oid, attribute.oid.dotted_string)
        if short not in profile.subject_attributes:
            raise ProfileViolation(
                f"profile {profile.name} has no subject attribute {short}",
                code="profile.subject_attribute",
            )
    check_certified_names(
        request.subject_der,
        request.san_extension or (),
        DNSRules(wildcards=profile.dns_wildcards, underscores=profile.dns_underscores),
    )
    for entry in request.san:
        kind, _, value = entry.partition(":")
        if kind not in profile.san_kinds:
            raise ProfileViolation(
                f"profile {profile.name} has no SAN of kind {kind}", code="profile.san_kind"
            )
        if not within_limits(kind, value, profile.limits):
            raise ProfileViolation(
                f"profile {profile.name} is not for SAN {entry}", code="profile.limits"
            )
    if profile.san_required and not request.san:
        raise ProfileViolation(f"profile {profile.name} needs a SAN", code="profile.san_missing")


def check_same_identity(request: CertificationRequest, current: x509.Certificate) -> None:
    """RFC 7030 section 4.2.2: subject and SAN must be those of the current certificate.

    Names compare by RFC 5280 section 7.1, the SAN as a set.

    Raises:
        IdentityMismatch: naming which differs.
        RequestRejected: the SAN of the request cannot be read.
    """
    request.require_readable(SAN_OID)
    if request.subject_canonical != canonical_name(current.subject):
        raise IdentityMismatch(
            "the subject is not the current certificate's", code="reenroll.subject_differs"
        )
    try:
        extension = current.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        san = san_entries(extension.value)
    except x509.ExtensionNotFound:
        san = ()
    if request.san != san:
        raise IdentityMismatch(
            "the SAN is not the current certificate's", code="reenroll.san_differs"
        )
