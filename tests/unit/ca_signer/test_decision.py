"""Every refusal of steps 1 to 4: a sentence, what is changed of a good request, the code."""

from __future__ import annotations

import ast
import datetime as dt
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ca_signer.issuance import decision, decision_context, registration_authority, tbs
from ca_signer.issuers.generations import Generation, Generations
from estcore.errors import ESTSuiteError
from estcore.pki.profile import NameLimits
from estcore.policy import decide as policy_decide
from estcore.policy import granted_names, templates
from estsuite_testing.decision_case import (
    ISSUER_KEY,
    KEY,
    DecisionCase,
    csr,
    known,
    renewal,
)

TOKEN = {"token": {"issuer": "idp", "claims": {"azp": "web"}}}
BY_TOKEN = {"method": "token", "name": "idp/web", "claims": {"azp": "web"}}
REGISTRAR = known("CN=ra-1", profile="ra")
ACTS_FOR_OTHERS = {
    "principal": {"certificate_issuer": "issuing", "certificate_subject": "CN=ra-1"},
    "registrar": True,
}
BY_REGISTRAR = {
    "method": "certificate",
    "name": "issuing/CN=ra-1",
    "certificate": REGISTRAR.certificate,
    "certificate_issuer": "issuing",
}
ONLY_CLINIC = x509.NameConstraints(
    permitted_subtrees=[x509.DNSName("clinic.example")], excluded_subtrees=None
)


def token_rule(**changes: Any) -> dict[str, Any]:
    return {"principal": {"token": TOKEN["token"] | changes}}


def extensions(**changes: Any) -> dict[str, Any]:
    own = DecisionCase().context().profiles.get("service-mtls").extensions
    return {"extensions": own.model_copy(update=changes)}


