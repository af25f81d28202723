"""From a message on the bus to entries that can be appended (pure).

Called by: audit.chain, audit.own, audit.writer
The bytes are parsed once for the canonical text, which is what is hashed and kept, and judged
once by the message's model. What a newer producer adds to a record is kept in its text. One bad
record does not take the good ones beside it down.
"""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from estcore.errors import MalformedRequest
from estcore.messages.audit import AuditBatch, AuditRecord
from estcore.tlog import canonical
from estcore.tlog.cross import is_issued


@dataclass(frozen=True, slots=True)
class Entry:
    """One record, ready for the log: what its columns hold, and its canonical text."""

    record_id: uuid.UUID
    occurred_at: dt.datetime
    record: AuditRecord
    text: str

    @property
    def issuance(self) -> tuple[str, dt.datetime] | None:
        """Issuance id and ledger time, if the record says that a certificate was issued."""
        record, target = self.record, self.record.target
        if record.phase != "outcome" or target.issuance_id is None or target.issued_at is None:
            return None
        if not is_issued({"action": record.action, "phase": "outcome", "outcome": record.outcome}):
            return None
        return target.issuance_id, target.issued_at


@dataclass(frozen=True)
class Intake:
    """What one message holds. ``fault`` tells why some or all of it is unreadable."""

    entries: tuple[Entry, ...]
    traceparents: tuple[str, ...] = ()
    fault: str | None = None
    reason: str = ""


def read(data: bytes) -> Intake:
    """Return the entries of one message, the readable ones of a message that is not good."""
    try:
        raw = canonical.parse(data)
    except MalformedRequest as exc:
        return Intake((), fault="not-json", reason=exc.reason)
    try:
        batch = AuditBatch.model_validate(raw)
        records = zip(batch.records, raw["records"], strict=True)
        return Intake(tuple(_entry(r, w) for r, w in records), batch.traceparents)
    except ValidationError as exc:
        return Intake(_salvage(raw), fault="not-a-batch", reason=_first(exc))
    except MalformedRequest as exc:
        return Intake(_salvage(raw), fault="not-canonical", reason=exc.reason)


def entry_of(record: AuditRecord) -> Entry:
    """Return the entry of a record this process made."""
    return _entry(record, record.model_dump(mode="json", exclude_none=True))


def _entry(record: AuditRecord, raw: dict[str, Any]) -> Entry:
    if record.occurred_at.tzinfo is None:
        raise MalformedRequest("occurred_at has no time zone")
    if (issued_at := record.target.issued_at) is not None and issued_at.tzinfo is None:
        raise MalformedRequest("issued_at has no time zone")
    if "\x00" in record.producer.boot_id or "\x00" in (record.target.issuance_id or ""):
        raise MalformedRequest("an identifier holds a zero")
    try:
        occurred_at = dt.datetime.fromisoformat(raw["occurred_at"])
        record_id = uuid.UUID(record.record_id)
    except (ValueError, TypeError) as exc:
        raise MalformedRequest("occurred_at or record_id is not spelled as it must be") from exc
    return Entry(record_id, occurred_at, record, canonical.render(raw))


def _salvage(raw: Any) -> tuple[Entry, ...]:
    records = raw.get("records") if isinstance(raw, dict) else None
    entries: list[Entry] = []
    for item in records if isinstance(records, list) else ():
        try:
            entries.append(_entry(AuditRecord.model_validate(item), item))
        except (ValidationError, MalformedRequest):
            continue
    return tuple(entries)


def _first(exc: ValidationError) -> str:
    first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "message"
    return f"{place}: {first['msg'].lower()}"[:300]
