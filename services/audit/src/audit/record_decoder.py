"""From a message on the bus to entries that can be appended (pure).

The bytes are parsed once for the canonical text, which is what is hashed and kept, and validated
once by the message's model. What a newer producer adds to a record is kept in its text. One bad
record does not take the good ones beside it down.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pydantic import ValidationError

from estcore.errors import MalformedRequest
from estcore.messages.audit import AuditBatch, AuditRecord, may_report, producer_of
from estcore.messages.signatures import Sender
from estcore.messages.topics import audit_issue_topic
from estcore.tlog import canonical
from estcore.tlog.cross import is_issued

_YEARS = 1970, 9998
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Entry(NamedTuple):
    """One record, ready for the log: what its columns hold, and its canonical text."""

    record_id: str
    occurred_at: dt.datetime
    record: AuditRecord
    text: str
    topic: str = ""
    """The topic it came on, which says who may have written it."""

    @property
    def fact(self) -> tuple[str, ...]:
        """Service, action, phase and outcome: the same whenever the record is sent again."""
        record = self.record
        return record.producer.service, record.action, record.phase, record.outcome

    @property
    def issuance(self) -> tuple[str, dt.datetime] | None:
        """Issuance id and ledger time, if the record says that a certificate was issued."""
        record, target = self.record, self.record.target
        if target.issuance_id is None or target.issued_at is None:
            return None
        facts = {"action": record.action, "phase": record.phase, "outcome": record.outcome}
        if not is_issued(facts):
            return None
        return target.issuance_id, target.issued_at


@dataclass(frozen=True)
class Intake:
    """Records of one message. ``fault`` is the reason why some or all are unreadable."""

    entries: tuple[Entry, ...]
    traceparents: tuple[str, ...] = ()
    fault: str | None = None
    reason: str = ""


def read_signed(data: bytes, topic: str, sender: Sender | None) -> Intake:
    """Return the entries of one message that its sender produced.

    One record in the name of a different producer, or of an action that is not the sender's to
    report, refuses the whole message: its sender does what no service of ours does.
    """
    if sender is None:
        return Intake((), fault="unsigned", reason="not signed by a sender of its topic")
    intake = read(data)
    service = producer_of(sender.service)
    for entry in intake.entries:
        producer = entry.record.producer
        # Any ca-signer publishes what the ledger's outbox holds, in the name of who wrote it.
        same = service == "ca-signer" or producer.instance == sender.instance
        if producer.service != service or not same:
            reason = f"signed by {service}/{sender.instance}, in the name of a different producer"
            return Intake((), fault="producer", reason=reason)
        if not may_report(sender.service, entry.record.action):
            reason = f"{entry.record.action} is not for {sender.service} to report"
            return Intake((), fault="action", reason=reason)
    return replace(intake, entries=tuple(e._replace(topic=topic) for e in intake.entries))


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
        return Intake(_salvage(raw), fault="not-a-record", reason=exc.reason)


def entry_of(record: AuditRecord) -> Entry:
    """Return the entry of a record this process made."""
    entry = _entry(record, record.model_dump(mode="json", exclude_none=True))
    return entry._replace(topic=audit_issue_topic(record.producer.service))


def _entry(record: AuditRecord, raw: dict[str, Any]) -> Entry:
    target = record.target
    if target.issued_at is not None and target.issued_at.tzinfo is None:
        raise MalformedRequest("issued_at has no time zone")
    boot_id = record.producer.boot_id
    if not boot_id or not boot_id.isprintable() or "\x00" in (target.issuance_id or ""):
        raise MalformedRequest("an identifier is empty or holds control characters")
    if not _UUID.fullmatch(record.record_id):
        raise MalformedRequest("record_id is not a UUID in lower case")
    try:
        occurred_at = dt.datetime.fromisoformat(raw["occurred_at"])
    except (ValueError, TypeError) as exc:
        raise MalformedRequest("occurred_at is not spelled as it must be") from exc
    if occurred_at.tzinfo is None or not _YEARS[0] <= occurred_at.year <= _YEARS[1]:
        raise MalformedRequest("occurred_at has no time zone, or is in no year of ours")
    return Entry(record.record_id, occurred_at, record, canonical.render(raw))


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