REFUSED: list[tuple[str, DecisionCase, str]] = [
    # The route: what the front end says must fit together.
    ("a topic of another priority", DecisionCase(topic="pki.enroll.default.issuing.critical"),
     "frontend.route"),
    ("a topic with a token too few", DecisionCase(topic="pki.enroll.default.issuing"),
     "frontend.route"),
    ("a group that may not use the label", DecisionCase(group={"labels": ["devices"]}),
     "frontend.label"),
    ("a group that is not configured", DecisionCase(message={"group": "branch"}), "frontend.label"),
    ("an issuer that the label does not have", DecisionCase(message={"issuer": "other"}),
     "frontend.issuer"),
    ("the other issuer of the label, which is for another profile",
     DecisionCase(message={"issuer": "second"}, label={"other_issuers": [
         {"issuer": "second", "profiles": ["workload"]}]}), "frontend.issuer"),
    ("a way to authenticate that the label does not accept",
     DecisionCase(label={"authentication": ["certificate"]}), "frontend.authentication"),
    ("an operation that the label does not offer",
     DecisionCase(label={"operations": ["simplereenroll"]}), "frontend.operation"),
    ("a request not bound to TLS where the label needs it",
     DecisionCase(label={"linking": "require"}), "linking.required"),
    ("a priority that the rule does not give", DecisionCase(rule={"priority": "critical"}),
     "frontend.priority"),
    ("a profile that the group may not ask for", DecisionCase(group={"profiles": ["device"]}),
     "frontend.profile"),
    # The rule.
    ("a principal without a rule", DecisionCase(principal={"name": "unknown"}), "policy.no_rule"),
    ("a label that the rule does not allow",
     DecisionCase(rule={"labels": ["spare"]}), "policy.label"),
    ("an operation that the rule does not allow",
     DecisionCase(rule={"operations": ["simplereenroll"]}), "policy.operation"),
    ("a bearer token where the rule needs one bound to a key",
     DecisionCase(principal=BY_TOKEN, rule=token_rule(sender_constrained=True)),
     "policy.sender_constraint"),
    ("a token without a role", DecisionCase(principal=BY_TOKEN, rule=token_rule()), "policy.role"),
    ("a token without the claim that names the owner", DecisionCase(
        principal=BY_TOKEN,
        rule=token_rule(profiles_by_role=False)
        | {"owner": {"tenant": "clinic", "service": "{team}"}}), "policy.claim"),
    ("a common name that the rule does not allow", DecisionCase(csr("db-1")), "policy.subject"),
    ("a subject attribute that the rule does not allow",
     DecisionCase(csr(attributes=[(NameOID.ORGANIZATION_NAME, "Others")])), "policy.subject"),
    ("a SAN that the rule does not allow", DecisionCase(csr(san=["db.clinic.example"])),
     "policy.san"),
    ("a request without any name", DecisionCase(csr(None)), "policy.subject"),
    # The grammar of names, whatever the rule allows.
    ("a common name with a control character", DecisionCase(csr("web-\x07")), "name.subject"),
    ("a DNS name made from a common name that is none", DecisionCase(
        csr("web-1_"), profile={"common_name_to_dns_san": True}), "name.dns"),
    ("a wildcard made from a common name", DecisionCase(
        csr("*.clinic.example"), rule={"names": {"common_names": ["*.clinic.example"]}},
        profile={"common_name_to_dns_san": True}), "name.dns"),
    # The profile.
    ("an algorithm that the profile does not take",
     DecisionCase(profile={"key_algorithms": ("rsa-2048",)}), "profile.key_algorithm"),
    ("an attribute that the profile does not have",
     DecisionCase(profile={"subject_attributes": ("O",)}), "profile.subject_attribute"),
    ("a kind of SAN that the profile does not have",
     DecisionCase(csr(san=["web.clinic.example"]), profile={"san_kinds": ("uri",)}),
     "profile.san_kind"),
    ("no SAN where the profile needs one", DecisionCase(profile={"san_required": True}),
     "profile.san_missing"),
    ("a SAN outside the limits of the profile", DecisionCase(
        csr(san=["web.clinic.example"]),
        profile={"limits": NameLimits(dns_suffixes=("others.example",))}), "profile.limits"),
    ("a SAN where the profile takes none", DecisionCase(
        csr(san=["web.clinic.example"]),
        profile=extensions(subject_alternative_name="deny")), "profile.extension"),
    ("an extended key usage that the profile does not let a request ask for", DecisionCase(
        csr(extensions=[x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])]),
        profile=extensions(extended_key_usage="append")), "profile.extension"),
    # The presented certificate.
    ("a certificate that the ledger does not know", renewal(None), "auth.certificate_unknown"),
    ("a certificate that has expired", renewal(known(), after=dt.timedelta(days=10)),
     "auth.certificate_expired"),
    ("a certificate of a generation that has retired", renewal(
        known(issuer_id="issuing-0"),
        generations=Generations({"issuing-0": Generation("issuing-0", "issuing", "retired")})),
     "auth.certificate_retired"),
    # Re-enrollment.
    ("a profile that the label does not renew", renewal(known(profile="device")),
     "reenroll.label"),
    ("a certificate of another issuer",
     renewal(known(issuer_id="other"),
             generations=Generations({"other": Generation("other", "other", "signing")})),
     "reenroll.label"),
    ("another subject", renewal(known("CN=web-2")), "reenroll.subject_differs"),
    ("a SAN more", renewal(known(), request=csr(san=["web.clinic.example"])),
     "reenroll.san_differs"),
    ("a SAN less", renewal(known(san=["web.clinic.example"])), "reenroll.san_differs"),
    ("an owner without a rule by now", renewal(known(service="old")),
     "policy.renewal_withdrawn"),
    ("names that the owner's rule no longer has",
     renewal(known(), rule={"names": {"common_names": ["api-*"]}}), "policy.subject"),
    ("the same key where the profile needs a new one",
     renewal(known(key=KEY), profile={"same_key": "deny"}), "profile.same_key"),
    # Registration authorities.
    ("a registrar whose certificate is of another profile", DecisionCase(
        principal=BY_REGISTRAR, known=known("CN=ra-1"), rule=ACTS_FOR_OTHERS),
     "registrar.profile"),
    ("a registrar that renews what is not there", renewal(REGISTRAR, latest=[]),
     "registrar.nothing"),
    ("a registrar that renews one of two", renewal(REGISTRAR, latest=[known(), known()]),
     "registrar.ambiguous"),
    # The issuer.
    ("an issuer that is not configured here", DecisionCase(issuer_id="foreign"),
     "issuer.unknown"),
    ("an issuer whose certificate has expired", DecisionCase(after=dt.timedelta(days=4000)),
     "issuer.expired"),
    ("a name that a CA above may not certify",
     DecisionCase(csr(san=["web.clinic.example"]), constraints=x509.NameConstraints(
         permitted_subtrees=[x509.DNSName("others.example")], excluded_subtrees=None)),
     "issuer.name_constraints"),
    ("the issuer's own key", DecisionCase(csr(key=ISSUER_KEY)), "key.issuers"),
    # The CSR.
    ("octets that are no CSR", DecisionCase(b"none"), "csr.malformed"),
]  # fmt: skip

