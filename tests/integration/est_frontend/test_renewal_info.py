"""A front end's store of renewal information, filled from a real stream."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from est_frontend.renewal_info.follower import RenewalInfoFollower
from est_frontend.renewal_info.store import RenewalInfoStore
from est_frontend.settings import RenewalInfoSettings
from estcore.clock import SystemClock
from estcore.errors import Unavailable
from estcore.est.renewal_info import CertificateId
from estcore.messages import topics
from estcore.messages.envelope import encode
from estcore.messages.renewal_info import (
    RenewalInfoComplete,
    RenewalInfoEntry,
    encode_entries,
    entry_key,
    expiry_day,
)
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.topology import declare
from estsuite_testing.platform import Platform

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
_DAMAGED = "renewal information not followed"


def entry(number: int, version: int = 0, *, start_in_s: int = 1000) -> RenewalInfoEntry:
    now = int(SystemClock().now().timestamp())
    return RenewalInfoEntry(
        key=entry_key(CertificateId(b"issuer", number)),
        version=version,
        start=now + start_in_s,
        end=now + start_in_s + 100,
        not_after=now + 86_400,
        rotation=uuid.UUID(int=number),
    )


@dataclass
class Renewal:
    """What est-renewal publishes."""

    bus: Bus
    platform: Platform

    async def publish(self, *entries: RenewalInfoEntry) -> None:
        by_day: dict[str, list[RenewalInfoEntry]] = {}
        for item in entries:
            by_day.setdefault(expiry_day(item.not_after), []).append(item)
        await self.bus.publish_confirmed(
            [
                Outgoing(topics.renewal_info_topic(day), payload, ttl_s=1000)
                for day, of_day in by_day.items()
                for payload in encode_entries(of_day)
            ]
        )

    async def complete(self) -> None:
        marker = RenewalInfoComplete(
            epoch=uuid.uuid4(), entries=0, published_at=SystemClock().now()
        )
        await self.bus.publish_confirmed(
            [Outgoing(topics.RENEWAL_INFO_COMPLETE_TOPIC, encode(marker))]
        )

    async def new_stream(self) -> None:
        bus = await self.platform.provisioner()
        streams = [s for s in topics.STREAMS if s.name == topics.PKI_RENEWAL_INFO]
        try:
            if topics.PKI_RENEWAL_INFO in await self.platform.stored_messages():
                await self.platform.delete_stream(topics.PKI_RENEWAL_INFO)
            await declare(bus, streams, [], replicas=1)
        finally:
            await bus.close()


@pytest_asyncio.fixture(loop_scope="module")
async def renewal(platform: Platform) -> AsyncIterator[Renewal]:
    bus = await Bus.connect(platform.bus("renewal"), "renewal", "test")
    found = Renewal(bus, platform)
    await found.new_stream()
    try:
        yield found
    finally:
        await bus.close()


@asynccontextmanager
async def following(platform: Platform, folder: Path) -> AsyncIterator[RenewalInfoFollower]:
    """Run a front end's follower on the store in a folder."""
    bus = await Bus.connect(platform.bus("est-frontend"), "est-frontend", "test")
    settings = RenewalInfoSettings(poll_s=0.05)
    store = RenewalInfoStore(folder / "renewal-info.sqlite")
    follower = RenewalInfoFollower(bus, store, settings, SystemClock())
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(follower.run(stop))
        try:
            yield follower
        finally:
            stop.set()
    await bus.close()


async def rotation_of(follower: RenewalInfoFollower, item: RenewalInfoEntry) -> tuple[int, int]:
    """Wait for an entry; returns its window."""
    async with asyncio.timeout(15):
        while True:
            try:
                found = await follower.find(item.key_octets)
            except Unavailable:
                found = None
            if found is not None:
                return found.start, found.end
            await asyncio.sleep(0.02)


async def until_complete(follower: RenewalInfoFollower) -> None:
    async with asyncio.timeout(15):
        while not follower.complete:
            await asyncio.sleep(0.02)


async def test_entries_arrive_and_the_newest_counts_in_any_order(
    platform: Platform, renewal: Renewal, tmp_path: Path
) -> None:
    old, new = entry(1, 5), entry(1, 7, start_in_s=-500)
    await renewal.publish(new)
    await renewal.publish(old)
    await renewal.publish(old, new)
    await renewal.publish(entry(2))
    async with following(platform, tmp_path) as follower:
        await rotation_of(follower, entry(2))
        assert await rotation_of(follower, new) == (new.start, new.end)
        assert not follower.complete, "renewal has not said that this is all"
        await renewal.complete()
        await until_complete(follower)
        assert await follower.find(b"\0" * 16) is None


