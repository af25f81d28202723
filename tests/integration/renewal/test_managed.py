"""Slots that ca-signer renews by itself: what renewal asks, and what becomes of a refusal."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from estcore.clock import SystemClock
from estcore.est.renewal_info import cert_id, parse_cert_id
from estcore.ids import rotation_id, uuid7
from estcore.messages.envelope import encode
from estcore.messages.events import RenewalRefused, RenewalRequested
from estcore.messages.renewal_info import RenewalInfoEntry, decode_entries, entry_key
from estcore.messages.topics import (
    PKI_RENEWAL_INFO,
    RENEWAL_INFO_COMPLETE_TOPIC,
    RENEWAL_INFO_TOPICS,
    RENEWAL_REQUESTED_TOPIC,
    certificate_topic,
)
from estcore.pki.parsers import load_certificate
from estcore.runtime.bus import Outgoing
from estcore.runtime.stored_messages import stored_from
from estsuite_testing.renewal_bench import Bench, Issued

pytestmark = pytest.mark.integration
LIFETIME_S = 72_000
DUE_S = 60_000
"""Such a certificate is due."""


def managed(bench: Bench, *, age_s: float = DUE_S, **changes: Any) -> Issued:
    return bench.issue(mode="managed", age_s=age_s, lifetime_s=LIFETIME_S, **changes)


def refusal(issued: Issued, fence: int, **changes: Any) -> RenewalRefused:
    event = issued.event
    values: dict[str, Any] = {
        "id": uuid7(),
        "source": "ca-signer/test",
        "time": SystemClock().now(),
        "correlation_id": "managed",
        "tenant": event.tenant,
        "service": event.service,
        "slot_id": event.slot_id,
        "rotation_id": rotation_id(event.slot_id, 2),
        "fence": fence,
        "kind": "ProfileViolation",
        "code": "managed.key_too_old",
        "reason": "the key is too old",
    }
    return RenewalRefused.model_validate(values | changes)


async def refuse(bench: Bench, *events: RenewalRefused) -> None:
    """Publish as ca-signer, each twice past JetStream's memory of ids."""
    for event in events * 2:
        topic = certificate_topic("renewal-refused", event.tenant, event.service)
        await bench.signer.publish_confirmed([Outgoing(topic, encode(event), uuid7())])


async def entry(bench: Bench, issued: Issued) -> RenewalInfoEntry | None:
    """Return the newest renewal information of a certificate on the stream."""
    key = entry_key(parse_cert_id(cert_id(load_certificate(issued.der))))
    newest, following = None, 1
    while following:
        stored, following = await stored_from(
            bench.frontend, PKI_RENEWAL_INFO, RENEWAL_INFO_TOPICS, following
        )
        for message in stored:
            if message.topic == RENEWAL_INFO_COMPLETE_TOPIC:
                continue
            for one in decode_entries(message.topic.rsplit(".", 1)[1], message.payload):
                if one.key == key and (newest is None or one.version > newest.version):
                    newest = one
    return newest


async def informed(bench: Bench, issued: Issued, state: str | None) -> None:
    async def there() -> bool:
        found = await entry(bench, issued)
        return found is not None and found.managed == state

    await bench.until(there, f"renewal information: {state}")


async def test_a_due_slot_is_requested_and_no_agent_is_notified(bench: Bench) -> None:
    issued = managed(bench)
    await bench.announce(issued, times=2)
    async with bench.running("renewal-0", "renewal-1"):
        event = await bench.step(issued, "requested")
        assert (event.mode, event.fence) == ("managed", 1)
        assert event.rotation_id == rotation_id(issued.event.slot_id, 2)
        assert event.old is not None
        assert event.old.fingerprint_sha256 == issued.event.fingerprint_sha256
        await informed(bench, issued, "scheduled")
        await asyncio.sleep(0.5)
    assert bench.steps(issued) == ["requested"]
    assert "rotation.requested" in {r.action for r in bench.records}


async def test_a_request_without_an_answer_is_sent_again_for_the_same_rotation(
    bench: Bench,
) -> None:
    issued = managed(bench)
    await bench.announce(issued)
    async with bench.running():
        first = await bench.step(issued, "requested")
        slot = await bench.slot(issued)
        lease = slot["lease_until"] - slot["dispatched_at"]
        assert lease.total_seconds() == 60
        await bench.expire_leases()
        await bench.slot_is(issued, "idle")
        await bench.end_pauses()

        async def again() -> bool:
            return len({e.id for e in bench.events if e.step == "requested"}) > 1

        await bench.until(again, "a second request")
    second = bench.events[-1]
    assert (second.rotation_id, second.fence) == (first.rotation_id, first.fence + 1)


