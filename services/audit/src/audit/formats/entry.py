"""An entry of the log to deliver, a record or a checkpoint, and the facts formats show (pure).

Formats differ in names and nesting, not in what they say: each takes ``Facts``, so a field that is
found here is in all of them.
"""

from __future__ import annotations

import copy
import datetime as dt
import ipaddress
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from estcore.tlog import canonical

CHECKPOINT_ACTION = "audit.checkpoint"
SEVERITIES = {"critical": 2, "error": 3, "warning": 4, "notice": 5, "info": 6}
"""Severity words of records, and their numbers in RFC 5424 section 6.2.1."""
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True)
class Facts:
    """What a SIEM searches by. Empty strings are unknown; times are aware, UTC.

    ``serial`` is the serial number of the certificate the entry is about, hexadecimal.
    """

    record_id: str
    action: str
    phase: str
    outcome: str
    severity: str
    occurred_at: dt.datetime
    recorded_at: dt.datetime
    service: str
    instance: str
    correlation_id: str = ""
    trace_id: str = ""
    reason_code: str = ""
    reason: str = ""
    tenant: str = ""
    owner: str = ""
    serial: str = ""
    fingerprint: str = ""
    subject: str = ""
    names: tuple[str, ...] = ()
    issuer: str = ""
    profile: str = ""
    label: str = ""
    not_before: dt.datetime | None = None
    not_after: dt.datetime | None = None
    actor: str = ""
    actor_type: str = ""
    auth_method: str = ""
    actor_serial: str = ""
    rule: str = ""
    peer: str = ""
    user_agent: str = ""
    tls_version: str = ""
    log_index: int | None = None
    items: int = 1

    @property
    def peer_address(self) -> str:
        """The client's address without its port."""
        host, _, port = self.peer.rpartition(":")
        return host.strip("[]") if port.isdigit() and host else self.peer

    @property
    def peer_ip(self) -> str:
        """The client's IP address without zone (RFC 4007 section 11); empty where it is none."""
        try:
            return str(ipaddress.ip_address(self.peer_address.partition("%")[0]))
        except ValueError:
            return ""

    @property
    def peer_port(self) -> int | None:
        """The client's port, where it is known."""
        host, _, port = self.peer.rpartition(":")
        return int(port) if host and port.isdigit() else None


@dataclass(frozen=True)
class Entry:
    """One entry: the text that is hashed in the log, or a checkpoint's note.

    ``leaf`` is the canonical JSON of a record with its place in the log; of a checkpoint, JSON
    with its note and size. A checkpoint has no ``log_index``.
    """

    key: str
    leaf: str
    log_index: int | None = None
    signed_at: str = ""
    instance: str = ""

    @classmethod
    def of_record(cls, log_index: int, leaf: str) -> Entry:
        """Return the entry of a record.

        Raises:
            ValueError, KeyError, TypeError: the leaf is none.
        """
        value = dict(json.loads(leaf))
        entry = cls(str(value["record"]["record_id"]), leaf, log_index)
        entry.__dict__["value"] = value  # what the cached property would parse again
        return entry

    @classmethod
    def of_checkpoint(cls, size: int, note: str, signed_at: str, instance: str) -> Entry:
        """Return the entry of a signed checkpoint; ``instance`` is the process that sends it."""
        text = json.dumps({"checkpoint": note, "size": size}, separators=(",", ":"))
        return cls(f"checkpoint-{size}", text, None, signed_at, instance)

    @cached_property
    def value(self) -> Mapping[str, Any]:
        """The entry as an object; treat it as read-only."""
        return dict(json.loads(self.leaf))

    @property
    def is_checkpoint(self) -> bool:
        """A checkpoint, not a record."""
        return self.log_index is None

    def without(self, members: Sequence[str]) -> Entry:
        """Return the entry without these members of its record, given as ``target.certificate``.

        Members that it does not have change nothing.
        """
        value = copy.deepcopy(dict(self.value))
        for member in members:
            inside = value.get("record", value)
            *path, name = member.split(".")
            for step in path:
                inside = inside.get(step) if isinstance(inside, dict) else None
            if isinstance(inside, dict):
                inside.pop(name, None)
        return replace(self, leaf=canonical.render(value))

    def only(self, members: Collection[str]) -> Entry:
        """Return the entry of a record with only these members of the record."""
        value = dict(self.value)
        value["record"] = {k: v for k, v in value["record"].items() if k in members}
        return replace(self, leaf=canonical.render(value))

    @cached_property
    def facts(self) -> Facts:
        """What the entry says, by the names of this module."""
        return _of_checkpoint(self) if self.is_checkpoint else _of_record(self)


