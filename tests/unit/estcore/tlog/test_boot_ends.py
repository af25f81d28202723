"""Records that a killed process had not published: verification names boot and count."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from estcore.tlog.verify import Options, verify

NOW = dt.datetime(2026, 11, 22, 18, 0, tzinfo=dt.UTC)
FIRST, SECOND, THIRD = "boot-1", "boot-2", "boot-3"


class Log:
    """A log of one front end, boot by boot."""

    def __init__(self, log: Any, make: Callable[..., Any]) -> None:
        self.log, self._make, self._count = log, make, 0

    def add(
        self,
        boot: str,
        number: int,
        action: str = "auth.denied",
        instance: str = "f-0",
        **more: Any,
    ) -> None:
        producer = {"service": "est-frontend", "instance": instance, "boot_id": boot}
        record = self._make(
            self._count, producer=producer, producer_seq=number, action=action, **more
        )
        self._count += 1
        self.log.add(record)

    def begin(self, boot: str, instance: str = "f-0", **statement: Any) -> None:
        self.add(boot, 1, "service.previous_boot", instance, details=statement)
        self.add(boot, 2, "service.start", instance)

    def findings(self, now: dt.datetime = NOW) -> list[tuple[str, str, str]]:
        self.log.seal()
        report = verify(self.log.export(), Options(now, self.log.vkey)).report
        return [(f.code, f.place, f.sentence) for f in report.findings]


@pytest.fixture
def log(make_log: Callable[..., Any], make_record: Callable[..., Any]) -> Log:
    made = Log(make_log(), make_record)
    made.begin(FIRST, known=False)
    made.add(FIRST, 3)
    return made


def test_records_missing_at_the_end_of_a_boot_are_counted(log: Log) -> None:
    log.begin(SECOND, known=True, boot_id=FIRST, last_number=7)
    assert log.findings() == [
        (
            "sequence.gap",
            "record 3",
            "4 records are missing at the end of est-frontend/f-0/boot-1: numbers 4 to 7",
        )
    ]


def test_a_boot_that_lost_nothing_is_no_finding(log: Log) -> None:
    log.begin(SECOND, known=True, boot_id=FIRST, last_number=3)
    assert not log.findings()


def test_a_gap_is_no_finding_while_earlier_records_may_be_on_their_way(log: Log) -> None:
    log.begin(SECOND, known=True, boot_id=FIRST, last_number=7)
    soon = dt.datetime(2026, 11, 22, 12, 0, 30, tzinfo=dt.UTC)
    assert not log.findings(soon)


def test_a_boot_of_which_no_record_came_is_named(log: Log) -> None:
    log.begin(THIRD, known=True, boot_id=FIRST, last_number=3)
    log.add(THIRD, 3, "service.previous_boot", details={"boot_id": SECOND, "last_number": 5})
    assert [(f[0], f[2]) for f in log.findings()] == [
        (
            "sequence.gap",
            "5 records are missing at the end of est-frontend/f-0/boot-2: numbers 1 to 5",
        )
    ]


def test_a_statement_made_by_two_boots_is_one_finding(log: Log) -> None:
    log.begin(SECOND, known=True, boot_id=FIRST, last_number=7)
    log.begin(THIRD, known=True, boot_id=FIRST, last_number=7)
    log.add(THIRD, 3, "service.previous_boot", details={"boot_id": SECOND, "last_number": 2})
    assert [f[0] for f in log.findings()] == ["sequence.gap"]


def test_a_lost_state_folder_is_a_finding_of_its_own(log: Log) -> None:
    log.begin(SECOND, known=False)
    assert [(f[0], f[1]) for f in log.findings()] == [("sequence.end_unknown", "record 3")]


def test_a_lost_state_folder_after_an_orderly_stop_is_none(log: Log) -> None:
    log.add(FIRST, 4, "service.stop")
    log.begin(SECOND, known=False)
    assert not log.findings()


def test_a_first_start_and_another_instance_are_none(log: Log) -> None:
    log.begin(SECOND, "f-1", known=False)
    assert not log.findings()


def test_records_of_an_earlier_boot_that_come_after_a_later_ones_are_none(log: Log) -> None:
    """Boot 2 was killed, and what it had sent was delivered again when boot 3 had begun."""
    log.begin(THIRD, known=True, boot_id=SECOND, last_number=2)
    log.begin(SECOND, known=True, boot_id=FIRST, last_number=3)
    assert not log.findings()


def test_they_do_not_hide_that_a_state_folder_was_lost_later(log: Log) -> None:
    log.begin(THIRD, known=True, boot_id=SECOND, last_number=2)
    log.begin(SECOND, known=True, boot_id=FIRST, last_number=3)
    log.begin("boot-4", known=False)
    (found,) = log.findings()
    assert found[0] == "sequence.end_unknown"
    assert "boot-3" in found[2]


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_what_every_boot_says_rightly_is_no_finding_in_any_order(
    order: tuple[int, ...], make_log: Callable[..., Any], make_record: Callable[..., Any]
) -> None:
    log = Log(make_log(), make_record)
    for place in order:
        earlier = {"known": True, "boot_id": f"boot-{place - 1}", "last_number": 2}
        log.begin(f"boot-{place}", **(earlier if place else {"known": False}))
    assert not log.findings()


def test_a_statement_about_another_instance_has_no_effect(log: Log) -> None:
    log.begin(SECOND, "f-1", known=True, boot_id=FIRST, last_number=3)
    assert [f[2].split(":")[0] for f in log.findings()] == [
        "3 records are missing at the end of est-frontend/f-1/boot-1"
    ]
