"""Certificates that may end without a successor: their slots end, and nothing raises an alarm."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Any

import pytest
from prometheus_client import REGISTRY

from estcore.messages.events import CertificateIssued
from estcore.runtime.database import Database
from estsuite_testing.renewal_bench import Bench, Issued, issue
from renewal.slot_metrics import count

pytestmark = pytest.mark.integration


def counted(step: str) -> float:
    return sample("est_renewal_steps_total", step=step)


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def issued(bench: Bench, expiry: str, **changes: Any) -> Issued:
    return bench.issue(expiry=expiry, **changes)


@pytest.mark.parametrize(
    ("expiry", "state", "step", "outcome"),
    [("expected", "ended", "ended", "success"), ("unexpected", "expired", "expired", "failure")],
)
async def test_a_slot_ends_as_its_profile_says(
    bench: Bench, expiry: str, state: str, step: str, outcome: str
) -> None:
    one = issued(bench, expiry)
    before = {name: counted(name) for name in ("ended", "expired")}
    await bench.announce(one, times=2)
    async with bench.running("renewal-0", "renewal-1"):
        await bench.slot_is(one, "idle")
        await bench.end_certificate(one)
        await bench.slot_is(one, state)
        event = await bench.step(one, step)
        assert event.old is not None
        assert event.old.fingerprint_sha256 == one.event.fingerprint_sha256
        await bench.announce(one)  # published again: says nothing new
        await asyncio.sleep(0.5)

    async def recorded() -> bool:
        return any(r.action == f"rotation.{step}" for r in bench.records)

    await bench.until(recorded, "the record")
    records = {r.record_id: r for r in bench.records if r.action == f"rotation.{step}"}
    (record,) = records.values()
    assert (record.outcome, record.severity) == (
        outcome,
        "info" if outcome == "success" else "error",
    )
    assert bench.steps(one) == [step]
    other = "expired" if step == "ended" else "ended"
    assert counted(step) > before[step]
    assert counted(other) == before[other]


async def test_no_stall_and_no_late_lease_where_an_end_is_expected(bench: Bench) -> None:
    """The pod is deleted in a rotation: its new certificate is never proven, nothing renews."""
    old, gone = issued(bench, "expected"), issued(bench, "expected", age_s=7000)
    control, late = issued(bench, "unexpected"), issued(bench, "unexpected", age_s=7000)
    await bench.announce(old, control)
    async with bench.running():
        for one in (old, control):
            await bench.slot_is(one, "idle")
            await bench.announce(issued(bench, one.event.expiry, after=one))
            await bench.slot_is(one, "overlap")
            await bench.end_certificate(one, dt.timedelta(seconds=5))
        await bench.step(control, "stalled")
        await bench.announce(gone, late)
        for one in (gone, late):
            await bench.step(one, "due")
        await bench.expire_leases()
        await bench.step(late, "lease_expired")
        await bench.slot_is(gone, "idle")
        await asyncio.sleep(1)
    assert "stalled" not in bench.steps(old)
    assert "lease_expired" not in bench.steps(gone)


async def test_an_identity_whose_end_is_expected_is_renewed_all_the_same(bench: Bench) -> None:
    old = issued(bench, "expected", age_s=7000)
    await bench.announce(old)
    async with bench.running():
        await bench.step(old, "due")
        new = issued(bench, "expected", after=old)
        await bench.announce(new)
        await bench.slot_is(old, "overlap")
        assert (await bench.acknowledge(None, new)).accepted
        await bench.slot_is(new, "idle")
        await bench.end_certificate(new)
        await bench.slot_is(new, "ended")
        again = issued(bench, "expected", after=new)
        await bench.announce(again)
        slot = await bench.slot_is(again, "idle")
    assert slot["active_id"] == again.event.id
    assert bench.steps(old)[:4] == ["due", "issued", "overlap", "activated"]


async def test_the_newest_certificate_says_whether_its_end_is_expected(bench: Bench) -> None:
    """A profile that was changed counts from the next certificate on."""
    old = issued(bench, "unexpected")
    await bench.announce(old)
    async with bench.running():
        await bench.slot_is(old, "idle")
        new = issued(bench, "expected", after=old)
        await bench.announce(new)
        await bench.slot_is(old, "overlap")
        assert (await bench.acknowledge(None, new)).accepted
        await bench.slot_is(new, "idle")
        await bench.end_certificate(new)
        await bench.slot_is(new, "ended")
    assert "expired" not in bench.steps(new)


async def test_the_gauge_of_short_lives_leaves_out_expected_ends(bench: Bench) -> None:
    ending: dict[str, Any] = {"age_s": 7190, "lifetime_s": 7200.0}
    expected = issued(bench, "expected", **ending)
    database = await Database.connect(bench.settings.database, "renewal", "renewal")
    try:
        async with bench.running():
            await bench.announce(expected)
            await bench.step(expected, "due")
            await count(database)
            assert sample("est_renewal_slots_short", share="0.10") == 0
            unexpected = issued(bench, "unexpected", **ending)
            await bench.announce(unexpected)
            await bench.step(unexpected, "due")
            await count(database)
            assert sample("est_renewal_slots_short", share="0.10") == 1
            await bench.end_certificate(expected)
            await bench.slot_is(expected, "ended")
            await count(database)
            assert sample("est_renewal_slots", state="ended") == 1
    finally:
        await database.close()


def test_events_of_an_earlier_version_end_unexpectedly() -> None:
    raw = issue().event.model_dump(mode="json")
    del raw["expiry"]
    assert CertificateIssued.model_validate(raw).expiry == "unexpected"
