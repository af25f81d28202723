"""Conditions: one of each type, others' kept, and a transition only where the status changes."""

from __future__ import annotations

import base64
import datetime as dt

from hypothesis import given
from hypothesis import strategies as st

from est_issuer import conditions

NOW = dt.datetime(2026, 11, 30, 12, tzinfo=dt.UTC)
LATER = NOW + dt.timedelta(hours=1)
APPROVED = {"type": "Approved", "status": "True", "reason": "Policy", "message": "by a policy"}

kinds = st.sampled_from(["Ready", "InvalidRequest", "Approved", "Other"])
lists = st.lists(
    st.builds(
        lambda kind, status, text: {"type": kind, "status": str(status), "message": text},
        kinds,
        st.booleans(),
        st.text(max_size=20),
    ),
    unique_by=lambda c: c["type"],
)


@given(lists, kinds, st.booleans(), st.text())
def test_a_type_is_there_once_and_the_others_stay(
    before: list[conditions.Condition], kind: str, status: bool, text: str
) -> None:
    new = conditions.condition(kind, status, "Reason", text)
    after = conditions.with_condition(before, new, now=NOW)
    assert [c for c in after if c["type"] != kind] == [c for c in before if c["type"] != kind]
    (made,) = [c for c in after if c["type"] == kind]
    assert made["status"] == str(status)
    assert "\n" not in made["message"]
    assert len(made["message"]) <= 1024


def test_the_transition_is_when_the_status_changed() -> None:
    first = conditions.pending([APPROVED], "no answer", now=NOW)["conditions"]
    again = conditions.pending(first, "still no answer", now=LATER)["conditions"]
    assert conditions.find(again, "Ready")["message"] == "still no answer"
    assert conditions.find(again, "Ready")["lastTransitionTime"] == "2026-11-30T12:00:00Z"
    issued = conditions.issued(again, "issued", chain=b"a", authority=None, now=LATER)
    assert (
        conditions.find(issued["conditions"], "Ready")["lastTransitionTime"]
        == "2026-11-30T13:00:00Z"
    )
    assert issued["certificate"] == base64.b64encode(b"a").decode()
    assert "ca" not in issued


def test_outcomes_have_the_reasons_of_cert_manager() -> None:
    failed = conditions.failed([APPROVED], "refused", now=NOW)
    assert failed["failureTime"] == "2026-11-30T12:00:00Z"
    assert conditions.find(failed["conditions"], "Ready")["reason"] == "Failed"
    assert APPROVED in failed["conditions"]
    invalid = conditions.invalid([APPROVED], "isCA", now=NOW)
    assert conditions.is_true(invalid["conditions"], "InvalidRequest")
    assert conditions.find(invalid["conditions"], "Ready")["reason"] == "Failed"
    decided = {"type": "Denied", "status": "True", "message": "not yours"}
    denied = conditions.denied([decided], now=NOW)
    assert denied["failureTime"]
    ready = conditions.find(denied["conditions"], "Ready")
    assert (ready["reason"], ready["message"]) == ("Denied", "the request was denied: not yours")