def _of_checkpoint(entry: Entry) -> Facts:
    signed_at = moment(entry.signed_at)
    return Facts(
        record_id=entry.key,
        action=CHECKPOINT_ACTION,
        phase="outcome",
        outcome="success",
        severity="info",
        occurred_at=signed_at,
        recorded_at=signed_at,
        service="audit",
        instance=entry.instance,
        actor=entry.instance,
        actor_type="system",
    )


def _of_record(entry: Entry) -> Facts:
    value = entry.value
    record: Mapping[str, Any] = value["record"]
    producer, target = record["producer"], record.get("target") or {}
    actor, origin = record.get("actor") or {}, record.get("origin") or {}

    def text(source: Mapping[str, Any], name: str) -> str:
        found = source.get(name)
        return "" if found is None else str(found)

    return Facts(
        record_id=text(record, "record_id"),
        action=text(record, "action"),
        phase=text(record, "phase"),
        outcome=text(record, "outcome"),
        severity=text(record, "severity") or "info",
        occurred_at=moment(text(record, "occurred_at")),
        recorded_at=moment(text(value, "recorded_at")),
        service=text(producer, "service"),
        instance=text(producer, "instance"),
        correlation_id=text(record, "correlation_id"),
        trace_id=text(record, "trace_id"),
        reason_code=text(record, "reason_code"),
        reason=text(record, "reason"),
        tenant=text(target, "tenant"),
        owner=text(target, "service"),
        serial=text(target, "serial"),
        fingerprint=text(target, "certificate_sha256"),
        subject=text(target, "subject"),
        names=tuple(str(name) for name in target.get("san") or ()),
        issuer=text(target, "issuer_id"),
        profile=text(target, "profile"),
        label=text(target, "label"),
        not_before=_optional(target.get("not_before")),
        not_after=_optional(target.get("not_after")),
        actor=text(actor, "subject"),
        actor_type=text(actor, "type"),
        auth_method=text(actor, "auth_method"),
        actor_serial=text(actor, "certificate_serial"),
        rule=text(actor, "rule"),
        peer=text(origin, "peer"),
        user_agent=text(origin, "user_agent"),
        tls_version=text(origin, "tls_version"),
        log_index=entry.log_index,
        items=max(1, len(record.get("items") or ())),
    )


def moment(text: str) -> dt.datetime:
    """Return an ISO 8601 time; the beginning of 1970 where it is none."""
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError:
        return _EPOCH
    return found if found.tzinfo else found.replace(tzinfo=dt.UTC)


def _optional(text: object) -> dt.datetime | None:
    return None if text is None else moment(str(text))


def milliseconds(at: dt.datetime) -> int:
    """Return the time in milliseconds since 1970."""
    return (at - _EPOCH) // dt.timedelta(milliseconds=1)


def nanoseconds(at: dt.datetime) -> int:
    """Return the time in nanoseconds since 1970, exact to the microsecond."""
    return (at - _EPOCH) // dt.timedelta(microseconds=1) * 1000


def without_empty(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping without unknown values, nested ones included."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        kept = without_empty(value) if isinstance(value, Mapping) else value
        if kept not in (None, "", (), [], {}):
            found[name] = kept
    return found