async def test_a_renewed_certificate_is_available_until_it_is_proven(bench: Bench) -> None:
    old = managed(bench)
    await bench.announce(old)
    async with bench.running():
        await bench.step(old, "requested")
        new = managed(bench, after=old, age_s=0)
        await bench.announce(new)
        await bench.slot_is(old, "overlap")
        await informed(bench, old, "available")
        await informed(bench, new, "scheduled")
        assert (await bench.acknowledge(None, new)).accepted
        await bench.slot_is(new, "idle")
        await informed(bench, old, "available")
    assert bench.steps(old)[:4] == ["requested", "issued", "overlap", "activated"]


async def test_a_refusal_ends_the_rotation_once(bench: Bench) -> None:
    issued = managed(bench)
    await bench.announce(issued)
    async with bench.running():
        await bench.step(issued, "requested")
        await refuse(bench, refusal(issued, 1))
        slot = await bench.slot_is(issued, "failed")
        assert slot["last_error_class"] == "managed.key_too_old"
        failed = await bench.step(issued, "failed")
        assert failed.error_code == "managed.key_too_old"
        # Its client renews by itself: nothing else does.
        await informed(bench, issued, None)
        await asyncio.sleep(0.5)
        assert (await bench.slot(issued))["fence"] == 1
    assert bench.steps(issued) == ["requested", "failed"]

    async def recorded() -> bool:
        return any(r.action == "rotation.failed" for r in bench.records)

    await bench.until(recorded, "the record of the refusal")
    records = {r.record_id: r for r in bench.records if r.action == "rotation.failed"}
    (record,) = records.values()
    assert (record.severity, record.outcome) == ("error", "failure")
    assert (record.details or {})["error_code"] == "managed.key_too_old"


@pytest.mark.parametrize("why", ["earlier request", "renewed meanwhile", "not managed"])
async def test_a_refusal_of_something_else_changes_nothing(bench: Bench, why: str) -> None:
    issued = managed(bench) if why != "not managed" else bench.issue(age_s=7000)
    await bench.announce(issued)
    async with bench.running():
        await bench.step(issued, "requested" if why != "not managed" else "due")
        fence, state = 1, "dispatched"
        if why == "earlier request":
            fence = 0
        elif why == "renewed meanwhile":
            await bench.announce(managed(bench, after=issued, age_s=0))
            await bench.slot_is(issued, "overlap")
            state = "overlap"
        await refuse(bench, refusal(issued, fence))
        await asyncio.sleep(1)
        assert (await bench.slot(issued))["state"] == state
    assert "failed" not in bench.steps(issued)


@pytest.mark.parametrize("by", ["its client", "an operator"])
async def test_a_failed_slot_goes_on_when_its_client_or_an_operator_renews(
    bench: Bench, by: str
) -> None:
    issued = managed(bench)
    await bench.announce(issued)
    async with bench.running():
        await bench.step(issued, "requested")
        await refuse(bench, refusal(issued, 1))
        await bench.slot_is(issued, "failed")
        if by == "its client":
            await bench.announce(managed(bench, after=issued, age_s=0))
            await bench.slot_is(issued, "overlap")
            return
        event, now = issued.event, SystemClock().now()
        request = RenewalRequested(
            id=uuid7(),
            source="ca-signer/test",
            time=now,
            correlation_id="campaign",
            campaign_id="campaign",
            tenant=event.tenant,
            service=event.service,
            issuer_id=event.issuer_id,
            serial=event.serial,
            fingerprint_sha256=event.fingerprint_sha256,
            not_after=event.not_after,
            reason="policy_change",
            requested_at=now,
        )
        out = Outgoing(RENEWAL_REQUESTED_TOPIC, encode(request), uuid7())
        await bench.signer.publish_confirmed([out])
        await bench.slot_is(issued, "dispatched")
        assert (await bench.slot(issued))["fence"] == 2


async def test_a_repeated_event_does_not_revive_a_failed_slot(bench: Bench) -> None:
    issued = managed(bench)
    await bench.announce(issued)
    async with bench.running():
        await bench.step(issued, "requested")
        await refuse(bench, refusal(issued, 1))
        await bench.slot_is(issued, "failed")
        await bench.announce(issued, times=3)
        await asyncio.sleep(1)
        assert (await bench.slot(issued))["state"] == "failed"


async def test_a_failed_slot_ends_with_its_certificate(bench: Bench) -> None:
    issued = managed(bench)
    await bench.announce(issued)
    async with bench.running():
        await bench.step(issued, "requested")
        await refuse(bench, refusal(issued, 1))
        await bench.slot_is(issued, "failed")
        await bench.end_certificate(issued)
        await bench.slot_is(issued, "expired")
        await bench.step(issued, "expired")