async def test_a_front_end_goes_on_where_its_store_ends_and_reads_all_with_an_empty_folder(
    platform: Platform, renewal: Renewal, tmp_path: Path
) -> None:
    await renewal.publish(*map(entry, range(1500)))
    await renewal.complete()
    for folder in (tmp_path / "kept", tmp_path / "kept", tmp_path / "empty"):
        async with following(platform, folder) as follower:
            await until_complete(follower)
            for number in (0, 777, 1499):
                await rotation_of(follower, entry(number))
    await renewal.publish(entry(2000))
    async with following(platform, tmp_path / "kept") as follower:
        await rotation_of(follower, entry(2000))


async def test_what_is_in_the_store_is_found_while_nats_is_unavailable(
    platform: Platform, renewal: Renewal, tmp_path: Path
) -> None:
    await renewal.publish(entry(1))
    await renewal.complete()
    async with following(platform, tmp_path) as follower:
        await until_complete(follower)
        await platform.nats.stop()
        try:
            await rotation_of(follower, entry(1))
            assert follower.complete
        finally:
            await platform.nats.start()
        async with asyncio.timeout(20):
            while not renewal.bus.connected:
                await asyncio.sleep(0.05)
        await renewal.publish(entry(3))
        await rotation_of(follower, entry(3))


async def test_a_stream_that_was_filled_again_is_read_from_its_start(
    platform: Platform, renewal: Renewal, tmp_path: Path
) -> None:
    await renewal.publish(*map(entry, range(20)))
    await renewal.complete()
    async with following(platform, tmp_path) as follower:
        await until_complete(follower)
        await renewal.new_stream()
        await renewal.publish(entry(100))
        async with asyncio.timeout(15):
            while follower.complete:
                await asyncio.sleep(0.02)
        await rotation_of(follower, entry(5))
        await renewal.complete()
        await rotation_of(follower, entry(100))
        await until_complete(follower)


@pytest.mark.logs_errors(_DAMAGED)
@pytest.mark.parametrize("running", [True, False])
async def test_a_damaged_store_is_made_anew(
    platform: Platform, renewal: Renewal, tmp_path: Path, running: bool
) -> None:
    file = tmp_path / "renewal-info.sqlite"
    await renewal.publish(*map(entry, range(3000)))
    await renewal.complete()
    async with following(platform, tmp_path) as follower:
        await until_complete(follower)
        if running:
            damage(file)
            await renewal.publish(entry(4000))
            for number in (*range(0, 3000, 100), 4000):
                await rotation_of(follower, entry(number))
    if not running:
        file.write_bytes(b"this is not a database" * 400)
        file.with_name(file.name + "-wal").unlink(missing_ok=True)
        async with following(platform, tmp_path) as follower:
            await rotation_of(follower, entry(2999))


def damage(file: Path) -> None:
    """Overwrite every page behind the first."""
    with file.open("r+b") as opened:
        size = opened.seek(0, 2)
        opened.seek(4096)
        opened.write(b"\xff" * (size - 4096))
    wal = file.with_name(file.name + "-wal")
    if wal.exists():
        wal.write_bytes(b"\xff" * wal.stat().st_size)


@pytest.mark.logs_errors("renewal information refused")
async def test_a_message_that_is_no_entry_harms_no_other(
    platform: Platform, renewal: Renewal, tmp_path: Path
) -> None:
    day = expiry_day(entry(1).not_after)
    await renewal.bus.publish_confirmed(
        [Outgoing(topics.renewal_info_topic("20010101"), next(encode_entries([entry(7)])))]
    )
    async with following(platform, tmp_path) as follower:
        await renewal.publish(entry(1))
        await rotation_of(follower, entry(1))
        assert await follower.find(entry(7).key_octets) is None
    assert day != "20010101"


async def test_what_expired_long_ago_is_dropped(tmp_path: Path) -> None:
    store = RenewalInfoStore(tmp_path / "renewal-info.sqlite")
    progress = await store.open()
    entries = [entry(number) for number in range(12_000)]
    await store.put(entries, progress)
    before = entries[0].not_after + 1000
    for moment, left in ((0, 12_000), (before, 0)):
        after = await store.drop_expired(b"", moment)
        while after:
            after = await store.drop_expired(after, moment)
        assert await store.count() == left
    await store.close()
    store.stop()
