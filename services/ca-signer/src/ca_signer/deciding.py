"""Steps 1 to 4 of the issuance cycle: find, decide, build, lint. No database, no bus.

The front end is believed only about who was authenticated on which label. Everything else is
computed again here from the CSR, our own policy and the ledger's facts.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256

from cryptography import x509

from ca_signer.context import Context, Intent, KnownCertificate
from ca_signer.keystore import Issuer
from ca_signer.settings import GroupSettings
from estcore import ids
from estcore.clock import Clock
from estcore.errors import (
    IssuerUnavailable,
    LintFailed,
    NotAuthenticated,
    NotAuthorized,
    ProfileViolation,
)
from estcore.messages.audit import Origin
from estcore.messages.enrollment import EnrollmentRequested
from estcore.pki.certificate import CertificateTemplate
from estcore.pki.csr import CertificationRequest, parse_csr
from estcore.pki.lint import lint
from estcore.pki.profile import Profile, ProfileSet
from estcore.policy.decide import (
    Grant,
    check_names,
    check_profile,
    check_same_identity,
    find_rule,
    grant,
    inherited_rule,
)
from estcore.policy.document import PolicyDocument, Rule
from estcore.policy.identity import enrollment_id
from estcore.policy.labels import Label

_TOPIC_TOKENS = 5


@dataclass(frozen=True)
class Authority:
    """What the signer decides with: its own policy, profiles, issuers and group caps."""

    policy: PolicyDocument
    profiles: ProfileSet
    issuers: Mapping[str, Issuer]
    groups: Mapping[str, GroupSettings]
    clock: Clock
    sign_within: dt.timedelta
    templates: dict[tuple[str, str, dt.timedelta], CertificateTemplate] = field(
        default_factory=dict
    )

    def template(
        self, issuer: Issuer, profile: Profile, cap: dt.timedelta | None = None
    ) -> CertificateTemplate:
        """Return what issuer and profile fix of a certificate; encoded at first use.

        ``cap`` is the longest lifetime a rule allows.
        """
        lifetime = profile.lifetime if cap is None else min(cap, profile.lifetime)
        key = (issuer.issuer_id, profile.name, lifetime)
        found = self.templates.get(key)
        if found is None:
            capped = profile if cap is None else _capped(profile, lifetime)
            found = self.templates[key] = CertificateTemplate(capped, issuer.certificate)
        return found


def _capped(profile: Profile, lifetime: dt.timedelta) -> Profile:
    reaction = min(profile.renewal.reaction_time, lifetime / 3)
    renewal = profile.renewal.model_copy(update={"reaction_time": reaction})
    return profile.model_copy(update={"lifetime": lifetime, "renewal": renewal})


@dataclass
class Candidate:
    """A request that passed the decision, with everything the cycle needs."""

    message: EnrollmentRequested
    intent: Intent
    issuer: Issuer
    window: dt.timedelta
    max_per_day: int | None = None

    @property
    def careful(self) -> bool:
        """It spends something or counts: looked at alone, in a transaction of its own."""
        return bool(self.message.claims) or self.max_per_day is not None


def check_route(topic: str, message: EnrollmentRequested, authority: Authority) -> Label:
    """Check that topic, group, label, issuer and priority fit together.

    Raises:
        NotAuthorized: the front end asks outside its group, or routed it wrongly.
    """
    tokens = topic.split(".")
    claimed = [message.group, message.issuer, str(message.priority)]
    if len(tokens) != _TOPIC_TOKENS or tokens[2:] != claimed:
        raise NotAuthorized("topic and request do not agree", code="frontend.route")
    group = authority.groups.get(message.group)
    if group is None or message.label not in group.labels:
        raise NotAuthorized(
            f"group {message.group} may not use label {message.label}", code="frontend.label"
        )
    label = authority.policy.labels.get(message.label)
    if label is None or label.issuer != message.issuer:
        raise NotAuthorized("the label has another issuer", code="frontend.issuer")
    principal = message.principal
    if not label.accepts(principal.method, with_certificate=principal.certificate is not None):
        raise NotAuthorized(
            f"label {message.label} does not accept {principal.method}",
            code="frontend.authentication",
        )
    if message.operation not in label.operations:
        raise NotAuthorized(
            f"label {message.label} does not offer {message.operation}",
            code="frontend.operation",
        )
    if label.linking == "require" and message.linked is None:
        raise NotAuthorized(
            f"label {message.label} needs the request bound to TLS", code="linking.required"
        )
    return label


def presented_fingerprint(message: EnrollmentRequested) -> bytes | None:
    """Return the SHA-256 of the certificate the client presented, if it did."""
    certificate = message.principal.certificate
    return None if certificate is None else _fingerprint(certificate)


@lru_cache(maxsize=4096)
def _fingerprint(certificate: bytes) -> bytes:
    return sha256(certificate).digest()


def decide(
    message: EnrollmentRequested, topic: str, authority: Authority, known: KnownCertificate | None
) -> Candidate:
    """Steps 1 to 4: return the candidate with its TBS built and linted.

    ``known`` are the ledger's facts of the presented certificate.

    Raises:
        RequestRejected: the client's fault, with code and reason.
        IssuerUnavailable: the issuer's certificate is over or not yet valid.
        LintFailed: our own builder made something that is not what was decided.
    """
    label = check_route(topic, message, authority)
    request = parse_csr(message.csr)
    if message.operation == "simplereenroll":
        rule, profile_name, owner = _reenrollment(message, request, authority, label, known)
        priority = label.priority
    else:
        given = _enrollment(message, request, authority, known)
        rule, profile_name, priority = given.rule, given.profile, given.priority
        owner = (rule.owner.tenant, rule.owner.service)
    if priority != message.priority:
        raise NotAuthorized("the request was routed at another priority", code="frontend.priority")
    if profile_name not in authority.groups[message.group].profiles:
        raise NotAuthorized(
            f"group {message.group} may not ask for profile {profile_name}", code="frontend.profile"
        )
    profile = authority.profiles.get(profile_name)
    check_profile(request, profile)
    _check_key(request, profile, message, known)
    issuer = _live_issuer(authority, label)
    return _candidate(message, request, authority, issuer, profile, rule, owner, known)


def _enrollment(
    message: EnrollmentRequested,
    request: CertificationRequest,
    authority: Authority,
    known: KnownCertificate | None,
) -> Grant:
    principal, policy = message.principal, authority.policy
    name, subject = principal.name, None
    if principal.certificate is not None:
        issuer_id = principal.certificate_issuer
        if issuer_id not in policy.labels[message.label].truststores:
            # A certificate of ours counts as the ledger knows it.
            issuer_id = _live_certificate(known, authority).issuer_id
        if principal.method == "certificate":
            subject = _parsed(principal.certificate).subject
            name = f"{issuer_id}/"
    rule = find_rule(
        policy, method=principal.method, name=name, claims=principal.claims, subject=subject
    )
    given = grant(policy, rule, message.label, operation=message.operation, claims=principal.claims)
    check_names(request, given.rule.names)
    return given


def _reenrollment(
    message: EnrollmentRequested,
    request: CertificationRequest,
    authority: Authority,
    label: Label,
    known: KnownCertificate | None,
) -> tuple[Rule, str, tuple[str, str]]:
    # Owner, issuer and profile come from the predecessor's row, never from the label: a label
    # that disagrees is refused, so no label upgrades a profile.
    facts = _live_certificate(known, authority)
    if facts.issuer_id != label.issuer or facts.profile not in label.profiles:
        raise NotAuthorized(
            f"label {message.label} does not renew profile {facts.profile}", code="reenroll.label"
        )
    check_same_identity(request, _parsed(facts.certificate))
    rule = inherited_rule(
        authority.policy,
        request,
        tenant=facts.tenant,
        service=facts.service,
        profile=facts.profile,
        label_name=message.label,
    )
    return rule, facts.profile, (facts.tenant, facts.service)


def _live_certificate(known: KnownCertificate | None, authority: Authority) -> KnownCertificate:
    if known is None:
        raise NotAuthorized(
            "the presented certificate is not in the ledger", code="auth.certificate_unknown"
        )
    if known.not_after < authority.clock.now():
        raise NotAuthenticated(
            "the presented certificate has expired", code="auth.certificate_expired"
        )
    return known


@lru_cache(maxsize=4096)
def _parsed(certificate: bytes) -> x509.Certificate:
    return x509.load_der_x509_certificate(certificate)


def _check_key(
    request: CertificationRequest,
    profile: Profile,
    message: EnrollmentRequested,
    known: KnownCertificate | None,
) -> None:
    same = known is not None and known.spki_sha256 == request.spki_sha256
    if message.operation == "simplereenroll" and same and profile.same_key == "deny":
        raise ProfileViolation(
            f"profile {profile.name} needs a new key at re-enrollment", code="profile.same_key"
        )


def _live_issuer(authority: Authority, label: Label) -> Issuer:
    issuer = authority.issuers.get(label.issuer)
    if issuer is None:
        raise IssuerUnavailable(f"issuer {label.issuer} is not here", code="issuer.unknown")
    if issuer.certificate.not_after <= authority.clock.now():
        raise IssuerUnavailable(f"issuer {label.issuer} has expired", code="issuer.expired")
    return issuer


def _candidate(  # noqa: PLR0913, PLR0917 - the decision's parts, joined once
    message: EnrollmentRequested,
    request: CertificationRequest,
    authority: Authority,
    issuer: Issuer,
    profile: Profile,
    rule: Rule,
    owner: tuple[str, str],
    known: KnownCertificate | None,
) -> Candidate:
    now = authority.clock.now()
    # 3. Build the TBS.
    template = authority.template(issuer, profile, rule.max_lifetime)
    copy = template.build(request, serial_number=ids.new_serial_number(), now=now)
    # 4. Lint it, so that nothing unlinted is ever real.
    try:
        lint(copy, request=request, template=template, now=now)
    except LintFailed as exc:
        if exc.code == "lint.not_issuers_key":
            raise ProfileViolation("this key is the issuer's own", code="key.issuers") from exc
        raise
    reenroll = message.operation == "simplereenroll"
    tenant, service = owner
    predecessor = known if reenroll else None
    intent = Intent(
        issuance_id=ids.uuid7(),
        enrollment_id=enrollment_id(
            request,
            operation=message.operation,
            tenant=tenant,
            label=message.label,
            principal=message.principal.key,
            predecessor=predecessor.fingerprint if predecessor else b"",
        ),
        request_id=message.id,
        issuer_id=issuer.issuer_id,
        serial_number=copy.certificate.serial_number,
        tbs=copy.tbs,
        tenant=tenant,
        service=service,
        profile=profile.name,
        slot_id=ids.slot_id(
            tenant, service, issuer.issuer_id, profile.name, request.subject_canonical, request.san
        ),
        subject=request.subject_text,
        san=request.san,
        spki_sha256=request.spki_sha256,
        not_before=copy.certificate.not_valid_before_utc,
        not_after=copy.certificate.not_valid_after_utc,
        predecessor_sha256=predecessor.fingerprint if predecessor else None,
        presented_sha256=presented_fingerprint(message),
        secret_id=message.principal.name if message.principal.method == "secret" else None,
        sign_before=_sign_before(message, now, authority),
        context=_context(message, request, authority, template.profile, rule, known),
    )
    return Candidate(message, intent, issuer, template.profile.window, rule.max_per_day)


def _sign_before(
    message: EnrollmentRequested, now: dt.datetime, authority: Authority
) -> dt.datetime:
    limit = now + authority.sign_within
    return limit if message.expires_at is None else min(limit, message.expires_at)


def _context(
    message: EnrollmentRequested,
    request: CertificationRequest,
    authority: Authority,
    profile: Profile,
    rule: Rule,
    known: KnownCertificate | None,
) -> Context:
    reenroll = message.operation == "simplereenroll"
    return Context(
        correlation_id=message.correlation_id,
        traceparent=message.traceparent,
        operation=message.operation,
        group=message.group,
        instance=message.instance,
        label=message.label,
        principal=message.principal.key,
        auth_method=message.principal.method,
        presented_serial=ids.serial_hex(known.serial_number) if known else None,
        presented_sha256=known.fingerprint.hex() if known else None,
        rule=rule.name,
        policy_version=authority.policy.version,
        profile_version=f"{profile.name}@{profile.version}#{authority.profiles.version}",
        priority=rule.priority or profile.priority,
        key_algorithm=request.key_algorithm,
        csr_sha256=request.sha256.hex(),
        origin=Origin(
            peer=message.origin.peer,
            tls_version=message.origin.tls_version,
            tls_cipher=message.origin.tls_cipher,
            user_agent=message.origin.user_agent,
        ),
        predecessor_serial=ids.serial_hex(known.serial_number) if known and reenroll else None,
        predecessor_id=known.issuance_id if known and reenroll else None,
        same_key=bool(reenroll and known and known.spki_sha256 == request.spki_sha256),
        mode=profile.renewal.mode,
        reaction_time_s=int(profile.renewal.reaction_time.total_seconds()),
        overlap_s=int(profile.renewal.overlap.total_seconds()),
        spread=profile.renewal.spread,
    )


def still_allowed(intent: Intent, authority: Authority) -> None:
    """Decide again before an old intent is signed (§4, stale intents).

    Raises:
        RequestRejected: issuer, profile or rule of then is no longer there.
    """
    issuer = authority.issuers.get(intent.issuer_id)
    if issuer is None or issuer.certificate.not_after < intent.not_after:
        raise NotAuthorized("the issuer is no longer active", code="issuer.unknown")
    if intent.profile not in authority.profiles.profiles:
        raise NotAuthorized("the profile is gone", code="profile.unknown")
    rules = authority.policy.rules_of_owner(intent.tenant, intent.service)
    if not any(intent.profile in r.profiles and intent.context.label in r.labels for r in rules):
        raise NotAuthorized("the policy no longer allows it", code="policy.no_rule")
