"""Checks across records: producers' sequences, and intents that never had an outcome (pure)."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Protocol

from estcore.tlog.findings import Finding

_CLOSING = {"outcome", "error", "denied"}
_FIRST = 1
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


def check(leaves: list[dict[str, Any]], now: dt.datetime, patience: Patience) -> Iterator[Finding]:
    """Return what is wrong across the leaves of a whole log."""
    yield from _producers(leaves, now - patience.sequence_settles)
    yield from _intents(leaves, now - patience.outcome_within)
    yield from _repeated(leaves)
    yield from _conflicts(leaves)


def _producers(leaves: list[dict[str, Any]], closed_before: dt.datetime) -> Iterator[Finding]:
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
        yield from _gaps(boot, numbers, closed_before)


def _gaps(
    boot: Boot, numbers: dict[int, dict[str, Any]], closed_before: dt.datetime
) -> Iterator[Finding]:
    expected = min(_FIRST, *numbers)
    for number in sorted(numbers):
        after = numbers[number]
        if number > expected and dt.datetime.fromisoformat(after["recorded_at"]) < closed_before:
            missing = f"{expected}" if number == expected + 1 else f"{expected} to {number - 1}"
            yield Finding(
                "sequence.gap",
                f"record {after['log_index']}",
                f"number {missing} of {'/'.join(boot)} is missing before it",
            )
        expected = number + 1


def _intents(leaves: list[dict[str, Any]], limit: dt.datetime) -> Iterator[Finding]:
    closed = {
        key
        for leaf in leaves
        if leaf["record"].get("phase") in _CLOSING
        for key in _subjects(leaf["record"])
    }
    for leaf in leaves:
        record = leaf["record"]
        if record.get("phase") != "intent" or closed.intersection(_subjects(record)):
            continue
        if dt.datetime.fromisoformat(leaf["recorded_at"]) < limit:
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


def _subjects(record: dict[str, Any]) -> set[tuple[str, str]]:
    """What intent and outcome have in common: the issuance, else the request, else the call."""
    target = record.get("target")
    target = target if isinstance(target, dict) else {}
    for name in ("issuance_id", "request_id"):
        if isinstance(target.get(name), str):
            return {(name, target[name])}
    return {("correlation_id", str(record.get("correlation_id")))}


def _boot(record: dict[str, Any]) -> Boot | None:
    producer = record.get("producer")
    if not isinstance(producer, dict):
        return None
    return str(producer.get("service")), str(producer.get("instance")), str(producer.get("boot_id"))
