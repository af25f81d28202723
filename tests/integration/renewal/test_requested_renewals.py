"""Renewals that campaigns request, on real servers: twice, out of order, before and after proofs."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from estcore.clock import SystemClock
from estcore.est.renewal_info import cert_id, parse_cert_id
from estcore.ids import uuid7
from estcore.messages.envelope import encode
from estcore.messages.events import RenewalRequested
from estcore.messages.joined import join
from estcore.messages.renewal_info import RenewalInfoEntry, decode_entries, entry_key
from estcore.messages.topics import (
    PKI_RENEWAL_INFO,
    RENEWAL_INFO_COMPLETE_TOPIC,
    RENEWAL_INFO_TOPICS,
    RENEWAL_REQUESTED_TOPIC,
)
from estcore.pki.parsers import load_certificate
from estcore.runtime.bus import Outgoing
from estcore.runtime.stored_messages import stored_from
from estsuite_testing.renewal_bench import Bench, Issued

pytestmark = pytest.mark.integration
URL = "https://ca.test/incidents/17"
LIFETIME_S = 72_000


def requested(issued: Issued, **changes: Any) -> RenewalRequested:
    event, now = issued.event, SystemClock().now()
    values: dict[str, Any] = {
        "id": uuid7(),
        "source": "ca-signer/test",
        "time": now,
        "correlation_id": "campaign",
        "campaign_id": "campaign",
        "tenant": event.tenant,
        "service": event.service,
        "issuer_id": event.issuer_id,
        "serial": event.serial,
        "fingerprint_sha256": event.fingerprint_sha256,
        "not_after": event.not_after,
        "reason": "incident",
        "requested_at": now,
        "explanation_url": URL,
    }
    return RenewalRequested.model_validate(values | changes)


async def request(bench: Bench, *events: RenewalRequested) -> None:
    """Publish requests as ca-signer, joined and twice, past JetStream's own memory of ids."""
    payload = join([encode(event) for event in events])
    for _ in range(2):
        await bench.signer.publish_confirmed([Outgoing(RENEWAL_REQUESTED_TOPIC, payload, uuid7())])


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


async def informed(bench: Bench, issued: Issued, reason: str) -> RenewalInfoEntry:
    async def there() -> RenewalInfoEntry | None:
        found = await entry(bench, issued)
        return found if found is not None and found.reason == reason else None

    return await bench.until(there, f"renewal information with reason {reason}")


async def due_events(bench: Bench, issued: Issued) -> list[Any]:
    return [e for e in bench.events if e.slot_id == issued.event.slot_id and e.step == "due"]


async def test_a_requested_renewal_is_due_at_once_with_reason_window_and_url(bench: Bench) -> None:
    one, other = bench.issue(lifetime_s=LIFETIME_S), bench.issue(lifetime_s=LIFETIME_S)
    renew_by = (SystemClock().now() + dt.timedelta(minutes=5)).replace(microsecond=0)
    async with bench.running("renewal-0", "renewal-1"):
        await bench.announce(one, other)
        for issued in (one, other):
            await bench.slot_is(issued, "idle")
        await request(
            bench, requested(one), requested(other, renew_by=renew_by, reason="ca_rollover")
        )
        due = await bench.step(one, "due")
        assert (due.reason, due.explanation_url) == ("incident", URL)
        # Without an end of the window it is over at once: the pace spreads the fleet.
        over = await informed(bench, one, "incident")
        assert over.end <= SystemClock().now().timestamp() + 1
        assert over.url == URL
        due = await bench.step(other, "due")
        assert (due.reason, due.renew_by) == ("ca_rollover", renew_by)
        assert (await informed(bench, other, "ca_rollover")).end == int(renew_by.timestamp())
        # Renewed: the next certificate has its own time, and a late repetition changes nothing.
        new = bench.issue(after=one, lifetime_s=LIFETIME_S)
        await bench.announce(new)
        await bench.step(one, "overlap")
        assert (await bench.acknowledge(None, new)).accepted
        await bench.slot_is(one, "idle")
        await request(bench, requested(one))
        control = bench.issue(lifetime_s=LIFETIME_S)
        await bench.announce(control)
        await bench.slot_is(control, "idle")
        slot = await bench.slot(one)
    assert (slot["state"], slot["due_reason"]) == ("idle", None)
    assert slot["due_at"] > SystemClock().now()
    assert len({e.id for e in await due_events(bench, one)}) == 1
    assert not await bench.database.fetch("select from renewal.renewal_request")


