"""What is on record of rotations: every fact once, those of one step in one record."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estcore.clock import SystemClock
from estcore.ids import record_id, rotation_id
from estcore.messages.audit import AuditBatch, AuditRecord
from estcore.messages.audit_batches import MAX_OCTETS
from estcore.messages.envelope import decode
from estcore.messages.events import CertificateRef, RotationEvent
from estcore.runtime.bus import Outgoing
from estcore.tlog.items import expanded
from renewal.publishing.messages import MessageBuilder, RotationMessage, event_id

NOW = dt.datetime(2026, 11, 30, 12, tzinfo=dt.UTC)
DONE = ("due", "overlap", "activated", "deprecated", "retired", "ended")
FAILED = ("stalled", "expired", "lease_expired", "failed")


def reference(number: int) -> CertificateRef:
    return CertificateRef(
        serial=f"{number:04x}",
        not_before=NOW,
        not_after=NOW + dt.timedelta(days=30),
        spki_sha256=f"{number:064x}",
        fingerprint_sha256=f"{number + 1:064x}",
    )


def message(step: Any, number: int, *, recorded: bool = True) -> RotationMessage:
    slot = f"00000000-0000-5000-8000-{number:012x}"
    rotation, key = rotation_id(slot, 2), f"issuance-{number}"
    old, new = reference(2 * number), reference(2 * number + 1)
    event = RotationEvent(
        id=event_id(rotation, step, key),
        source="renewal/test",
        time=NOW,
        correlation_id=rotation,
        step=step,
        tenant="clinic",
        service="web",
        slot_id=slot,
        rotation_id=rotation,
        generation=2,
        profile="tls",
        priority="normal",
        label="web",
        mode="agent",
        issuer_id="issuing",
        fence=number,
        old=old,
        new=new,
    )
    details = (("attempt", number),)
    return RotationMessage(event, new, key, key, details, "192.0.2.7", recorded)


def builder() -> MessageBuilder:
    return MessageBuilder("test", SystemClock(), "boot")


def records(messages: list[Outgoing]) -> Iterator[AuditRecord]:
    for one in messages:
        if one.topic.startswith("audit."):
            yield from decode(AuditBatch, one.payload).records


@given(st.lists(st.tuples(st.sampled_from(DONE + FAILED), st.integers(0, 300)), unique=True))
def test_every_fact_is_on_record_once_whatever_travels_together(
    steps: list[tuple[str, int]],
) -> None:
    said = [message(step, number) for step, number in steps]
    out = builder().messages(said)
    facts = [
        fact
        for r in records(out)
        for fact in expanded(r.model_dump(mode="json", exclude_none=True))
    ]
    assert {(f["action"], f["causation_id"]) for f in facts} == {
        (f"rotation.{m.event.step}", m.event.id) for m in said
    }
    assert len(facts) == len(said)
    by_event = {m.event.id: m for m in said}
    for fact in facts:
        about = by_event[fact["causation_id"]]
        assert fact["correlation_id"] == about.event.rotation_id
        assert fact["target"]["slot_id"] == about.event.slot_id
        assert fact["target"]["serial"] == about.event.new.serial  # type: ignore[union-attr] # set above
        assert fact["target"]["predecessor_serial"] == about.event.old.serial  # type: ignore[union-attr] # set above
        assert fact["details"]["attempt"] == about.event.fence
        assert fact["origin"]["peer"] == "192.0.2.7"
        assert fact["outcome"] == ("failure" if about.event.step in FAILED else "success")
    assert all(len(one.payload) <= MAX_OCTETS + 8192 for one in out)
    assert [m.event.id for m in said] == [
        one.message_id for one in out if one.topic.startswith("pki.rotation.")
    ]


@pytest.mark.parametrize("step", DONE)
def test_a_fleet_that_takes_one_step_at_once_makes_few_records(step: str) -> None:
    found = list(records(builder().messages([message(step, n) for n in range(60)])))
    assert len(found) <= 10
    alone = list(records(builder().messages([message(step, 7)])))
    assert [r.record_id for r in alone] == [
        record_id("rotation", alone[0].correlation_id, step, "issuance-7")
    ]


@pytest.mark.parametrize("step", FAILED)
def test_each_failure_has_a_record_of_its_own(step: str) -> None:
    said = [message(step, n) for n in range(60)]
    found = list(records(builder().messages(said)))
    assert [r.record_id for r in found] == [
        record_id("rotation", m.event.rotation_id, step, m.key) for m in said
    ]


def test_a_step_whose_facts_are_on_record_with_another_makes_an_event_only() -> None:
    out = builder().messages([message("issued", 1, recorded=False), message("overlap", 1)])
    assert [r.action for r in records(out)] == ["rotation.overlap"]
    steps = [one.topic.split(".")[2] for one in out if one.topic.startswith("pki.rotation.")]
    assert steps == ["issued", "overlap"]


def test_what_is_said_again_is_the_same_message() -> None:
    said = [message(step, n) for step in DONE + FAILED for n in range(5)]
    maker = builder()
    first, second = maker.messages(said), maker.messages(said)
    assert first == second
