"""The audit trail: no record, and no fault of the bus or the disk, ends the front end or the queue."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any, cast

import pytest

from est_frontend.audit_trail.trail import AuditTrail
from est_frontend.settings import TrailSettings
from estcore.clock import SystemClock
from estcore.errors import BusUnavailable
from estcore.messages.audit import AuditBatch, AuditRecord
from estcore.messages.envelope import decode
from estcore.runtime.bus import Bus, Outgoing


class FakeBus:
    """Keeps what is published; ``fault`` is raised instead."""

    connected = True

    def on_reconnect(self, callback: object) -> None:
        """This stream loses nothing."""

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.published: list[bytes] = []

    async def publish_confirmed(
        self, messages: list[Outgoing], *, timeout_s: float = 5
    ) -> list[int]:
        if self.fault is not None:
            raise self.fault
        self.published += [message.payload for message in messages]
        return [len(self.published)]

    @property
    def records(self) -> list[AuditRecord]:
        return [r for body in self.published for r in decode(AuditBatch, body).records]


@pytest.fixture
def bus() -> FakeBus:
    return FakeBus()


async def opened(bus: FakeBus, folder: Path) -> AuditTrail:
    settings = TrailSettings(spool_file=folder / "spool.db")
    trail = AuditTrail(cast("Bus", bus), settings, SystemClock(), group="g", instance="a")
    await trail.open()
    return trail


def add(trail: AuditTrail, **more: Any) -> None:
    trail.add(
        **{
            "correlation_id": "c",
            "action": "est.cacerts",
            "phase": "denied",
            "outcome": "failure",
            "actor": {"type": "service"},
            **more,
        }
    )


class NoJSON:
    """A value that has no JSON form."""


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def circular() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


UNENCODABLE = [NoJSON(), circular(), nested(5000), {"a": b"\xff"}, object, "x" * 70_000]


@pytest.mark.logs_errors(
    "audit record replaced",
)
@pytest.mark.parametrize("value", UNENCODABLE, ids=lambda v: type(v).__name__)
async def test_a_record_that_cannot_be_encoded_becomes_one_that_says_so(
    bus: FakeBus, tmp_path: Path, value: object
) -> None:
    trail = await opened(bus, tmp_path)
    add(trail, reason="before")
    add(trail, details={"a": value})
    add(trail, reason="after")
    await trail.flush()
    before, replaced, after = bus.records
    assert (before.reason, after.reason) == ("before", "after")
    assert replaced.action == "audit.record_replaced"
    assert replaced.reason_code in {"message.unencodable", "message.too_large"}
    assert [r.producer_seq for r in bus.records] == [1, 2, 3]
    await trail.close()


async def test_every_lone_surrogate_is_replaced_wherever_it_is(
    bus: FakeBus, tmp_path: Path
) -> None:
    trail = await opened(bus, tmp_path)
    for number in range(0xD800, 0xE000):
        bad = f"a{chr(number)}b"
        add(
            trail,
            reason=bad,
            origin={"user_agent": bad},
            target={"san": (bad,)},
            details={bad: [bad]},
        )
    await trail.flush()
    assert len(bus.records) == 0x800
    for record in bus.records:
        assert record.reason == "a\ufffdb"
        assert record.origin is not None
        assert record.origin.user_agent == "a\ufffdb"
        assert record.target.san == ("a\ufffdb",)
        assert record.details == {"a\ufffdb": ["a\ufffdb"]}
    await trail.close()


async def test_large_records_go_in_messages_that_the_bus_takes(
    bus: FakeBus, tmp_path: Path
) -> None:
    trail = await opened(bus, tmp_path)
    for _ in range(100):
        add(trail, reason="\x01" * 10_000)
    await trail.flush()
    assert len(bus.records) == 100
    assert max(map(len, bus.published)) < 1024 * 1024
    await trail.close()


@pytest.mark.logs_errors(
    "audit records not published",
)
@pytest.mark.parametrize("fault", [BusUnavailable("gone"), RuntimeError("odd"), ValueError("odd")])
async def test_whatever_the_bus_raises_the_records_are_spooled_and_sent_later(
    bus: FakeBus, tmp_path: Path, fault: Exception
) -> None:
    trail = await opened(bus, tmp_path)
    bus.fault = fault
    add(trail, reason="kept")
    await trail.flush()
    assert bus.published == []
    assert trail.ready
    await trail.close()
    bus.fault = None
    again = await opened(bus, tmp_path)
    await again.flush()
    assert [r.reason for r in bus.records] == ["kept"]
    await again.close()


@pytest.mark.logs_errors(
    "audit records cannot be stored",
)
@pytest.mark.parametrize("fault", [sqlite3.OperationalError("disk I/O error"), OSError("disk")])
async def test_a_disk_that_refuses_makes_it_unready_and_nothing_is_lost(
    bus: FakeBus, tmp_path: Path, fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    trail = await opened(bus, tmp_path)
    bus.fault = BusUnavailable("gone")

    class Refusing:
        def execute(self, *_: object) -> None:
            raise fault

        def close(self) -> None:
            raise sqlite3.OperationalError("unable to close")

    real = trail._spool._db
    monkeypatch.setattr(trail._spool, "_db", Refusing())
    add(trail, reason="kept")
    await trail.flush()
    assert not trail.ready
    monkeypatch.setattr(trail._spool, "_db", real)
    bus.fault = None
    await trail.flush()
    assert trail.ready
    assert [r.reason for r in bus.records] == ["kept"]
    monkeypatch.setattr(trail._spool, "_db", Refusing())
    await trail.close()
    assert real is not None
    real.close()
