"""The rules of an owner: which there are, in which order, without looking through all."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from estcore.policy.document import PolicyDocument

LABEL = {"issuer": "issuing", "profiles": ["service"], "authentication": ["certificate", "secret"]}
tokens = st.sampled_from(["a", "b", "ward-1", "{team}", "x-{team}"])


def document(owners: list[tuple[str, str]]) -> PolicyDocument:
    rules: list[dict[str, Any]] = [
        {
            "name": f"rule-{n}",
            "principal": {"token": {"issuer": "keycloak", "claims": {"azp": f"client-{n}"}}},
            "owner": {"tenant": tenant, "service": service},
            "labels": ["services"],
            "profiles": ["service"],
            "names": {"dns": [f"host-{n}.clinic.example"]},
        }
        for n, (tenant, service) in enumerate(owners)
    ]
    return PolicyDocument.model_validate(
        {"default_label": "services", "labels": {"services": LABEL}, "rules": rules}
    )


@given(st.lists(st.tuples(tokens, tokens), max_size=12), tokens, tokens)
def test_they_are_those_that_fit_in_the_order_of_the_file(
    owners: list[tuple[str, str]], tenant: str, service: str
) -> None:
    policy = document(owners)
    fitting = [rule.name for rule in policy.rules if rule.bound_to_owner(tenant, service)]
    assert [rule.name for rule in policy.rules_of_owner(tenant, service)] == fitting


def test_a_rule_with_an_open_owner_stands_between_others_where_the_file_has_it() -> None:
    policy = document([("a", "b"), ("a", "{team}"), ("b", "b"), ("a", "b")])
    found = [rule.name for rule in policy.rules_of_owner("a", "b")]
    assert found == ["rule-0", "rule-1", "rule-3"]
    assert [rule.name for rule in policy.rules_of_owner("a", "c")] == ["rule-1"]
