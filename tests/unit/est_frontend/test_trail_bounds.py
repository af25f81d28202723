"""The bounds of the audit trail: memory, spool and disk, and what they keep for enrollments."""

from __future__ import annotations

import contextlib
import resource
import sqlite3
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from est_frontend.audit_trail import trail as trail_module
from est_frontend.audit_trail.trail import AuditTrail
from est_frontend.settings import TrailSettings
from estcore.clock import SystemClock
from estcore.errors import BusUnavailable
from estcore.messages.audit import AuditBatch, AuditRecord
from estcore.messages.envelope import decode
from estcore.runtime.bus import Bus, Outgoing
from estsuite_testing.refusals import accounted


class Stream:
    """A stream that takes records, or is unavailable."""

    connected = True

    def on_reconnect(self, callback: object) -> None:
        """This stream loses nothing."""

    def __init__(self) -> None:
        self.away = False
        self.bodies: list[bytes] = []

    async def publish_confirmed(
        self, messages: list[Outgoing], *, timeout_s: float = 5
    ) -> list[int]:
        if self.away:
            raise BusUnavailable("away")
        self.bodies += [message.payload for message in messages]
        return [len(self.bodies)]

    @property
    def records(self) -> list[AuditRecord]:
        return [r for body in self.bodies for r in decode(AuditBatch, body).records]


async def opened(stream: Stream, folder: Path, **more: Any) -> AuditTrail:
    settings = TrailSettings(spool_file=folder / "spool" / "spool.db", **more)
    trail = AuditTrail(cast("Bus", stream), settings, SystemClock(), group="g", instance="a")
    await trail.open()
    return trail


def enrolled(trail: AuditTrail, number: int = 0) -> None:
    trail.add(
        correlation_id=f"e-{number}",
        action="est.simpleenroll",
        phase="outcome",
        outcome="success",
        actor={"type": "service"},
    )


def refuse(trail: AuditTrail, count: int, *, code: str = "auth.secret") -> None:
    """Refuse requests, each from an address of its own."""
    for number in range(count):
        peer = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        trail.refused(
            peer, code, correlation_id="c", action="est.simpleenroll", actor={"type": "service"}
        )


async def test_a_flood_of_refusals_with_audit_away_leaves_the_room_of_enrollments(
    tmp_path: Path,
) -> None:
    stream = Stream()
    trail = await opened(stream, tmp_path, max_spooled=1000)
    stream.away = True
    for round_ in range(20):
        refuse(trail, 200)
        assert trail.ready
        enrolled(trail, round_)
        await trail.flush()
    assert trail.ready
    stream.away = False
    await trail.flush()
    await trail.close()
    assert accounted(stream.records) == {"auth.secret": 20 * 200}
    outcomes = [
        r for r in stream.records if r.action == "est.simpleenroll" and r.phase == "outcome"
    ]
    assert len(outcomes) == 20
    assert len(stream.records) < 1000, "most were only counted"
    sequences = [record.producer_seq for record in stream.records]
    assert sequences == list(range(1, len(sequences) + 1)), "no gap"
    (total, *_) = [r.details for r in stream.records if r.action == "est.refusals"]
    assert total is not None
    assert int(str(total["sources"])) == 200


@pytest.mark.logs_errors("audit records cannot be stored")
async def test_memory_has_a_bound_where_neither_bus_nor_disk_take_anything(tmp_path: Path) -> None:
    stream = Stream()
    trail = await opened(stream, tmp_path)
    stream.away = True
    with no_room():
        refuse(trail, 100)
        await trail.flush()
        assert not trail.ready
        tracemalloc.start()
        refuse(trail, 30_000)
        await trail.flush()
        grown = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    assert grown < 8_000_000
    await trail.flush()
    assert trail.ready, "there is room again"
    stream.away = False
    await trail.close()
    assert accounted(stream.records) == {"auth.secret": 30_100}


async def test_large_records_count_by_their_octets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trail_module, "_MEMORY_BYTES", 100_000)
    stream = Stream()
    trail = await opened(stream, tmp_path)
    for _ in range(20):
        trail.refused(
            "10.0.0.1",
            "request.malformed",
            correlation_id="c",
            action="est.none",
            reason="x" * 5000,
            actor={"type": "service"},
        )
    assert trail.ready
    enrolled(trail)
    await trail.close()
    assert accounted(stream.records) == {"request.malformed": 20}
    assert sum(r.action == "est.refusals" for r in stream.records) == 1
    assert any(r.phase == "outcome" for r in stream.records)


@pytest.mark.logs_errors("audit records cannot be stored")
async def test_what_is_delivered_while_there_is_no_room_to_delete_it_is_sent_once(
    tmp_path: Path,
) -> None:
    stream = Stream()
    trail = await opened(stream, tmp_path)
    stream.away = True
    for number in range(5):
        enrolled(trail, number)
        await trail.flush()
    with no_room():
        stream.away = False
        for _ in range(3):
            await trail.flush()
        assert [r.correlation_id for r in stream.records] == [f"e-{n}" for n in range(5)]
    for number in range(5, 8):
        enrolled(trail, number)
        await trail.flush()
    assert trail.ready
    await trail.close()
    again = await opened(stream, tmp_path)
    await again.flush()
    await again.close()
    assert [r.correlation_id for r in stream.records] == [f"e-{n}" for n in range(8)]


@pytest.mark.logs_errors("audit records cannot be stored", "no room for the audit spool")
@pytest.mark.parametrize("away", [True, False], ids=["bus away", "bus there"])
async def test_a_trail_that_starts_without_room_opens_its_spool_when_there_is_some(
    tmp_path: Path, away: bool
) -> None:
    stream = Stream()
    stream.away = away
    with no_room():
        trail = await opened(stream, tmp_path)
        enrolled(trail)
        await trail.flush()
        assert not trail.ready
        assert len(stream.records) == (0 if away else 1), "the bus needs no disk"
    await trail.flush()
    assert trail.ready
    stream.away = False
    await trail.close()
    assert [r.correlation_id for r in stream.records] == ["e-0"]


async def test_a_spool_that_emptied_gives_its_room_back(tmp_path: Path) -> None:
    stream = Stream()
    trail = await opened(stream, tmp_path)
    stream.away = True
    for number in range(60):
        for _ in range(7):
            trail.add(
                correlation_id=f"{number}",
                action="est.simpleenroll",
                phase="outcome",
                outcome="success",
                reason="x" * 20_000,
                actor={"type": "service"},
            )
        await trail.flush()
    folder = tmp_path / "spool"
    assert size(folder) > 4_000_000
    stream.away = False
    await trail.flush()
    assert size(folder) < 200_000
    assert len(stream.records) == 420
    await trail.close()


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


@contextlib.contextmanager
def no_room() -> Iterator[None]:
    """Let every write to a file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_tests_can_take_the_room(tmp_path: Path) -> None:
    with no_room():
        database = sqlite3.connect(tmp_path / "x.db")
        with pytest.raises(sqlite3.OperationalError):
            database.execute("create table a (b)")
        database.close()
