"""Search terms of records."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from estcore.tlog.terms import fact_terms, matching_facts, record_terms, term

FACT: dict[str, Any] = {
    "action": "certificate.issue",
    "phase": "outcome",
    "outcome": "success",
    "correlation_id": "call",
    "producer": {"service": "ca-signer"},
    "actor": {"type": "human", "subject": "certificate:issuing/CN=Ada", "rule": "ada"},
    "target": {
        "tenant": "clinic",
        "service": "pump",
        "serial": "00Ab",
        "predecessor_serial": "01",
        "subject": r"CN=Pump\, 7,O=Clinic",
        "san": ["dns:pump.example", "uri:urn:Pump:7"],
    },
}


def test_a_fact_has_the_terms_people_ask_for() -> None:
    assert set(fact_terms(FACT)) == {
        term("action", "certificate.issue"),
        term("phase", "outcome"),
        term("outcome", "success"),
        term("correlation", "call"),
        term("producer", "ca-signer"),
        term("principal", "certificate:issuing/CN=Ada"),
        term("principal", "ada"),
        term("tenant", "clinic"),
        term("owner", "clinic/pump"),
        term("serial", "AB"),
        term("serial", "1"),
        term("name", r"cn=pump\, 7,o=clinic"),
        term("name", "Pump, 7"),
        term("name", "dns:pump.example"),
        term("name", "pump.example"),
        term("name", "URI:urn:pump:7"),
        term("name", "urn:pump:7"),
    }


def test_a_rule_of_the_policy_is_no_operator() -> None:
    machine = FACT | {"actor": {"type": "service", "subject": "secret:x", "rule": "devices"}}
    assert term("principal", "devices") not in set(fact_terms(machine))


def test_terms_must_hold_for_one_fact_of_a_joined_record() -> None:
    items = [{"correlation_id": f"c{n}", "target": {"serial": f"{n}"}} for n in range(1, 4)]
    record = FACT | {"items": items}
    assert term("serial", "2") in record_terms(record)
    (found,) = matching_facts(record, [term("serial", "2"), term("correlation", "c2")])
    assert found["target"] == {"serial": "2"}
    assert matching_facts(record, [term("serial", "2"), term("correlation", "c1")]) == []


def test_kinds_do_not_share_keys() -> None:
    assert term("action", "x").key != term("phase", "x").key
    assert term("serial", "0A:0b").key == term("serial", "a0b").key


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(sorted(FACT)), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from([*FACT, "items"]), values))
def test_any_members_of_a_record_have_terms_or_none(record: dict[str, Any]) -> None:
    assert all(found.value for found in record_terms(record))


@given(st.text())
def test_any_subject_is_found_whole(subject: str) -> None:
    found = set(fact_terms({"target": {"subject": subject}}))
    assert not subject.strip() or term("name", subject) in found
