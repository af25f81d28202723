"""Checks across records: producers' sequences, and intents that never had an outcome (pure)."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from estcore.tlog.findings import Finding
from estcore.tlog.items import expanded
from estcore.tlog.purged import Absent, beside, soon_after

_CLOSING = {"outcome", "error", "denied"}
_FIRST = 1
PREVIOUS_BOOT = "service.previous_boot"
"""Action of the records with which a boot begins: the last number that an earlier one had taken."""
_STARTS = {"service.start", "audit.start"}
_STOPS = {"service.stop", "audit.stop"}
Boot = tuple[str, str, str]


class Patience(Protocol):
    """How long things may take before they are findings."""

    @property
    def outcome_within(self) -> dt.timedelta:
        """Between an intent and its outcome."""
        ...

    @property
    def sequence_settles(self) -> dt.timedelta:
        """Between a record and one with an earlier number that is still on its way."""
        ...


def check(
    leaves: list[dict[str, Any]],
    now: dt.datetime,
    patience: Patience,
    absent: Sequence[Absent] = (),
) -> Iterator[Finding]:
    """Return what is wrong across the leaves of a log, of which some may be ``absent``."""
    yield from _producers(leaves, now - patience.sequence_settles, absent)
    yield from _intents(leaves, now, patience.outcome_within, absent)
    yield from _repeated(leaves)
    yield from _conflicts(leaves)


def _producers(
    leaves: list[dict[str, Any]], closed_before: dt.datetime, absent: Sequence[Absent]
) -> Iterator[Finding]:
    boots: dict[Boot, dict[int, dict[str, Any]]] = defaultdict(dict)
    for leaf in leaves:
        number = leaf["record"].get("producer_seq")
        boot = _boot(leaf["record"])
        if not isinstance(number, int) or boot is None:
            continue
        if number in boots[boot]:
            yield Finding(
                "sequence.repeated",
                f"record {leaf['log_index']}",
                f"number {number} of {'/'.join(boot)} was there before",
            )
        boots[boot][number] = leaf
    for boot, numbers in boots.items():
        yield from _gaps(boot, numbers, closed_before, absent)
    yield from _ends(leaves, boots, closed_before, absent)


def _gaps(
    boot: Boot,
    numbers: dict[int, dict[str, Any]],
    closed_before: dt.datetime,
    absent: Sequence[Absent],
) -> Iterator[Finding]:
    expected, place = min(_FIRST, *numbers), 0
    for number in sorted(numbers):
        after, before = numbers[number], place
        place = after["log_index"]
        explained = beside(absent, before, place)
        if number > expected and _before(after, closed_before) and not explained:
            missing = f"{expected}" if number == expected + 1 else f"{expected} to {number - 1}"
            yield Finding(
                "sequence.gap",
                f"record {after['log_index']}",
                f"number {missing} of {'/'.join(boot)} is missing before it",
            )
        expected = number + 1


def _ends(
    leaves: list[dict[str, Any]],
    boots: Mapping[Boot, Mapping[int, Any]],
    closed_before: dt.datetime,
    absent: Sequence[Absent],
) -> Iterator[Finding]:
    """Compare the end of each boot with what the first records of a later one say about it.

    A boot without a later statement, and without a record of its stop, ended at an unknown number.
    """
    said, asked, stopped = _statements(leaves, closed_before)
    for boot, (number, leaf) in said.items():
        numbers = boots.get(boot, {})
        last = max(numbers, default=0)
        place = numbers[last]["log_index"] if numbers else 0
        if number > last and not beside(absent, place, leaf["log_index"]):
            yield Finding(
                "sequence.gap",
                f"record {leaf['log_index']}",
                f"{number - last} records are missing at the end of {'/'.join(boot)}:"
                f" numbers {last + 1} to {number}",
            )
    for boot, leaf in asked.items():
        place = max((one["log_index"] for one in boots.get(boot, {}).values()), default=0)
        explained = beside(absent, place, leaf["log_index"])
        if boot not in said and boot not in stopped and not explained:
            yield Finding(
                "sequence.end_unknown",
                f"record {leaf['log_index']}",
                f"how many records of {'/'.join(boot)} are missing at its end is not known:"
                " its state folder was lost",
            )


def _statements(
    leaves: list[dict[str, Any]], closed_before: dt.datetime
) -> tuple[dict[Boot, tuple[int, dict[str, Any]]], dict[Boot, dict[str, Any]], set[Boot]]:
    """Return the boots whose last number is on record, those that had a successor, those stopped.

    The first come with that number, and the first two with the leaf of the later boot.
    """
    said: dict[Boot, tuple[int, dict[str, Any]]] = {}
    asked: dict[Boot, dict[str, Any]] = {}
    newest: dict[tuple[str, str], Boot] = {}
    stopped: set[Boot] = set()
    successor = _successors(leaves)
    for leaf in leaves:
        record = leaf["record"]
        boot, action = _boot(record), record.get("action")
        if boot is None:
            continue
        process = boot[:2]
        # Records of an earlier boot may come late, after those of the later one.
        late = _follows(newest.get(process), boot, successor)
        if action in _STOPS:
            stopped.add(boot)
        elif action in _STARTS and not late:
            newest[process] = boot
        elif action == PREVIOUS_BOOT and _before(leaf, closed_before):
            earlier, number = _statement(record)
            if earlier is not None and number is not None:
                said.setdefault(earlier, (number, leaf))
            if not late and newest.get(process, boot) != boot:
                asked.setdefault(newest[process], leaf)
    return said, asked, stopped


def _statement(record: Mapping[str, Any]) -> tuple[Boot | None, int | None]:
    """Return the earlier boot that a record is about, and its last number."""
    boot, details = _boot(record), record.get("details")
    if boot is None or not isinstance(details, dict) or "boot_id" not in details:
        return None, None
    number = details.get("last_number")
    return (*boot[:2], str(details["boot_id"])), number if isinstance(number, int) else None


def _successors(leaves: list[dict[str, Any]]) -> dict[Boot, Boot]:
    """Return the boot that came after each, as the later one says."""
    found: dict[Boot, Boot] = {}
    for leaf in leaves:
        record = leaf["record"]
        if record.get("action") == PREVIOUS_BOOT:
            boot, earlier = _boot(record), _statement(record)[0]
            if boot is not None and earlier is not None:
                found.setdefault(earlier, boot)
    return found


def _follows(boot: Boot | None, other: Boot, successor: Mapping[Boot, Boot]) -> bool:
    """Return whether ``boot`` began after ``other``."""
    seen = {other}
    place: Boot | None = successor.get(other)
    while place is not None and place != boot and place not in seen:
        seen.add(place)
        place = successor.get(place)
    return boot is not None and place == boot and boot != other


def _before(leaf: dict[str, Any], moment: dt.datetime) -> bool:
    return dt.datetime.fromisoformat(leaf["recorded_at"]) < moment


def _intents(
    leaves: list[dict[str, Any]],
    now: dt.datetime,
    within: dt.timedelta,
    absent: Sequence[Absent],
) -> Iterator[Finding]:
    closed = {
        key
        for leaf in leaves
        if leaf["record"].get("phase") in _CLOSING
        for record in expanded(leaf["record"])
        for key in _subjects(record)
    }
    for leaf in leaves:
        record = leaf["record"]
        if record.get("phase") != "intent":
            continue
        if all(closed.intersection(_subjects(fact)) for fact in expanded(record)):
            continue
        if _before(leaf, now - within) and not soon_after(absent, leaf, within):
            yield Finding(
                "intent.open",
                f"record {leaf['log_index']}",
                f"the intent {record.get('action')} has no outcome",
            )


def _conflicts(leaves: list[dict[str, Any]]) -> Iterator[Finding]:
    for leaf in leaves:
        record = leaf["record"]
        if record.get("action") == "audit.conflict":
            details = record.get("details")
            identity = details.get("id") if isinstance(details, dict) else None
            yield Finding(
                "record.conflict",
                f"record {leaf['log_index']}",
                f"a different record came under record_id {identity}",
            )


def _repeated(leaves: list[dict[str, Any]]) -> Iterator[Finding]:
    seen: set[Any] = set()
    for leaf in leaves:
        identity = leaf["record"].get("record_id")
        if identity in seen:
            yield Finding(
                "record.repeated", f"record {leaf['log_index']}", f"record_id {identity} again"
            )
        seen.add(identity)


def _subjects(record: Mapping[str, Any]) -> set[tuple[str, str]]:
    """What intent and outcome have in common: the issuance, else the request, else the call."""
    target = record.get("target")
    target = target if isinstance(target, dict) else {}
    for name in ("issuance_id", "request_id"):
        if isinstance(target.get(name), str):
            return {(name, target[name])}
    return {("correlation_id", str(record.get("correlation_id")))}


def _boot(record: Mapping[str, Any]) -> Boot | None:
    producer = record.get("producer")
    if not isinstance(producer, dict):
        return None
    return str(producer.get("service")), str(producer.get("instance")), str(producer.get("boot_id"))
