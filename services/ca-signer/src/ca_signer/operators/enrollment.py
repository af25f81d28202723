"""Certificates of operators: decide, outside the policy's rules.

No group of front ends is trusted with profile ``operator``. The policy must name the
subject as an operator first.
"""

from __future__ import annotations

from ca_signer.issuance.decision_context import Candidate, DecisionContext
from ca_signer.issuance.tbs import candidate
from ca_signer.operators.console import user_name
from estcore import ids
from estcore.errors import NotAuthorized
from estcore.messages.enrollment import EnrollmentRequested, Principal
from estcore.pki.csr import parse_csr
from estcore.pki.profile import Priority
from estcore.policy.decide import check_profile
from estcore.policy.document import Names, Owner, PrincipalMatch, Rule
from estcore.policy.internal_profiles import OPERATOR_PROFILE

TENANT = "operators"
_LABEL = "operator"


def decide_operator(csr: bytes, issuer_id: str, decision_context: DecisionContext) -> Candidate:
    """Return the candidate for an operator's certificate.

    Raises:
        RequestRejected: the request is not good, or its subject is no operator of the policy.
        IssuerUnavailable: the issuer is not here or has expired.
    """
    request = parse_csr(csr)
    issuer = decision_context.signing(issuer_id)
    operator = decision_context.policy.operator(issuer_id, request.subject_canonical)
    if operator is None:
        raise NotAuthorized(
            f"the policy has no operator {request.subject_text} of issuer {issuer_id}",
            code="command.operator",
        )
    profile = decision_context.profiles.get(OPERATOR_PROFILE)
    check_profile(request, profile)
    # Not a rule of the policy: no client enrolls or renews by it.
    rule = Rule(
        name=operator.name,
        principal=PrincipalMatch(
            certificate_issuer=issuer_id, certificate_subject=operator.certificate_subject
        ),
        owner=Owner(tenant=TENANT, service=operator.name),
        labels=(_LABEL,),
        profiles=(OPERATOR_PROFILE,),
        names=Names(),
    )
    name = f"{user_name()}@{issuer_id}"
    message = EnrollmentRequested(
        id=ids.uuid7(),
        source="ca-signer/operator",
        time=decision_context.clock.now(),
        correlation_id=ids.uuid7(),
        operation="simpleenroll",
        label=_LABEL,
        group="none",
        instance="none",
        issuer=issuer_id,
        priority=Priority.NORMAL,
        principal=Principal(method="password", name=name),
        csr=csr,
    )
    owner = (rule.owner.tenant, rule.owner.service)
    operator_candidate = candidate(
        message, request, decision_context, issuer, profile, rule, owner, None, None
    )
    operator_candidate.intent.context = operator_candidate.intent.context.model_copy(
        update={"principal": f"console:{name}", "auth_method": "console", "mode": "poll"}
    )
    return operator_candidate
