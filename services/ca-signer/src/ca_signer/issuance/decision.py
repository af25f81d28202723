"""Steps 1 to 4 of the issuance cycle: find, decide, build, lint. No database, no bus.

The front end is trusted only for who was authenticated on which label. Everything else is computed
again here from the CSR, the signer's own policy and the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence

from ca_signer.issuance.decision_context import Candidate, DecisionContext, live_certificate, parsed
from ca_signer.issuance.registration_authority import check_registrar, only_head
from ca_signer.issuance.tbs import candidate
from ca_signer.model import IssuanceIntent, KnownCertificate
from estcore.errors import (
    NotAuthorized,
    ProfileViolation,
)
from estcore.messages.enrollment import EnrollmentRequested
from estcore.pki.csr import CertificationRequest, parse_csr
from estcore.pki.profile import Profile
from estcore.policy.decide import (
    Grant,
    check_names,
    check_profile,
    check_same_identity,
    find_rule,
    grant,
    inherited_rule,
)
from estcore.policy.document import Rule
from estcore.policy.granted_names import granted_request
from estcore.policy.groups import check_group_label, check_group_profile
from estcore.policy.labels import Label

_TOPIC_TOKENS = 5


def check_route(
    topic: str, message: EnrollmentRequested, decision_context: DecisionContext
) -> Label:
    """Check that topic, group, label, issuer and priority fit together.

    Raises:
        NotAuthorized: the front end asks outside its group, or routed it wrongly.
    """
    tokens = topic.split(".")
    claimed = [message.group, message.issuer, str(message.priority)]
    if len(tokens) != _TOPIC_TOKENS or tokens[2:] != claimed:
        raise NotAuthorized("topic and request do not agree", code="frontend.route")
    check_group_label(decision_context.groups, message.group, message.label)
    label = decision_context.policy.labels.get(message.label)
    if label is None or message.issuer not in label.issuers:
        raise NotAuthorized("the label has another issuer", code="frontend.issuer")
    principal = message.principal
    accepted = label.accepts(principal.method, with_certificate=principal.certificate is not None)
    if message.operation == "simplereenroll" and principal.method == "certificate":
        # Renewal is by the certificate; what a label wants besides, the front end has checked.
        accepted = label.offers("certificate")
    if not accepted:
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


def decide(
    message: EnrollmentRequested,
    topic: str,
    decision_context: DecisionContext,
    presented: KnownCertificate | None,
    latest_certificates: Sequence[KnownCertificate] | None = None,
) -> Candidate:
    """Steps 1 to 4: return the candidate with its TBS built and linted.

    ``presented`` is what the ledger has on the presented certificate. ``latest_certificates`` are
    the newest live certificates of the subject where a registration authority renews for it
    (``renewed_slots``).

    Raises:
        RequestRejected: the client's fault, with code and reason.
        IssuerUnavailable: the issuer's certificate is over or not yet valid.
        LintFailed: our own builder made something that is not what was decided.
    """
    label = check_route(topic, message, decision_context)
    request = parse_csr(message.csr)
    predecessor = None
    if message.operation == "simplereenroll":
        predecessor = presented if latest_certificates is None else only_head(latest_certificates)
        rule, profile_name, owner = _reenrollment(
            message, request, decision_context, label, predecessor
        )
        priority = label.priority
    else:
        enrollment_grant = _enrollment(message, request, decision_context, presented)
        rule, profile_name, priority = (
            enrollment_grant.rule,
            enrollment_grant.profile,
            enrollment_grant.priority,
        )
        owner = (rule.owner.tenant, rule.owner.service)
    if priority != message.priority:
        raise NotAuthorized("the request was routed at another priority", code="frontend.priority")
    check_group_profile(decision_context.groups, message.group, profile_name)
    if predecessor is None and message.issuer != label.issuer_for(
        profile_name, request.key_algorithm
    ):
        raise NotAuthorized("the label has another issuer for this", code="frontend.issuer")
    profile = decision_context.profiles.get(profile_name)
    granted = request if predecessor else granted_request(request, profile, *owner)
    check_profile(granted, profile)
    _check_key(request, profile, message, predecessor)
    issuer = decision_context.signing(message.issuer)
    return candidate(
        message,
        request,
        decision_context,
        issuer,
        profile,
        rule,
        owner,
        presented,
        predecessor,
        granted,
    )


def _enrollment(
    message: EnrollmentRequested,
    request: CertificationRequest,
    decision_context: DecisionContext,
    presented: KnownCertificate | None,
) -> Grant:
    principal, policy = message.principal, decision_context.policy
    name, subject = principal.name, None
    if principal.certificate is not None:
        issuer_id = principal.certificate_issuer
        if issuer_id not in policy.labels[message.label].truststores:
            # A certificate of ours counts as the ledger knows it.
            issuer_id = decision_context.family(
                live_certificate(presented, decision_context).issuer_id
            )
        if principal.method == "certificate":
            subject = parsed(principal.certificate).subject
            name = f"{issuer_id}/"
    rule = find_rule(
        policy, method=principal.method, name=name, claims=principal.claims, subject=subject
    )
    enrollment_grant = grant(
        policy, rule, message.label, operation=message.operation, claims=principal.claims
    )
    if enrollment_grant.rule.registrar:
        check_registrar(presented)
    owner = enrollment_grant.rule.owner
    profile = decision_context.profiles.get(enrollment_grant.profile)
    check_names(request, enrollment_grant.rule.names, profile, (owner.tenant, owner.service))
    return enrollment_grant


def _reenrollment(
    message: EnrollmentRequested,
    request: CertificationRequest,
    decision_context: DecisionContext,
    label: Label,
    predecessor: KnownCertificate | None,
) -> tuple[Rule, str, tuple[str, str]]:
    # Owner, issuer and profile come from the predecessor's row, never from the label: a label
    # that disagrees is refused, so no label upgrades a profile.
    facts = live_certificate(predecessor, decision_context)
    family = decision_context.family(facts.issuer_id)
    if family != message.issuer or facts.profile not in label.profiles:
        raise NotAuthorized(
            f"label {message.label} does not renew profile {facts.profile}", code="reenroll.label"
        )
    check_same_identity(request, parsed(facts.certificate))
    rule = inherited_rule(
        decision_context.policy,
        request,
        tenant=facts.tenant,
        service=facts.service,
        profile=decision_context.profiles.get(facts.profile),
        label_name=message.label,
    )
    return rule, facts.profile, (facts.tenant, facts.service)


def _check_key(
    request: CertificationRequest,
    profile: Profile,
    message: EnrollmentRequested,
    predecessor: KnownCertificate | None,
) -> None:
    same = predecessor is not None and predecessor.spki_sha256 == request.spki_sha256
    if message.operation == "simplereenroll" and same and profile.same_key == "deny":
        raise ProfileViolation(
            f"profile {profile.name} needs a new key at re-enrollment", code="profile.same_key"
        )


def recheck(intent: IssuanceIntent, decision_context: DecisionContext) -> None:
    """Decide again before an old intent is signed (§4, stale intents).

    Raises:
        RequestRejected: issuer, profile or rule of then is no longer there.
    """
    issuer = decision_context.issuers.get(intent.issuer_id)
    if issuer is None or issuer.certificate.not_after < intent.not_after:
        raise NotAuthorized("the issuer is no longer active", code="issuer.unknown")
    if intent.profile not in decision_context.profiles.profiles:
        raise NotAuthorized("the profile is gone", code="profile.unknown")
    rules = decision_context.policy.rules_of_owner(intent.tenant, intent.service)
    if not any(intent.profile in r.profiles and intent.context.label in r.labels for r in rules):
        raise NotAuthorized("the policy no longer allows it", code="policy.no_rule")
