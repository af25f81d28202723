"""Events of ca-signer become slots and certificates, whatever order or number they come in."""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from dataclasses import replace
from typing import Any

import pytest

from estcore.messages.envelope import encode
from estcore.messages.joined import join
from estcore.messages.topics import (
    ISSUED_TOPIC,
    PKI_EVENTS,
    RENEWAL_CONSUMER,
    certificate_topic,
)
from estcore.runtime.bus import Outgoing
from estcore.tlog.items import expanded
from estsuite_testing.platform import Platform
from estsuite_testing.renewal_bench import Bench
from renewal.export import export_certificates, list_slots

pytestmark = pytest.mark.integration


def scheduled(bench: Bench) -> dict[str, tuple[Any, ...]]:
    """Correlation id, due time and generation of each certificate on record as scheduled."""
    found: dict[str, tuple[Any, ...]] = {}
    for record in bench.records:
        if record.action != "renewal.scheduled":
            continue
        for fact in expanded(record.model_dump(mode="json", exclude_none=True)):
            said = fact["details"]
            facts = (fact["correlation_id"], said["due_at"], said["generation"])
            assert found.setdefault(fact["target"]["issuance_id"], facts) == facts
    return found


async def test_every_event_twice_makes_one_certificate_and_one_record(bench: Bench) -> None:
    fleet = [bench.issue() for _ in range(40)]
    async with bench.running():
        await bench.announce(*fleet, times=2)
        for one in fleet:
            await bench.slot_is(one, "idle")

        async def recorded() -> Any:
            return {i.event.id for i in fleet} <= scheduled(bench).keys()

        await bench.until(recorded, "audit records")
    assert await bench.database.fetchval("select count(*) from renewal.certificate") == 40
    row = await bench.slot(fleet[0])
    event = fleet[0].event
    life = event.not_after - event.issued_at
    assert abs(row["due_at"] - (event.issued_at + life * 2 / 3)) < dt.timedelta(milliseconds=1)
    assert row["generation"] == 1
    assert scheduled(bench)[event.id] == (event.correlation_id, row["due_at"].isoformat(), 1)


@pytest.mark.parametrize("renewed", [False, True])
async def test_a_certificate_that_ended_before_it_was_recorded_is_known(
    bench: Bench, *, renewed: bool
) -> None:
    """Its CA expired between signature and record; a good one takes its place."""
    first = bench.issue(age_s=300)
    short = bench.issue(after=first if renewed else None, age_s=5, lifetime_s=1)
    recorded_at = short.event.not_after + dt.timedelta(seconds=0.4)
    late = replace(short, event=short.event.model_copy(update={"issued_at": recorded_at}))
    async with bench.running():
        await bench.announce(*([first] if renewed else []), late, times=2)

        async def known() -> Any:
            return await bench.find_certificate(late)

        await bench.until(known, "the certificate")
        good = bench.issue(after=late)
        await bench.announce(good)

        async def has_place() -> Any:
            row = await bench.find_certificate(good)
            return row is not None and row["generation"] > 0

        await bench.until(has_place, "the good certificate")
    assert (await bench.slot(good))["not_after"] == (first if renewed else good).event.not_after


async def test_a_renewal_that_arrives_before_what_it_renews_ends_the_same(bench: Bench) -> None:
    first = bench.issue(age_s=300)
    second = bench.issue(after=first, age_s=200)
    third = bench.issue(after=second, age_s=100)
    async with bench.running():
        await bench.announce(third)
        await bench.slot_is(third, "idle")
        await bench.announce(first)
        await bench.slot_is(third, "overlap")
        await bench.announce(second)

        async def placed() -> Any:
            row = await bench.find_certificate(third)
            return row is not None and row["generation"] == 3

        await bench.until(placed, "generation 3")
    slot = await bench.slot(first)
    assert slot["active_id"] == second.event.id
    assert slot["next_id"] == third.event.id
    assert slot["generation"] == 2
    assert (await bench.certificate(second))["proof"] == "mtls_seen"


