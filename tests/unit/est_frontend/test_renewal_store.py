"""Entries of renewal information in any order, any number of times: the same table."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from est_frontend.renewal_info.store import Progress, RenewalInfoStore, StoredEntry
from estcore.est.renewal_info import CertificateId
from estcore.messages.renewal_info import (
    RenewalInfoEntry,
    decode_entries,
    encode_entries,
    entry_key,
    expiry_day,
)

END = 1_795_950_000


def entry(number: int, version: int) -> RenewalInfoEntry:
    """An entry whose contents follow from its version, as those of renewal do."""
    return RenewalInfoEntry(
        key=entry_key(CertificateId(b"issuer", number)),
        version=version,
        start=1000 + version,
        end=2000 + version,
        not_after=END,
        rotation=uuid.UUID(int=number) if version % 2 else None,
        reason="superseded" if version % 3 else None,
        url="https://ca.test/" if version % 5 else None,
    )


entries = st.lists(st.builds(entry, st.integers(0, 5), st.integers(0, 8)), min_size=1, max_size=20)


async def table(batches: list[list[RenewalInfoEntry]]) -> dict[bytes, StoredEntry | None]:
    with tempfile.TemporaryDirectory() as folder:
        store = RenewalInfoStore(Path(folder) / "renewal-info.sqlite")
        try:
            await store.open()
            for position, batch in enumerate(batches):
                await store.put(batch, Progress(position))
            keys = [entry(number, 0).key_octets for number in range(6)]
            return {key: await store.find(key) for key in keys}
        finally:
            await store.close()
            store.stop()


@given(entries, st.data())
def test_any_order_and_repetition_of_entries_leads_to_the_same_table(
    found: list[RenewalInfoEntry], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(found + found))
    width = data.draw(st.integers(1, 7))
    batches = [shuffled[i : i + width] for i in range(0, len(shuffled), width)]
    once, often = asyncio.run(table([found])), asyncio.run(table(batches))
    assert once == often
    for item in found:
        kept = once[item.key_octets]
        assert kept is not None
        assert kept.start >= item.start


@given(entries)
def test_entries_are_read_as_they_were_written(found: list[RenewalInfoEntry]) -> None:
    payloads = list(encode_entries(found))
    assert [e for p in payloads for e in decode_entries(expiry_day(END), p)] == found


def test_entries_are_cut_into_messages_that_a_stream_takes() -> None:
    many = [entry(number, 1) for number in range(2500)]
    payloads = list(encode_entries(many))
    assert len(payloads) == 3
    assert max(map(len, payloads)) < 512 * 1024 - 4096


def test_progress_is_kept_with_the_entries(tmp_path: Path) -> None:
    async def run() -> Progress:
        progress = Progress()
        for _ in range(2):
            store = RenewalInfoStore(tmp_path / "renewal-info.sqlite")
            progress = await store.open()
            if progress.position == 0:
                await store.put([entry(1, 1)], Progress(42, "a", "b"))
            await store.close()
            store.stop()
        return progress

    assert asyncio.run(run()) == Progress(42, "a", "b")
