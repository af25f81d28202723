"""Whole rotations against PostgreSQL and NATS, with everything that may go wrong on the way."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from estcore.ids import record_id, rotation_id
from estcore.messages.topics import PROOF_REFUSALS_TOPIC
from estcore.runtime.settings import BusSettings
from estsuite_testing.platform import Platform
from estsuite_testing.renewal_bench import Bench

pytestmark = pytest.mark.integration
OVERDUE: dict[str, Any] = {"age_s": 6000, "lifetime_s": 7200}
"""Issued long ago: two thirds of its lifetime are over."""
LATE: dict[str, Any] = {"age_s": 65_000, "lifetime_s": 72_000}
"""The same, and its client should have renewed it by now: two hours are left."""


async def rotated(bench: Bench) -> tuple[Any, Any, Any]:
    """Bring a slot into overlap; returns old, new and the due event."""
    old = bench.issue(**OVERDUE)
    await bench.announce(old)
    due = await bench.step(old, "due")
    new = bench.issue(after=old)
    await bench.announce(new)
    await bench.step(old, "overlap")
    return old, new, due


async def test_a_rotation_from_due_to_deprecated(bench: Bench) -> None:
    async with bench.running():
        old, new, due = await rotated(bench)
        assert due.old.fingerprint_sha256 == old.event.fingerprint_sha256
        assert due.rotation_id == rotation_id(old.event.slot_id, 2)
        assert due.generation == 2
        assert due.reason == "lifetime"
        assert due.respond_by < old.event.not_after
        answer = await bench.acknowledge(new.proof(due.rotation_id), new)
        assert answer.accepted
        activated = await bench.step(old, "activated")
        assert activated.proof == "agent_ack"
        assert activated.new is not None
        assert activated.new.fingerprint_sha256 == new.event.fingerprint_sha256
        row = await bench.slot_is(old, "idle")
        assert row["active_id"] == new.event.id
        assert row["generation"] == 2
        await bench.step(old, "deprecated")

        async def on_record() -> Any:
            records = [r for r in bench.records if r.correlation_id == due.rotation_id]
            # "issued" is on record as the overlap that began with it, and as what ca-signer did.
            return {r.action for r in records} == {
                "rotation.due",
                "rotation.overlap",
                "rotation.activated",
                "rotation.deprecated",
            }

        await bench.until(on_record, "audit records")
    assert bench.steps(old) == ["due", "issued", "overlap", "activated", "deprecated"]
    assert (await bench.certificate(old))["state"] == "deprecated"
    wanted = record_id("rotation", due.rotation_id, "due", str(due.fence))
    assert wanted in {r.record_id for r in bench.records}


async def test_an_event_ends_the_pause_of_an_idle_scheduler(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("renewal.dispatch.scheduler._IDLE", 100_000)
    async with bench.running():
        await asyncio.sleep(1)  # ten looks that find nothing
        old = bench.issue(**OVERDUE)
        await bench.announce(old)
        await bench.step(old, "due")


async def test_the_old_certificate_retires_at_its_end(bench: Bench) -> None:
    async with bench.running():
        old, new, due = await rotated(bench)
        assert (await bench.acknowledge(new.proof(due.rotation_id), new)).accepted
        await bench.step(old, "deprecated")
        await bench.end_certificate(old)
        retired = await bench.step(old, "retired")
    assert retired.disposition == "expired"
    assert (await bench.certificate(old))["state"] == "retired"


async def test_a_replaced_certificate_that_is_revoked_is_retired_and_nothing_else_happens(
    bench: Bench,
) -> None:
    """As ca-signer does where the profile says so, after the overlap."""
    async with bench.running():
        old, new, due = await rotated(bench)
        assert (await bench.acknowledge(new.proof(due.rotation_id), new)).accepted
        await bench.step(old, "deprecated")
        await bench.revoke(old, "superseded")
        retired = await bench.step(old, "retired")
        row = await bench.slot_is(old, "idle")
    assert retired.disposition == "revoked"
    assert row["active_id"] == new.event.id
    assert bench.steps(old)[-1] == "retired"


async def test_two_replicas_dispatch_every_slot_once(bench: Bench) -> None:
    fleet = [bench.issue(**OVERDUE, priority=p) for p in ("critical", "normal", "low") * 40]
    async with bench.running("renewal-0", "renewal-1"):
        await bench.announce(*fleet)
        for one in fleet:
            await bench.step(one, "due")
        await asyncio.sleep(0.5)
    for one in fleet:
        row = await bench.slot(one)
        assert (row["fence"], row["announced_fence"], row["attempts"]) == (1, 1, 1)
        assert bench.steps(one) == ["due"]


async def test_agents_that_do_not_answer_keep_neither_urgent_ones_nor_those_that_do_waiting(
    bench: Bench,
) -> None:
    """Of ten places normal ones get eight; each answer, and time, gives one back."""
    scheduler = {"max_unanswered": 10, "answer_s": 4}
    changed = bench.settings.scheduler.model_copy(update=scheduler)
    bench.settings = bench.settings.model_copy(update={"scheduler": changed})
    fleet = [bench.issue(**OVERDUE, priority="normal") for _ in range(20)]
    urgent = bench.issue(**OVERDUE, priority="critical")

    async def dispatched(count: int) -> list[Any] | None:
        found = [one for one in fleet if bench.steps(one)]
        return found if len(found) >= count else None

    async with bench.running():
        await bench.announce(*fleet)
        first = await bench.until(lambda: dispatched(8), "dispatch of eight", timeout_s=3)
        await asyncio.sleep(0.5)
        assert len(await dispatched(0) or []) == 8
        await bench.announce(urgent)
        await bench.step(urgent, "due", timeout_s=2)
        # Two answers are room for one more: the urgent one has a place of its own.
        await bench.announce(*(bench.issue(after=one) for one in first[:2]))
        await bench.until(lambda: dispatched(9), "dispatch of another", timeout_s=2)
        await bench.until(lambda: dispatched(20), "dispatch of all")


async def test_a_dispatch_whose_event_was_lost_in_a_crash_is_published_again(
    bench: Bench,
) -> None:
    one = bench.issue(**OVERDUE)
    async with bench.running():
        await bench.announce(one)
        first = await bench.step(one, "due")
    message_id = bench.message_ids[0]
    bench.events.clear()
    bench.message_ids.clear()
    # As after a crash between the claim and its announcement.
    await bench.forget_dispatch_announcements()
    async with bench.running("renewal-1"):

        async def announced() -> Any:
            return (await bench.slot(one))["announced_fence"] == 1

        await bench.until(announced, "second announcement")
        again = await bench.step(one, "due")
    assert again.id == first.id
    assert bench.message_ids == [message_id]


async def test_steps_left_by_a_crash_are_published_under_the_same_ids(bench: Bench) -> None:
    async with bench.running():
        old, new, _ = await rotated(bench)
    before = {e.step: e.id for e in bench.events}
    bench.events.clear()
    await bench.forget_step_announcements()
    async with bench.running():
        await bench.step(old, "overlap")
    assert {e.step: e.id for e in bench.events} == {s: before[s] for s in ("issued", "overlap")}
    assert new.event.id is not None


async def test_without_an_answer_the_slot_is_published_again_after_a_pause(bench: Bench) -> None:
    one = bench.issue(**LATE)
    async with bench.running():
        await bench.announce(one)
        first = await bench.step(one, "due")
        await bench.expire_leases()
        lapsed = await bench.step(one, "lease_expired")
        row = await bench.slot_is(one, "idle")
        # Normal priority: 2.5 to 5 minutes.
        pause = row["next_attempt_at"] - row["last_error_at"]
        assert dt.timedelta(seconds=150) <= pause <= dt.timedelta(seconds=300)
        await bench.end_pauses()

        async def second() -> Any:
            return [e for e in bench.events if e.step == "due" and e.fence == 2]

        (again,) = await bench.until(second, "second dispatch")
    assert lapsed.fence == 1
    assert (again.rotation_id, again.attempt) == (first.rotation_id, 2)
    assert again.id != first.id


async def test_a_repeated_proof_is_accepted_and_changes_nothing(bench: Bench) -> None:
    async with bench.running():
        old, new, due = await rotated(bench)
        proof = new.proof(due.rotation_id)
        assert (await bench.acknowledge(proof, new)).accepted
        await bench.step(old, "deprecated")
        before = await bench.announced(new)
        assert (await bench.acknowledge(proof, new)).accepted
        assert await bench.announced(new) == before
    assert bench.steps(old).count("activated") == 1


async def test_the_connection_with_the_new_certificate_is_proof_of_use(bench: Bench) -> None:
    async with bench.running():
        old, new, due = await rotated(bench)
        for _ in range(2):
            assert (await bench.acknowledge(None, new)).accepted
        activated = await bench.step(old, "activated")
        assert activated.proof == "mtls_seen"
        assert activated.rotation_id == due.rotation_id
        first = (await bench.certificate(new))["activated_at"]
        await bench.step(old, "deprecated")
        again = bench.issue(after=new)
        await bench.announce(again)
        await bench.slot_is(old, "overlap")
        # The next enrollment proves it too, later: the first proof stays.
        assert (await bench.certificate(new))["activated_at"] == first
        ended = await bench.acknowledge(None, old)
        assert (ended.accepted, ended.code) == (False, "rotation.ended")
    assert bench.steps(old)[:5] == ["due", "issued", "overlap", "activated", "deprecated"]


async def test_where_proofs_must_be_signed_a_connection_is_none(bench: Bench) -> None:
    rotation = bench.settings.rotation.model_copy(update={"require_signed_proof": True})
    bench.settings = bench.settings.model_copy(update={"rotation": rotation})
    async with bench.running():
        old, new, due = await rotated(bench)
        answer = await bench.acknowledge(None, new)
        assert (answer.accepted, answer.code) == (False, "proof.unsigned")
        assert (await bench.acknowledge(new.proof(due.rotation_id), new)).accepted
        assert (await bench.step(old, "activated")).proof == "agent_ack"


async def test_a_first_certificate_has_nothing_to_prove(bench: Bench) -> None:
    one = bench.issue()
    async with bench.running():
        await bench.announce(one)
        await bench.slot_is(one, "idle")
        assert (await bench.acknowledge(None, one)).accepted
    assert bench.steps(one) == []


async def test_a_proof_that_comes_before_its_certificate_waits_for_it(bench: Bench) -> None:
    old = bench.issue()
    async with bench.running():
        await bench.announce(old)
        await bench.slot_is(old, "idle")
        new = bench.issue(after=old)
        proving = asyncio.create_task(bench.acknowledge(None, new))
        await asyncio.sleep(0.2)
        assert not proving.done()
        await bench.announce(new)
        assert (await proving).accepted
        assert (await bench.step(old, "activated")).proof == "mtls_seen"


@pytest.mark.parametrize("revoked", [True, False])
async def test_a_connection_of_an_ended_certificate_proves_nothing(
    bench: Bench, revoked: bool
) -> None:
    async with bench.running():
        old, new, _ = await rotated(bench)
        if revoked:
            await bench.revoke(new)
            await bench.slot_is(old, "idle")
        else:
            await bench.end_certificate(new)
        answer = await bench.acknowledge(None, new)
    assert (answer.accepted, answer.code) == (False, "proof.peer")
    assert "activated" not in bench.steps(old)


async def test_a_lease_that_ends_within_the_window_of_the_client_is_no_fault(bench: Bench) -> None:
    """A client that follows its renewal information may not have begun yet."""
    one = bench.issue(**OVERDUE)
    async with bench.running():
        await bench.announce(one)
        await bench.step(one, "due")
        await bench.expire_leases()
        await bench.slot_is(one, "idle")
        await bench.end_pauses()

        async def second() -> Any:
            return [e for e in bench.events if e.step == "due" and e.fence == 2]

        await bench.until(second, "a second due event")
    assert "lease_expired" not in bench.steps(one)
    assert (await bench.slot(one))["last_error_class"] is None


async def test_a_client_that_polls_is_not_notified_again_within_its_window(bench: Bench) -> None:
    one = bench.issue(**OVERDUE, mode="poll")
    async with bench.running():
        await bench.announce(one)
        row = await bench.slot_is(one, "dispatched")
    left = one.event.not_after - row["due_at"]
    assert row["lease_until"] >= row["due_at"] + left * 0.6


async def test_proofs_that_prove_nothing_are_refused(bench: Bench) -> None:
    async with bench.running():
        old, new, due = await rotated(bench)
        stranger = bench.issue()
        await bench.announce(stranger)
        await bench.slot_is(stranger, "idle")
        rotation = due.rotation_id
        other_key = ec.generate_private_key(ec.SECP256R1())
        unsigned = "eyJhbGciOiJub25lIn0." + new.proof(rotation).split(".")[1] + "."
        cases = [
            (new.proof(rotation, key=other_key), new, "proof.signature"),
            (new.proof(rotation, key=old.key), new, "proof.signature"),
            (new.proof(rotation, age_s=400), new, "proof.time"),
            (new.proof(rotation, age_s=-400), new, "proof.time"),
            (new.proof(rotation), stranger, "rotation.unknown"),
            (new.proof(rotation, serial="01ff"), new, "rotation.unknown"),
            (new.proof(rotation_id(old.event.slot_id, 3)), new, "rotation.other"),
            (unsigned, new, "proof.malformed"),
            (unsigned + "AA", new, "proof.algorithm"),
            ("not.a.jws", new, "proof.malformed"),
        ]
        for proof, peer, code in cases:
            answer = await bench.acknowledge(proof, peer)
            assert (answer.accepted, answer.code) == (False, code)
        assert (await bench.slot(old))["state"] == "overlap"

        async def on_record() -> Any:
            return sum(r.action == "rotation.proof" for r in bench.records) == len(cases)

        await bench.until(on_record, "records of refusals")


async def test_refused_proofs_take_no_room_of_the_stream_that_issuing_waits_for(
    bench: Bench,
) -> None:
    async with bench.running():
        _, new, _ = await rotated(bench)
        assert not (await bench.acknowledge("not.a.jws", new)).accepted

        async def on_record() -> Any:
            return {topic for action, topic in bench.record_topics if action == "rotation.proof"}

        await bench.until(on_record, "the record of the refusal")
        assert await on_record() == {PROOF_REFUSALS_TOPIC}


async def test_enrolling_with_the_new_certificate_is_proof_of_use(bench: Bench) -> None:
    async with bench.running():
        old, new, _ = await rotated(bench)
        third = bench.issue(after=new)
        await bench.announce(third)
        activated = await bench.step(old, "activated")
    assert activated.proof == "mtls_seen"
    assert activated.new is not None
    assert activated.new.serial == new.event.serial


async def test_without_proof_a_rotation_stalls_and_nothing_is_ever_deprecated(bench: Bench) -> None:
    async with bench.running():
        old, new, _ = await rotated(bench)
        await bench.end_certificate(old, dt.timedelta(seconds=4))
        stalled = await bench.step(old, "stalled")
        assert stalled.seconds_to_expiry is not None
        assert 0 <= stalled.seconds_to_expiry <= 4
        retired = await bench.step(old, "retired")
        row = await bench.slot_is(old, "idle")
    assert retired.disposition == "expired"
    assert row["active_id"] == new.event.id
    assert bench.steps(old) == ["due", "issued", "overlap", "stalled", "retired"]


async def test_an_unrenewed_slot_expires_and_returns_with_a_new_certificate(
    bench: Bench,
) -> None:
    one = bench.issue(age_s=70, lifetime_s=72, reaction_s=1)
    async with bench.running():
        await bench.announce(one)
        expired = await bench.step(one, "expired")
        assert (await bench.slot(one))["state"] == "expired"
        await asyncio.sleep(0.5)
        back = bench.issue(slot_id=one.event.slot_id)
        await bench.announce(back)
        row = await bench.slot_is(one, "idle")
    assert expired.old is not None
    assert expired.old.serial == one.event.serial
    assert (row["active_id"], row["generation"]) == (back.event.id, 2)


async def test_leases_of_short_certificates_last_seconds(bench: Bench) -> None:
    one = bench.issue(age_s=80, lifetime_s=120, reaction_s=1)
    async with bench.running():
        await bench.announce(one)
        due = await bench.step(one, "due")
    row = await bench.slot(one)
    assert row["lease_until"] - row["dispatched_at"] < dt.timedelta(seconds=11)
    assert due.respond_by == row["lease_until"]


async def test_a_revoked_next_certificate_makes_the_slot_due_again(bench: Bench) -> None:
    async with bench.running():
        old, new, _ = await rotated(bench)
        await bench.revoke(new)
        row = await bench.slot_is(old, "idle")
    assert row["active_id"] == old.event.id
    assert row["next_id"] is None


async def test_every_step_is_published_after_an_outage_of_the_bus(
    platform: Platform, bench: Bench
) -> None:
    assert isinstance(platform.bus("renewal"), BusSettings)
    one = bench.issue(**LATE)
    async with bench.running():
        await bench.announce(one)
        await bench.slot_is(one, "dispatched")
        await bench.step(one, "due")
        await platform.nats.stop()
        await bench.expire_leases()
        await bench.slot_is(one, "idle")
        await platform.nats.start()
        await bench.step(one, "lease_expired", timeout_s=30)
