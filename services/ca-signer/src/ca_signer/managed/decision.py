"""Whether ca-signer renews a certificate by itself, and with which contents (pure).

renewal says only which certificate is due. Everything else is decided here, by the policy and the
profiles of now and the ledger's rows, as if the holder had sent the stored CSR to
``simplereenroll``:

1. The certificate is good, the newest of its slot, and was fetched if ca-signer made it.
2. Its profile has managed renewal, and a label that renews it is still there.
3. A rule of the policy still gives its owner that profile and these names.
4. The stored CSR has the names of the certificate and a key that the profile takes.
5. The key is not older than the profile allows, and there was no incident; otherwise, where the
   profile says so, a new key is made for the certificate that the enrollment named, or for the one
   that is renewed.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace

from ca_signer.issuance.decision_context import (
    Candidate,
    DecisionContext,
    live_certificate,
    parsed,
)
from ca_signer.issuance.tbs import candidate
from ca_signer.managed.key_generator import Recipient, SealedKey, check_decrypts
from ca_signer.model import MANAGED, KnownCertificate, RequestFacts
from ca_signer.settings import SERVICE
from estcore import ids
from estcore.errors import (
    Conflict,
    IdentityMismatch,
    NotAuthenticated,
    NotAuthorized,
    ProfileViolation,
    RequestRejected,
)
from estcore.messages.enrollment import EnrollmentRequested, Principal
from estcore.messages.events import RotationEvent
from estcore.pki.csr import CertificationRequest, parse_csr
from estcore.pki.profile import ManagedRenewal, Profile
from estcore.policy.decide import check_profile, check_same_identity, inherited_rule
from estcore.policy.document import Rule
from estcore.policy.granted_names import granted_request
from estcore.policy.labels import Label

RENEWAL = "service:renewal"
"""Who asks for a managed renewal, in records."""
_FOR_EVER = dt.timedelta(days=36_500)
"""A repeated request for the successor of a certificate always gets the one that is there."""


@dataclass(frozen=True)
class DueCertificate:
    """What the ledger has on a certificate that is due.

    ``key_since`` is when the first certificate of its key was recorded; None where that is not
    known. ``unfetched`` is true of a managed renewal that no client has fetched, ``succeeded`` of a
    certificate that was renewed like this before. ``recipient_revoked`` is about the certificate
    that keys are sealed for, where it is one of ours.
    """

    certificate: KnownCertificate
    context: RequestFacts
    revoked: bool
    newest: bool
    unfetched: bool
    key_since: dt.datetime | None
    succeeded: bool = False
    recipient_revoked: bool = False


@dataclass(frozen=True)
class ManagedGrant:
    """What may be renewed, before a key is made.

    ``recipient`` is for whom a new key is sealed; None where the same key is certified again.
    """

    due: DueCertificate
    profile: Profile
    rule: Rule
    label: Label
    recipient: Recipient | None


def grant_managed(
    event: RotationEvent, due: DueCertificate | None, decision_context: DecisionContext
) -> ManagedGrant:
    """Steps 1 and 2 of the issuance cycle for a certificate that renewal finds due.

    Raises:
        RequestRejected: it is not renewed; the code says why.
    """
    due = _good(event, due, decision_context)
    profile, managed = _managed_profile(due.certificate.profile, decision_context)
    label = _label(due, decision_context)
    request, granted = _named(_stored_csr(due), due, profile)
    if request.spki_sha256 != due.certificate.spki_sha256:
        raise Conflict("the stored CSR is of another key", code="managed.no_request")
    rule = _rule(due, granted, profile, decision_context)
    check_profile(granted, profile)
    now = decision_context.clock.now()
    recipient = None
    try:
        _check_same_key(event, due, managed, now)
    except ProfileViolation:
        if not managed.server_key:
            raise
        recipient = _recipient(due, label, rule, now)
    return ManagedGrant(due, profile, rule, label, recipient)


def managed_candidate(
    event: RotationEvent,
    managed_grant: ManagedGrant,
    decision_context: DecisionContext,
    generated: SealedKey | None = None,
) -> Candidate:
    """Steps 3 and 4: return the candidate with its TBS built and linted.

    ``generated`` is the new key, where the grant has a recipient.

    Raises:
        RequestRejected: it is not renewed; the code says why.
        IssuerUnavailable: its issuer does not sign now.
        LintFailed: our own builder made something that is not what was decided.
    """
    due, facts = managed_grant.due, managed_grant.due.certificate
    csr = generated.csr if generated is not None else _stored_csr(due)
    request, granted = _named(csr, due, managed_grant.profile)
    check_profile(granted, managed_grant.profile)
    decided = candidate(
        _message(event, due, csr, managed_grant.label, decision_context),
        request,
        decision_context,
        decision_context.signing(decision_context.family(facts.issuer_id)),
        managed_grant.profile,
        managed_grant.rule,
        (facts.tenant, facts.service),
        facts,
        facts,
        granted,
    )
    decided.intent.enrollment_id = managed_enrollment_id(facts.fingerprint)
    decided.intent.context = decided.intent.context.model_copy(
        update={
            "operation": MANAGED,
            "principal": RENEWAL,
            "auth_method": MANAGED,
            "recipient": due.context.recipient,
            "recipient_capabilities": due.context.recipient_capabilities,
        }
    )
    # An operator approves what a client asks for; here nothing waits for one.
    sealed = generated.sealed if generated is not None else None
    return replace(decided, window=_FOR_EVER, approval=False, sealed_key=sealed)


def managed_enrollment_id(fingerprint: bytes) -> bytes:
    """Return the EnrollmentId of the managed renewal of a certificate, by its SHA-256.

    A certificate has one successor by managed renewal, whatever renewal says of its rotation.
    """
    return ids.digest((MANAGED.encode(), fingerprint))


def _good(
    event: RotationEvent, due: DueCertificate | None, decision_context: DecisionContext
) -> DueCertificate:
    if due is None or due.certificate.slot_id != event.slot_id:
        raise NotAuthorized(
            "the ledger has no such certificate in this slot", code="managed.unknown"
        )
    live_certificate(due.certificate, decision_context)
    if due.revoked:
        raise NotAuthenticated("the certificate is revoked", code="auth.certificate_revoked")
    if not due.newest:
        raise Conflict("its client has a newer certificate", code="managed.superseded")
    if due.unfetched:
        raise Conflict(
            "no client has fetched the certificate that is due", code="managed.not_fetched"
        )
    return due


def _managed_profile(
    name: str, decision_context: DecisionContext
) -> tuple[Profile, ManagedRenewal]:
    profile = decision_context.profiles.profiles.get(name)
    if profile is None:
        raise NotAuthorized(f"there is no profile {name}", code="profile.unknown")
    managed = profile.renewal.managed
    if managed is None:
        raise ProfileViolation(f"profile {name} has no managed renewal", code="managed.profile")
    return profile, managed


def _label(due: DueCertificate, decision_context: DecisionContext) -> Label:
    name, facts = due.context.label, due.certificate
    label = decision_context.policy.labels.get(name)
    family = decision_context.family(facts.issuer_id)
    renews = label is not None and facts.profile in label.profiles and family in label.issuers
    if label is None or not renews or "simplereenroll" not in label.operations:
        raise NotAuthorized(
            f"label {name} does not renew profile {facts.profile}", code="reenroll.label"
        )
    if family not in decision_context.families:
        raise NotAuthorized(
            f"issuer {family} signs in another process, without managed renewal",
            code="managed.issuer",
        )
    return label


def _stored_csr(due: DueCertificate) -> bytes:
    if due.context.csr is None:
        raise Conflict(
            "no CSR is stored with this certificate; its client enrolls once more",
            code="managed.no_request",
        )
    return due.context.csr


def _named(
    csr: bytes, due: DueCertificate, profile: Profile
) -> tuple[CertificationRequest, CertificationRequest]:
    """Return the CSR as a request, and the same with the names of the certificate.

    A first enrollment got its names by the templates of the profile; those that it would get now
    must be the same.
    """
    request, facts = parse_csr(csr), due.certificate
    current = parsed(facts.certificate)
    try:
        check_same_identity(request, current)
    except IdentityMismatch:
        granted = granted_request(request, profile, facts.tenant, facts.service)
        check_same_identity(granted, current)
        return request, granted
    return request, request


def _rule(
    due: DueCertificate,
    granted: CertificationRequest,
    profile: Profile,
    decision_context: DecisionContext,
) -> Rule:
    rule = inherited_rule(
        decision_context.policy,
        granted,
        tenant=due.certificate.tenant,
        service=due.certificate.service,
        profile=profile,
        label_name=due.context.label,
    )
    if rule.approval:
        raise NotAuthorized(
            f"rule {rule.name} needs an operator's approval", code="managed.approval"
        )
    return rule


def _check_same_key(
    event: RotationEvent, due: DueCertificate, managed: ManagedRenewal, now: dt.datetime
) -> None:
    """Check that the key may be certified again.

    Raises:
        ProfileViolation: the profile does not certify a key again, it is too old, or the renewal is
            because of an incident, which may be one of keys.
    """
    if event.reason == "incident" and managed.same_key:
        raise ProfileViolation(
            "after an incident a key is not certified again", code="managed.incident"
        )
    if managed.max_key_age is None:
        raise ProfileViolation("the profile does not certify a key again", code="managed.profile")
    if due.key_since is None:
        raise ProfileViolation("the age of the key is not known", code="managed.key_age_unknown")
    if now - due.key_since > managed.max_key_age:
        raise ProfileViolation(
            f"the key is in use since {due.key_since:%Y-%m-%d}, longer than the profile allows",
            code="managed.key_too_old",
        )


def _recipient(due: DueCertificate, label: Label, rule: Rule, now: dt.datetime) -> Recipient:
    """Return for whom a new key is sealed.

    Raises:
        NotAuthorized: label or rule have no server-side key generation, or the certificate that
            the enrollment named has ended.
        ProfileViolation: no key can be sealed for the certificate.
    """
    if "serverkeygen" not in label.operations or "serverkeygen" not in rule.operations:
        raise NotAuthorized(
            f"label {due.context.label} or rule {rule.name} does not offer serverkeygen",
            code="managed.keygen",
        )
    if due.context.recipient is None:
        check_decrypts(parsed(due.certificate.certificate))
        return Recipient(due.certificate.certificate)
    if due.recipient_revoked or parsed(due.context.recipient).not_valid_after_utc < now:
        raise NotAuthorized(
            "the certificate that keys are sealed for has expired or is revoked",
            code="managed.recipient_ended",
        )
    return Recipient(due.context.recipient, due.context.recipient_capabilities)


def _message(
    event: RotationEvent,
    due: DueCertificate,
    csr: bytes,
    label: Label,
    decision_context: DecisionContext,
) -> EnrollmentRequested:
    """Return the request that the holder would have sent."""
    facts = due.certificate
    family = decision_context.family(facts.issuer_id)
    return EnrollmentRequested(
        id=event.id,
        source=f"{SERVICE}/{MANAGED}",
        time=decision_context.clock.now(),
        correlation_id=event.correlation_id,
        traceparent=event.traceparent,
        operation="simplereenroll",
        label=due.context.label,
        group="none",
        instance="none",
        issuer=family,
        priority=label.priority,
        principal=Principal(
            method="certificate",
            name=f"{family}/{parsed(facts.certificate).subject.rfc4514_string()}"[:1024],
            certificate=facts.certificate,
        ),
        csr=csr,
    )


def is_final(error: RequestRejected) -> bool:
    """Return whether a refusal stands until policy, profile or certificate change.

    What only the moment forbids is asked again by renewal, after a pause.
    """
    return error.code not in {"policy.quota", "profile.max_active", "request.abandoned"}