async def test_a_request_before_its_certificate_is_kept_until_that_comes(bench: Bench) -> None:
    one = bench.issue(lifetime_s=LIFETIME_S)
    async with bench.running():
        await request(bench, requested(one))

        async def kept() -> bool:
            return bool(await bench.database.fetch("select from renewal.renewal_request"))

        await bench.until(kept, "the request")
        await bench.announce(one)
        await bench.slot_is(one, "idle")
        await _recheck(bench)
        due = await bench.step(one, "due")
        assert due.reason == "incident"
        await informed(bench, one, "incident")
    assert not await bench.database.fetch("select from renewal.renewal_request")


async def test_a_certificate_that_is_not_proven_has_its_window_at_once_and_is_due_when_it_is(
    bench: Bench,
) -> None:
    old = bench.issue(lifetime_s=LIFETIME_S)
    async with bench.running():
        await bench.announce(old)
        await bench.slot_is(old, "idle")
        new = bench.issue(after=old, lifetime_s=LIFETIME_S)
        await bench.announce(new)
        await bench.slot_is(old, "overlap")
        await request(bench, requested(new))
        assert (await informed(bench, new, "incident")).url == URL
        assert not await due_events(bench, old)
        assert (await bench.acknowledge(None, new)).accepted
        await bench.slot_is(old, "idle")
        await _recheck(bench)
        due = await bench.step(old, "due")
        assert (due.reason, due.old and due.old.serial) == ("incident", new.event.serial)
    assert not await bench.database.fetch("select from renewal.renewal_request")


async def test_nothing_is_renewed_whose_certificate_was_replaced_or_revoked(bench: Bench) -> None:
    old, revoked = bench.issue(lifetime_s=LIFETIME_S), bench.issue(lifetime_s=LIFETIME_S)
    async with bench.running():
        await bench.announce(old, revoked)
        for issued in (old, revoked):
            await bench.slot_is(issued, "idle")
        await bench.revoke(revoked)
        await bench.slot_is(revoked, "failed")
        await bench.announce(bench.issue(after=old, lifetime_s=LIFETIME_S))
        await bench.slot_is(old, "overlap")
        last = bench.issue(lifetime_s=LIFETIME_S)
        await bench.announce(last)
        await bench.slot_is(last, "idle")
        await request(bench, requested(old), requested(revoked), requested(last))
        await bench.step(last, "due")
        assert not await due_events(bench, old)
        assert not await due_events(bench, revoked)
    assert not await bench.database.fetch("select from renewal.renewal_request")


async def test_of_two_campaigns_the_one_that_ends_first_counts_in_any_order(bench: Bench) -> None:
    slots = [bench.issue(lifetime_s=LIFETIME_S) for _ in range(2)]
    now = SystemClock().now()
    patient = {"reason": "operator", "renew_by": now + dt.timedelta(hours=2)}
    urgent = {"reason": "incident", "renew_by": now + dt.timedelta(minutes=1)}
    async with bench.running():
        await bench.announce(*slots)
        for issued, order in zip(slots, ((patient, urgent), (urgent, patient)), strict=True):
            await bench.slot_is(issued, "idle")
            for changes in order:
                await request(bench, requested(issued, **changes))
            await bench.step(issued, "due")
            await informed(bench, issued, "incident")

            async def applied(issued: Issued = issued) -> bool:
                return bool((await bench.slot(issued))["due_reason"] == "incident")

            await bench.until(applied, "the urgent campaign")


async def test_a_slot_that_is_due_already_gets_reason_and_window(bench: Bench) -> None:
    one = bench.issue(lifetime_s=LIFETIME_S, age_s=LIFETIME_S * 0.8)
    async with bench.running():
        await bench.announce(one)
        assert (await bench.step(one, "due")).reason == "lifetime"
        due_at = (await bench.slot(one))["due_at"]
        await request(bench, requested(one))
        assert (await informed(bench, one, "incident")).start == int(due_at.timestamp())


@pytest.mark.logs_errors("message dead-lettered")
async def test_an_unreadable_request_is_a_dead_letter_and_harms_no_other(bench: Bench) -> None:
    one = bench.issue(lifetime_s=LIFETIME_S)
    async with bench.running():
        await bench.announce(one)
        await bench.slot_is(one, "idle")
        wrong = encode(requested(one)).replace(b'"incident"', b'"lifetime"')
        await bench.signer.publish_confirmed(
            [Outgoing(RENEWAL_REQUESTED_TOPIC, join([wrong, encode(requested(one))]), uuid7())]
        )
        assert (await bench.step(one, "due")).reason == "incident"


async def _recheck(bench: Bench) -> None:
    await bench.database.execute(
        "update renewal.renewal_request set checked_at = now() - interval '1 minute'"
    )
