"""The generations of a slot: any order and repetition leads to the same roles."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Iterable
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from renewal.rotation.slot_state import Generation, Rules, SlotState, Steps, compute_slot_state

START = dt.datetime(2026, 11, 22, 12, 0, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
RULES = Rules(overlap=HOUR, client_reload=dt.timedelta(0), stall_safety=HOUR)


def certificate(number: int, predecessor: int | None = None, life_h: int = 1000) -> Generation:
    """The ``number``-th certificate, issued ``number`` hours after the start."""
    issued = START + number * HOUR
    return Generation(
        issuance_id=f"i{number:03}",
        fingerprint=f"f{number}",
        predecessor=None if predecessor is None else f"f{predecessor}",
        issued_at=issued,
        not_after=issued + life_h * HOUR,
    )


def at(hours: float) -> dt.datetime:
    return START + hours * HOUR


def run(*found: Generation, hours: float = 500) -> SlotState:
    return compute_slot_state(found, rules=RULES, now=at(hours))


def deliver(batches: Iterable[list[Generation]]) -> dict[str, Generation]:
    """Apply batches one after another as the service does: what was computed stays in the table."""
    table: dict[str, Generation] = {}
    for batch in batches:
        for one in batch:
            table.setdefault(one.issuance_id, one)
        table.update(compute_slot_state(table.values(), rules=RULES, now=at(500)).generations)
    return table


@st.composite
def histories(draw: st.DrawFn) -> list[Generation]:
    size = draw(st.integers(1, 7))
    found = [certificate(0)]
    for number in range(1, size):
        before = draw(st.none() | st.integers(0, number - 1))
        found.append(certificate(number, before))
    return found


@given(histories(), st.data())
def test_any_order_and_repetition_of_events_leads_to_the_same_generations(
    history: list[Generation], data: st.DataObject
) -> None:
    expected = deliver([one] for one in history)
    shuffled = data.draw(st.permutations(history + history))
    width = data.draw(st.integers(1, 4))
    batches = [shuffled[i : i + width] for i in range(0, len(shuffled), width)]
    found = deliver(batches)
    for name, one in expected.items():
        other = found[name]
        assert other.role == one.role, name
        if one.role:
            outcome = (other.replaces, other.activated_at)
            assert outcome == (one.replaces, one.activated_at), name
            # A number that was published never falls, so a detour may leave it higher.
            assert other.number >= one.number
    roles = [g.role for g in found.values() if g.role]
    assert roles.count("active") == 1
    assert roles.count("next") <= 1


@given(histories(), st.integers(0, 3000))
def test_settling_again_changes_nothing(history: list[Generation], hours: int) -> None:
    once = compute_slot_state(history, rules=RULES, now=at(hours))
    twice = compute_slot_state(once.generations.values(), rules=RULES, now=at(hours))
    assert twice.generations == once.generations
    assert twice.check_at == once.check_at


@given(histories(), st.lists(st.integers(0, 3000), min_size=1, max_size=6))
def test_no_certificate_is_deprecated_without_a_proof_of_its_successor(
    history: list[Generation], hours: list[int]
) -> None:
    table = list(history)
    for hour in sorted(hours):
        table = list(compute_slot_state(table, rules=RULES, now=at(hour)).generations.values())
        for one in table:
            if Steps.DEPRECATED in one.reached:
                assert one.proof is not None
            if one.state == "deprecated":
                assert any(g.replaces == one.issuance_id and g.proof for g in table)


def test_a_late_answer_of_the_middle_generation_leads_to_the_same_numbers() -> None:
    history = [certificate(0), certificate(1, 0), certificate(2, 1), certificate(3, 2)]
    # What was published on the way (reached) may be more: it followed what was known then.
    expected = [replace(g, reached=Steps.NONE) for g in run(*history).generations.values()]
    for order in itertools.permutations(history):
        found = deliver([one] for one in order)
        assert [replace(found[g.issuance_id], reached=Steps.NONE) for g in expected] == expected


def test_generations_that_ended_in_between_do_not_change_numbers_or_proofs() -> None:
    table = deliver([one] for one in [certificate(n, n - 1 if n else None) for n in range(5)])
    # The second and third lived shorter than the first and are not looked at any more.
    left = [g for name, g in table.items() if name not in {"i001", "i002"}]
    found = compute_slot_state(left, rules=RULES, now=at(500)).generations
    for name in ("i003", "i004"):
        assert (found[name].role, found[name].number) == (table[name].role, table[name].number)
        assert found[name].activated_at == table[name].activated_at


def test_the_first_certificate_is_active_and_a_renewal_of_it_is_next() -> None:
    found = run(certificate(0), certificate(1, 0))
    assert found.active is not None
    assert found.next is not None
    assert (found.active.number, found.next.number) == (1, 2)
    assert found.next.reached == Steps.ISSUED | Steps.OVERLAP
    assert found.next.overlap_until == at(2)


def test_enrolling_with_the_next_certificate_proves_it() -> None:
    found = run(certificate(0), certificate(1, 0), certificate(2, 1), hours=2.5)
    assert found.active is not None
    assert (found.active.issuance_id, found.active.proof) == ("i001", "mtls_seen")
    assert found.next is not None
    assert found.next.number == 3
    assert found.generations["i000"].state == "superseded"


def test_the_earliest_proof_of_use_counts_whatever_comes_after_it() -> None:
    """A certificate was proven by its connection, and an hour later enrolled the next one."""
    history = [certificate(0), certificate(1, 0), certificate(3, 1)]
    early, late = at(2), at(4)
    for proven_at, expected in ((early, early), (late, history[2].issued_at)):
        for order in itertools.permutations(history):
            proven = [
                replace(g, activated_at=proven_at, proof="mtls_seen") if g is history[1] else g
                for g in order
            ]
            for found in (deliver([[one] for one in proven]), deliver([proven, proven])):
                assert found["i001"].activated_at == expected
                assert found["i001"].proof == "mtls_seen"
                assert found["i003"].role == "next"


def test_the_old_certificate_is_deprecated_only_after_the_overlap() -> None:
    first = run(certificate(0), certificate(1, 0), certificate(2, 1), hours=2.5)
    assert first.check_at == at(3)
    later = compute_slot_state(first.generations.values(), rules=RULES, now=at(3))
    assert later.generations["i000"].state == "deprecated"
    assert Steps.DEPRECATED in later.generations["i001"].reached


def test_a_client_that_lost_its_key_displaces_an_unproven_next() -> None:
    found = run(certificate(0), certificate(1, 0), certificate(2))
    assert found.next is not None
    assert found.next.issuance_id == "i002"
    assert found.next.number == 2
    assert found.generations["i001"].state == "superseded"


def test_without_proof_the_old_certificate_runs_to_its_end_and_the_new_one_takes_over() -> None:
    found = run(certificate(0, life_h=10), certificate(5, 0), hours=9.5)
    assert found.next is not None
    assert Steps.STALLED in found.next.reached
    later = compute_slot_state(found.generations.values(), rules=RULES, now=at(10))
    assert later.active is not None
    assert later.active.issuance_id == "i005"
    assert later.generations["i000"].state == "retired"
    steps = later.active.reached
    assert Steps.RETIRED in steps
    assert Steps.DEPRECATED not in steps
    assert Steps.ACTIVATED not in steps


def test_an_active_certificate_that_ends_without_successor_is_expired() -> None:
    found = run(certificate(0, life_h=10), hours=11)
    assert found.active is not None
    assert found.active.state == "expired"
    assert Steps.EXPIRED in found.active.reached
    assert found.check_at is None
    back = compute_slot_state(
        [*found.generations.values(), certificate(20)], rules=RULES, now=at(21)
    )
    assert back.active is not None
    assert (back.active.issuance_id, back.active.number, back.next) == ("i020", 2, None)


def test_a_revoked_next_leaves_the_active_one_alone() -> None:
    found = run(certificate(0), certificate(1, 0), hours=2)
    revoked = replace(found.generations["i001"], state="revoked")
    later = run(found.generations["i000"], revoked, hours=2)
    assert later.active is not None
    assert later.active.issuance_id == "i000"
    assert later.next is None


def test_a_revoked_active_is_replaced_by_next_at_once() -> None:
    found = run(certificate(0), certificate(1, 0), hours=2)
    revoked = replace(found.generations["i000"], state="revoked")
    later = run(revoked, found.generations["i001"], hours=2)
    assert later.active is not None
    assert (later.active.issuance_id, later.active.number) == ("i001", 2)
    assert Steps.RETIRED in later.active.reached
