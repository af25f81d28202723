"""One leaf of the log: the members that verification reads, and their kinds (pure).

Leaves may be the work of anybody: a log can be signed and still hold what no service of the suite
wrote. What reads a leaf relies on these kinds; members beyond them may be anything.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from estcore.errors import MalformedRequest
from estcore.tlog import canonical

_TEXT, _OBJECT = str, dict
_LEAF = {"log_index": int, "recorded_at": _TEXT, "topic": _TEXT, "record": _OBJECT}
_RECORD = {
    "record_id": _TEXT,
    "producer": _OBJECT,
    "occurred_at": _TEXT,
    "correlation_id": _TEXT,
    "action": _TEXT,
    "phase": _TEXT,
    "outcome": _TEXT,
}
_PRODUCER = {"service": _TEXT, "instance": _TEXT, "boot_id": _TEXT}
_RECORD_MAY = {"producer_seq": int, "items": list}
_FACT_MAY = {"target": _OBJECT, "details": _OBJECT}


def read_leaf(octets: bytes) -> dict[str, Any]:
    """Return the leaf, whose members have the kinds of ``estcore.messages.audit.AuditRecord``.

    Raises:
        MalformedRequest: not JSON, or not the leaf of an audit record.
    """
    leaf = canonical.parse(octets)
    _check("the leaf", leaf, _LEAF)
    record = leaf["record"]
    _check("the record", record, _RECORD, _RECORD_MAY | _FACT_MAY)
    _check("producer", record["producer"], _PRODUCER)
    for item in record.get("items") or ():
        _check("an item", item, {"correlation_id": _TEXT}, _FACT_MAY)
    for moment in (leaf["recorded_at"], record["occurred_at"]):
        _check_time(moment)
    return leaf  # type: ignore[no-any-return]


def _check(
    what: str, value: Any, members: Mapping[str, type], may: Mapping[str, type] | None = None
) -> None:
    if not isinstance(value, dict):
        raise _malformed(f"{what} is not an object")
    for name, kind in members.items():
        if type(value.get(name)) is not kind:  # bool is no int here
            raise _malformed(f"{name} of {what} is missing or of the wrong kind")
    for name, kind in (may or {}).items():
        if value.get(name) is not None and type(value[name]) is not kind:
            raise _malformed(f"{name} of {what} has the wrong kind")


def _check_time(text: str) -> None:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError as exc:
        raise _malformed("a time that is not ISO 8601") from exc
    if moment.tzinfo is None:
        raise _malformed("a time without a zone")


def _malformed(reason: str) -> MalformedRequest:
    return MalformedRequest(reason, code="record.malformed")