async def test_a_revocation_known_before_the_certificate_counts(bench: Bench) -> None:
    one = bench.issue()
    async with bench.running():
        await bench.revoke(one)
        await bench.announce(one)
        await bench.slot_is(one, "failed")
        other = bench.issue(slot_id=one.event.slot_id)
        await bench.announce(other)
        row = await bench.slot_is(one, "idle")
    assert row["active_id"] == other.event.id
    assert row["generation"] == 2
    assert (await bench.certificate(one))["state"] == "revoked"


async def test_a_certificate_that_is_held_and_released_goes_on(bench: Bench) -> None:
    one = bench.issue()
    async with bench.running():
        await bench.announce(one)
        await bench.slot_is(one, "idle")
        await bench.revoke(one, "certificateHold")
        await bench.revoke(one, "removeFromCRL")
        other = bench.issue()
        await bench.announce(other)
        await bench.slot_is(other, "idle")
        row = await bench.slot_is(one, "idle")
    assert row["active_id"] == one.event.id
    assert (await bench.certificate(one))["state"] == "active"


@pytest.mark.logs_errors("message dead-lettered")
async def test_an_unreadable_message_is_a_dead_letter_and_blocks_no_other(bench: Bench) -> None:
    good = bench.issue()
    poison = bench.issue(slot_id="no-uuid")
    async with bench.running():
        topic = certificate_topic("issued", "demo", "web")
        await bench.signer.publish_confirmed([Outgoing(topic, b"{}", str(uuid.uuid4()))])
        await bench.announce(poison, good)
        await bench.slot_is(good, "idle")

        async def buried() -> Any:
            query = "select attempts from renewal.failed_delivery"
            return (await bench.database.fetchval(query) or 0) > 5

        await bench.until(buried, "dead letter", timeout_s=30)


@pytest.mark.logs_errors("message dead-lettered")
async def test_a_poisoned_event_harms_no_other_of_its_message(
    bench: Bench, platform: Platform
) -> None:
    good = [bench.issue() for _ in range(6)]
    poison = bench.issue(slot_id="no-uuid")
    lines = [encode(one.event) for one in good]
    payload = join([*lines[:3], encode(poison.event), b"{", *lines[3:]])
    async with bench.running():
        await bench.signer.publish_confirmed([Outgoing(ISSUED_TOPIC, payload)] * 2)
        for one in good:
            await bench.slot_is(one, "idle")

        async def buried() -> Any:
            query = "select max(attempts) from renewal.failed_delivery"
            return (await bench.database.fetchval(query) or 0) > 5

        await bench.until(buried, "dead letter", timeout_s=30)

        async def acknowledged() -> bool:
            async with platform.administrator() as administrator:
                stream = administrator.client.jetstream()
                consumer = await stream.consumer_info(PKI_EVENTS, RENEWAL_CONSUMER)
            return bool(consumer.num_ack_pending == 0)

        await bench.until(acknowledged, "acknowledgement", timeout_s=30)
    for one in good:
        assert (await bench.certificate(one))["state"] == "active"


async def test_certificates_and_slots_can_be_exported(
    bench: Bench, tmp_path: Any, capsys: Any
) -> None:
    import json

    from estcore.runtime.database import Database

    one = bench.issue()
    async with bench.running():
        await bench.announce(one)
        await bench.slot_is(one, "idle")
    database = await Database.connect(bench.settings.database, "renewal", "renewal")
    try:
        assert await export_certificates(database, tmp_path / "out.jsonl") == 1
        await list_slots(database)
    finally:
        await database.close()
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {
        "issuance_id": one.event.id,
        "serial": one.event.serial,
        "fingerprint_sha256": one.event.fingerprint_sha256,
        "slot_id": one.event.slot_id,
        "state": "active",
    }


async def test_an_outage_of_postgres_loses_nothing(platform: Platform, bench: Bench) -> None:
    before, during = bench.issue(), bench.issue()
    async with bench.running():
        await bench.announce(before)
        await bench.slot_is(before, "idle")
        await bench.database.close()
        await platform.postgres.stop(immediate=True)
        await bench.announce(during)
        await asyncio.sleep(1.5)
        await platform.postgres.start()
        bench.database = await platform.postgres.superuser()
        await bench.slot_is(during, "idle", timeout_s=30)
    await bench.database.close()