GRANTED: list[tuple[str, DecisionCase]] = [
    ("a good first enrollment", DecisionCase()),
    ("a name of the rule in the SAN", DecisionCase(csr(san=["web.clinic.example"]))),
    ("a request bound to TLS where the label needs it",
     DecisionCase(label={"linking": "require"}, message={"linked": "tls-exporter"})),
    ("a priority that the rule gives", DecisionCase(
        rule={"priority": "critical"}, message={"priority": "critical"})),
    ("a token with the role", DecisionCase(
        principal=BY_TOKEN | {"claims": {"azp": "web", "roles": ("service-mtls",)}},
        rule=token_rule(role_claim="roles"))),
    ("a renewal with a new key", renewal(known())),
    ("a renewal with the same key where the profile has no objection", renewal(known(key=KEY))),
    ("a renewal of a certificate of the generation before", renewal(
        known(issuer_id="issuing-0"),
        generations=Generations({
            "issuing-0": Generation("issuing-0", "issuing", "accepted"),
            "issuing": Generation("issuing", "issuing", "signing")}))),
    ("a registrar for another", DecisionCase(
        principal=BY_REGISTRAR, known=REGISTRAR, rule=ACTS_FOR_OTHERS)),
    ("a registrar's renewal of the only one", renewal(REGISTRAR, latest=[known()])),
    ("a name that a CA above may certify",
     DecisionCase(csr(san=["web.clinic.example"]), constraints=ONLY_CLINIC)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "code"), [pytest.param(case, code, id=what) for what, case, code in REFUSED]
)
def test_a_request_is_refused(case: DecisionCase, code: str) -> None:
    with pytest.raises(ESTSuiteError) as refused:
        case.decide()
    assert refused.value.code == code


@pytest.mark.parametrize("case", [pytest.param(case, id=what) for what, case in GRANTED])
def test_a_request_is_granted(case: DecisionCase) -> None:
    candidate = case.decide()
    assert (candidate.intent.tenant, candidate.intent.service) == ("clinic", "web")
    assert candidate.intent.profile == "service-mtls"
    assert candidate.issuer.issuer_id == "issuing"


def test_a_renewal_keeps_slot_and_predecessor() -> None:
    before = known(slot_id="slot-9")
    intent = renewal(before).decide().intent
    assert (intent.slot_id, intent.predecessor_sha256) == ("slot-9", before.fingerprint)


WITHDRAWN: list[tuple[str, DecisionCase, str | None]] = [
    ("nothing has changed", DecisionCase(), None),
    ("the issuer is gone", DecisionCase(issuer_id="foreign"), "issuer.unknown"),
    ("the profile is gone", DecisionCase(without_profile=True), "profile.unknown"),
    ("the rule has another owner", DecisionCase(rule={"owner": {"tenant": "a", "service": "b"}}),
     "policy.no_rule"),
    ("the rule has another profile", DecisionCase(rule={"profiles": ["workload"]}),
     "policy.no_rule"),
    ("the rule has another label", DecisionCase(rule={"labels": ["spare"]}), "policy.no_rule"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("today", "code"), [pytest.param(case, code, id=what) for what, case, code in WITHDRAWN]
)
def test_an_old_intent_is_decided_again(today: DecisionCase, code: str | None) -> None:
    intent = DecisionCase().decide().intent
    if code is None:
        decision.recheck(intent, today.context())
        return
    with pytest.raises(ESTSuiteError) as refused:
        decision.recheck(intent, today.context())
    assert refused.value.code == code


def test_every_code_of_the_decision_has_a_case() -> None:
    modules = (decision, decision_context, registration_authority, tbs, policy_decide, templates)
    found = {
        str(keyword.value.value)
        for module in (*modules, granted_names)
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "code" and isinstance(keyword.value, ast.Constant)
    }
    assert found - {code for _, _, code in [*REFUSED, *WITHDRAWN]} == set()
