"""Registration authorities (RFC 7030 section 3.7): which clients may enroll for others."""

from __future__ import annotations

from collections.abc import Sequence

from ca_signer.issuance.decision_context import DecisionContext, live_certificate, parsed
from ca_signer.model import KnownCertificate
from estcore import ids
from estcore.errors import Conflict, NotAuthorized
from estcore.messages.enrollment import EnrollmentRequested
from estcore.pki.csr import CertificationRequest, parse_csr
from estcore.pki.names import canonical_name
from estcore.pki.profile import Profile
from estcore.policy.decide import check_names, find_rule, grant
from estcore.policy.document import Rule

REGISTRAR = "ra"
"""The profile whose certificates may act for others, where a rule says so."""


def renewed_slots(
    message: EnrollmentRequested,
    decision_context: DecisionContext,
    presented: KnownCertificate | None,
) -> list[str] | None:
    """Return the slots in which the predecessor of a registrar's renewal must be.

    None where this is no such renewal: the presented certificate itself is renewed then.

    Raises:
        RequestRejected: the CSR cannot be read, or the presented certificate gives no such right.
    """
    if message.operation != "simplereenroll" or presented is None or presented.profile != REGISTRAR:
        return None
    presented_subject = parsed(presented.certificate).subject
    issuer = decision_context.family(presented.issuer_id)
    rule = find_rule(
        decision_context.policy, method="certificate", name=f"{issuer}/", subject=presented_subject
    )
    request = parse_csr(message.csr)
    if rule is None or not rule.registrar:
        return None
    if request.subject_canonical == canonical_name(presented_subject):
        return None
    live_certificate(presented, decision_context)
    renewal_grant = grant(decision_context.policy, rule, message.label, operation=message.operation)
    owner = (rule.owner.tenant, rule.owner.service)
    profiles = [p for p in rule.profiles if p in renewal_grant.label.profiles]
    _check_some(request, rule, [decision_context.profiles.get(p) for p in profiles])
    return [
        ids.slot_id(*owner, message.issuer, profile, request.subject_canonical, request.san)
        for profile in profiles
    ]


def _check_some(request: CertificationRequest, rule: Rule, profiles: Sequence[Profile]) -> None:
    """Check that the rule allows the names under one of the profiles at least."""
    refused = None
    for profile in profiles:
        try:
            check_names(request, rule.names, profile, (rule.owner.tenant, rule.owner.service))
        except NotAuthorized as exc:
            refused = exc
        else:
            return
    if refused is not None:
        raise refused


def only_head(latest_certificates: Sequence[KnownCertificate]) -> KnownCertificate:
    """Return the one certificate to renew.

    Raises:
        NotAuthorized: there is none.
        Conflict: there are several.
    """
    if not latest_certificates:
        raise NotAuthorized(
            "there is no live certificate of this subject to renew", code="registrar.nothing"
        )
    if len(latest_certificates) > 1:
        raise Conflict(
            "more than one live certificate has this subject", code="registrar.ambiguous"
        )
    return latest_certificates[0]


def check_registrar(presented: KnownCertificate | None) -> None:
    """Check that the ledger knows the presented certificate as a registrar's.

    Raises:
        NotAuthorized: it does not.
    """
    # Rights come from the ledger's row and the policy, never from the EKU alone.
    if presented is None or presented.profile != REGISTRAR:
        raise NotAuthorized(
            f"a registrar's certificate is of profile {REGISTRAR}", code="registrar.profile"
        )
