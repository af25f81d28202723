"""Renewal information on real servers: what the stream says is what the rows say."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Any, cast

import pytest

from estcore.clock import SystemClock
from estcore.est.renewal_info import cert_id, parse_cert_id
from estcore.ids import rotation_id
from estcore.messages.envelope import decode
from estcore.messages.renewal_info import (
    RenewalInfoComplete,
    RenewalInfoEntry,
    decode_entries,
    entry_key,
)
from estcore.messages.topics import (
    PKI_RENEWAL_INFO,
    RENEWAL_INFO_COMPLETE_TOPIC,
    RENEWAL_INFO_TOPICS,
)
from estcore.pki.parsers import load_certificate
from estcore.runtime.stored_messages import last_values, stored_from
from estsuite_testing.platform import Platform
from estsuite_testing.renewal_bench import Bench, Issued
from renewal.main import _republish_info, migrate
from renewal.rotation.early_renewal import EarlyRenewal, renew_early

pytestmark = pytest.mark.integration


def key_of(issued: Issued) -> str:
    return entry_key(parse_cert_id(cert_id(load_certificate(issued.der))))


async def entries(bench: Bench) -> dict[str, RenewalInfoEntry]:
    """Read the stream as a front end: the entry with the highest version of each certificate."""
    newest: dict[str, RenewalInfoEntry] = {}
    following = 1
    while following:
        stored, following = await stored_from(
            bench.frontend, PKI_RENEWAL_INFO, RENEWAL_INFO_TOPICS, following
        )
        for message in stored:
            if message.topic == RENEWAL_INFO_COMPLETE_TOPIC:
                continue
            day = message.topic.rsplit(".", 1)[1]
            for entry in decode_entries(day, message.payload):
                if entry.key not in newest or entry.version > newest[entry.key].version:
                    newest[entry.key] = entry
    return newest


async def entry_when(bench: Bench, issued: Issued, reason: str | None) -> RenewalInfoEntry:
    async def there() -> RenewalInfoEntry | None:
        entry = (await entries(bench)).get(key_of(issued))
        return entry if entry is not None and entry.reason == reason else None

    return await bench.until(there, f"entry with reason {reason}")


async def epoch(bench: Bench) -> Any:
    values = await last_values(bench.frontend, PKI_RENEWAL_INFO, RENEWAL_INFO_COMPLETE_TOPIC)
    return decode(RenewalInfoComplete, values[0].payload).epoch if values else None


def is_over(entry: RenewalInfoEntry) -> bool:
    return entry.end <= SystemClock().now().timestamp()


async def test_the_window_of_a_first_certificate_begins_when_its_slot_is_due(bench: Bench) -> None:
    one = bench.issue()
    async with bench.running():
        await bench.announce(one)
        entry = await entry_when(bench, one, None)
        row = await bench.slot_is(one, "idle")
    assert entry.start == int(row["due_at"].timestamp())
    assert entry.start < entry.end < entry.not_after == int(one.event.not_after.timestamp())
    assert str(entry.rotation) == rotation_id(one.event.slot_id, 2)


async def test_a_certificate_whose_successor_is_in_use_has_a_window_in_the_past(
    bench: Bench,
) -> None:
    old = bench.issue()
    async with bench.running():
        await bench.announce(old)
        await bench.slot_is(old, "idle")
        new = bench.issue(after=old)
        await bench.announce(new, times=2)
        await bench.step(old, "overlap")
        assert (await entry_when(bench, new, None)).start > SystemClock().now().timestamp()
        assert not is_over((await entries(bench))[key_of(old)])  # not proven: still its own window
        assert (await bench.acknowledge(None, new)).accepted
        superseded = await entry_when(bench, old, "superseded")
    assert is_over(superseded)
    assert not is_over((await entries(bench))[key_of(new)])
    assert not await bench.database.fetch("select from renewal.certificate where info_pending")


async def test_a_revoked_certificate_has_a_window_in_the_past_at_once(bench: Bench) -> None:
    one = bench.issue()
    async with bench.running():
        await bench.announce(one)
        await entry_when(bench, one, None)
        await bench.revoke(one)
        assert is_over(await entry_when(bench, one, "revoked"))


async def test_a_revocation_before_its_certificate_is_not_lost(bench: Bench) -> None:
    one = bench.issue()
    async with bench.running():
        await bench.revoke(one)
        await bench.announce(one)
        assert is_over(await entry_when(bench, one, "revoked"))


async def test_an_early_renewal_moves_the_window_and_the_event_has_the_reason(
    bench: Bench,
) -> None:
    one = bench.issue(lifetime_s=72_000)
    url = "https://ca.test/incidents/17"
    async with bench.running():
        await bench.announce(one)
        await bench.slot_is(one, "idle")
        now = SystemClock().now()
        early = EarlyRenewal(one.event.slot_id, now, "incident", now + dt.timedelta(minutes=5), url)
        async with bench.database.transaction():
            await bench.database.execute("set local search_path = renewal")
            assert await renew_early(cast(Any, bench.database), [early, early]) == [
                one.event.slot_id
            ]
        due = await bench.step(one, "due")
        entry = await entry_when(bench, one, "incident")
        new = bench.issue(after=one)
        await bench.announce(new)
        await bench.step(one, "overlap")
        assert (await bench.acknowledge(None, new)).accepted
        slot = await bench.slot_is(one, "idle")
    assert (due.reason, due.renew_by, due.explanation_url) == (
        "incident",
        now + dt.timedelta(minutes=5),
        url,
    )
    assert (entry.start, entry.url) == (int(now.timestamp()), url)
    assert entry.end - entry.start == 300
    assert (slot["due_reason"], slot["renew_by"], slot["explanation_url"]) == (None, None, None)


async def test_a_slot_is_never_moved_to_a_later_time(bench: Bench) -> None:
    one = bench.issue()
    async with bench.running():
        await bench.announce(one)
        due = (await bench.slot_is(one, "idle"))["due_at"]
    later = EarlyRenewal(one.event.slot_id, due + dt.timedelta(seconds=1), "operator")
    async with bench.database.transaction():
        await bench.database.execute("set local search_path = renewal")
        assert await renew_early(cast(Any, bench.database), [later]) == []
    assert (await bench.slot(one))["due_at"] == due


async def test_what_a_crash_left_unpublished_is_published_by_the_sweeper(bench: Bench) -> None:
    one = bench.issue()
    async with bench.running():
        await bench.announce(one)
        before = await entry_when(bench, one, None)
    await bench.database.execute(
        "update renewal.certificate set info_pending = true, state = 'revoked',"
        " changed_at = now() - interval '1 minute'"
    )
    async with bench.running():
        entry = await entry_when(bench, one, "revoked")
    assert entry.version > before.version


@pytest.mark.parametrize("how", ["purged", "deleted", "shortened"])
async def test_a_stream_that_lost_something_is_filled_again(
    platform: Platform, bench: Bench, how: str
) -> None:
    one, ended = bench.issue(), bench.issue(age_s=7199)
    async with bench.running("renewal-0", "renewal-1"):
        await bench.announce(one, ended)
        wanted = await entry_when(bench, one, None)

        async def marked() -> Any:
            return await epoch(bench)

        before = await bench.until(marked, "an epoch")
        if how == "purged":
            async with platform.administrator() as bus:
                await bus.client.jetstream().purge_stream(PKI_RENEWAL_INFO)
        elif how == "deleted":
            await platform.delete_stream(PKI_RENEWAL_INFO)
            await migrate(bench.settings)
        else:
            # As after a power cut that lost the end: more was confirmed than there is.
            await bench.database.execute("update renewal.info_stream set sequence = sequence + 5")

        async def filled() -> Any:
            return (await epoch(bench)) not in {None, before}

        await bench.until(filled, "a new epoch", timeout_s=30)
        entry = (await entries(bench))[key_of(one)]
        settled = await epoch(bench)
        await asyncio.sleep(0.5)
        assert await epoch(bench) == settled, "it is not published again and again"
    assert (entry.start, entry.end, entry.rotation) == (wanted.start, wanted.end, wanted.rotation)


async def test_an_operator_has_everything_published_again(bench: Bench) -> None:
    one = bench.issue()
    async with bench.running():
        await bench.announce(one)
        await entry_when(bench, one, None)
        before = await epoch(bench)
        await _republish_info(bench.settings)

        async def again() -> Any:
            return (await epoch(bench)) != before

        await bench.until(again, "a new epoch")
