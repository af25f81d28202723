"""Steps 3 and 4 of the issuance cycle: build the TBS of a decision, lint it, return the intent."""

from __future__ import annotations

import datetime as dt

from ca_signer.issuance.decision_context import Candidate, DecisionContext, presented_fingerprint
from ca_signer.issuers.issuer import CACertificate
from ca_signer.model import IssuanceIntent, KnownCertificate, RequestFacts, request_origin
from estcore import ids
from estcore.errors import LintFailed, ProfileViolation
from estcore.messages.enrollment import EnrollmentRequested
from estcore.pki.csr import CertificationRequest
from estcore.pki.lint import lint
from estcore.pki.name_limits import check_name_constraints
from estcore.pki.profile import Profile
from estcore.policy.document import Rule
from estcore.policy.granted_names import granted_usages
from estcore.policy.identity import enrollment_id


def candidate(  # noqa: PLR0913, PLR0917 - the decision's parts, joined once
    message: EnrollmentRequested,
    request: CertificationRequest,
    decision_context: DecisionContext,
    issuer: CACertificate,
    profile: Profile,
    rule: Rule,
    owner: tuple[str, str],
    presented: KnownCertificate | None,
    predecessor: KnownCertificate | None,
    granted: CertificationRequest | None = None,
) -> Candidate:
    """Build the TBS, lint it and return what the cycle needs (steps 3 and 4).

    ``granted`` is the request with the names that templates give the certificate.

    Raises:
        ProfileViolation: the key is the issuer's own, a usage may not be asked for, or a CA
            above may not certify a name.
        LintFailed: our own builder made something that is not what was decided.
    """
    now = decision_context.clock.now()
    named = granted or request
    if issuer.name_constraints:
        check_name_constraints(named.subject, named.san_extension or (), issuer.name_constraints)
    # 3. Build the TBS.
    template = decision_context.template(issuer, with_usages(request, profile), rule.max_lifetime)
    copy = template.build(named, serial_number=ids.new_serial_number(), now=now)
    # 4. Lint it, so that nothing unlinted is ever real.
    try:
        lint(copy, request=named, template=template, now=now)
    except LintFailed as exc:
        if exc.code == "lint.not_issuers_key":
            raise ProfileViolation("this key is the issuer's own", code="key.issuers") from exc
        raise
    tenant, service = owner
    intent = IssuanceIntent(
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
        # A renewal stays in its slot, also across rules; a slot goes through the generations of
        # its issuer.
        slot_id=predecessor.slot_id
        if predecessor
        else ids.slot_id(
            tenant, service, issuer.family, profile.name, named.subject_canonical, named.san
        ),
        subject=named.subject_text,
        san=named.san,
        spki_sha256=request.spki_sha256,
        not_before=copy.certificate.not_valid_before_utc,
        not_after=copy.certificate.not_valid_after_utc,
        predecessor_sha256=predecessor.fingerprint if predecessor else None,
        presented_sha256=presented_fingerprint(message),
        secret_id=message.principal.name if message.principal.method == "secret" else None,
        sign_before=_sign_before(message, now, decision_context),
        context=_context(
            message, request, decision_context, template.profile, rule, presented, predecessor
        ),
    )
    return Candidate(
        message,
        intent,
        issuer,
        window=template.profile.window,
        max_per_day=rule.max_per_day,
        max_active=profile.max_active,
        approval=rule.approval or profile.approval,
    )


def with_usages(request: CertificationRequest, profile: Profile) -> Profile:
    """Return the profile with the usages that this request gets of it.

    Raises:
        ProfileViolation: the request asks for what the profile refuses.
    """
    usages = granted_usages(request, profile)
    own = (profile.key_usage, profile.extended_key_usage)
    if (usages.key_usage, usages.extended_key_usage) == own:
        return profile
    return profile.model_copy(
        update={
            "key_usage": usages.key_usage,
            "extended_key_usage": usages.extended_key_usage,
        }
    )


def _sign_before(
    message: EnrollmentRequested, now: dt.datetime, decision_context: DecisionContext
) -> dt.datetime:
    limit = now + decision_context.sign_within
    return limit if message.expires_at is None else min(limit, message.expires_at)


def _context(
    message: EnrollmentRequested,
    request: CertificationRequest,
    decision_context: DecisionContext,
    profile: Profile,
    rule: Rule,
    presented: KnownCertificate | None,
    predecessor: KnownCertificate | None,
) -> RequestFacts:
    return RequestFacts(
        correlation_id=message.correlation_id,
        traceparent=message.traceparent,
        operation=message.operation,
        group=message.group,
        instance=message.instance,
        label=message.label,
        principal=message.principal.key,
        auth_method=message.principal.method,
        presented_serial=ids.serial_hex(presented.serial_number) if presented else None,
        presented_sha256=presented.fingerprint.hex() if presented else None,
        rule=rule.name,
        policy_version=decision_context.policy.version,
        profile_version=f"{profile.name}@{profile.version}#{decision_context.profiles.version}",
        priority=rule.priority or profile.priority,
        key_algorithm=request.key_algorithm,
        csr_sha256=request.sha256.hex(),
        origin=request_origin(message.origin),
        linked=message.linked,
        predecessor_serial=ids.serial_hex(predecessor.serial_number) if predecessor else None,
        predecessor_id=predecessor.issuance_id if predecessor else None,
        same_key=predecessor is not None and predecessor.spki_sha256 == request.spki_sha256,
        mode=profile.renewal.mode,
        expiry=profile.renewal.expiry,
        reaction_time_s=int(profile.renewal.reaction_time.total_seconds()),
        overlap_s=int(profile.renewal.overlap.total_seconds()),
        spread=profile.renewal.spread,
        team=predecessor.team if predecessor else rule.owner.team,
        cluster=predecessor.cluster if predecessor else rule.owner.cluster,
        **_for_managed_renewal(message, request, profile),
    )


def _for_managed_renewal(
    message: EnrollmentRequested, request: CertificationRequest, profile: Profile
) -> dict[str, bytes | None]:
    """Return what a managed renewal will need: the CSR, and for whom keys are sealed."""
    managed = profile.renewal.managed
    if managed is None:
        return {}
    facts: dict[str, bytes | None] = {"csr": request.der}
    presented, capabilities = message.principal.certificate, message.key_capabilities
    if managed.server_key and presented is not None and capabilities is not None:
        # The front end says whose key it sealed for; the certificate is that of the principal.
        facts |= {"recipient": presented, "recipient_capabilities": capabilities}
    return facts
