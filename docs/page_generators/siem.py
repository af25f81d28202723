"""The table of fields in every format for SIEMs, found by rendering a record with marked values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from audit.formats import cef, ecs, leef, ocsf, otlp, syslog
from audit.formats.entry import Entry

_TIME, _RECORDED = "2026-01-02T03:04:05Z", "2026-01-02T03:04:06Z"
_MARKED = {
    "record_id": "record.record_id",
    "action": "record.action",
    "phase": "record.phase",
    "outcome": "record.outcome",
    "severity": "record.severity",
    "reason_code": "record.reason_code",
    "reason": "record.reason",
    "correlation_id": "record.correlation_id",
    "producer": "record.producer.service",
    "instance": "record.producer.instance",
    "actor": "record.actor.subject",
    "auth_method": "record.actor.auth_method",
    "client address": "record.origin.peer",
    "user_agent": "record.origin.user_agent",
    "tenant": "record.target.tenant",
    "service (owner)": "record.target.service",
    "serial number": "record.target.serial",
    "fingerprint": "record.target.certificate_sha256",
    "subject": "record.target.subject",
    "names": "record.target.san",
    "issuer": "record.target.issuer_id",
    "profile": "record.target.profile",
}
"""What a person calls a field, and where it is in the JSON of a record."""
_FORMATS = ("syslog SD", "CEF", "LEEF", "ECS", "OCSF", "OTLP")
_WORDS = {"outcome": "failure", "severity": "warning", "phase": "denied"}


def page() -> str:
    """Return the generated part of siem.md."""
    marks = {path: _WORDS.get(name, f"m{n}xyz") for n, (name, path) in enumerate(_MARKED.items())}
    marks["record.origin.peer"] = "192.0.2.77"
    rendered = dict(_rendered(_entry(marks)))
    lines = ["| field | JSON | " + " | ".join(_FORMATS) + " |"]
    lines.append("|---" * (len(_FORMATS) + 2) + "|")
    for name, path in _MARKED.items():
        cells = [_cell(rendered[form], marks[path], name) for form in _FORMATS]
        lines.append(f"| {name} | `{path}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _entry(marks: Mapping[str, str]) -> Entry:
    value: dict[str, Any] = {
        "log_index": 7,
        "recorded_at": _RECORDED,
        "record": {"occurred_at": _TIME, "producer": {"boot_id": "b"}},
    }
    for path, mark in marks.items():
        inside = value
        *places, name = path.split(".")
        for place in places:
            inside = inside.setdefault(place, {})
        inside[name] = [mark] if name == "san" else mark
    return Entry.of_record(7, json.dumps(value))


def _rendered(entry: Entry) -> Iterator[tuple[str, dict[str, str]]]:
    message = syslog.render(entry, syslog.Options()).message.decode()
    data = message[message.index("[") + 1 : message.index("] {")]
    yield "syslog SD", dict(pair.split("=", 1) for pair in data.split(" ")[1:])
    extension = cef.render(entry).split("|", 7)
    yield (
        "CEF",
        {
            "signature id": extension[4],
            "severity": extension[6],
            **dict(pair.split("=", 1) for pair in extension[7].split(" ")),
        },
    )
    header = leef.render(entry).split("|", 6)
    yield (
        "LEEF",
        {
            "event id": header[4],
            **dict(pair.split("=", 1) for pair in header[6].split("\t")),
        },
    )
    yield "ECS", dict(_paths(ecs.render(entry)))
    yield "OCSF", dict(_paths(ocsf.render(entry)))
    log_record = otlp.render(entry)
    attributes = {a.key: _text(a.value) for a in log_record.attributes}
    yield (
        "OTLP",
        {
            "event_name": log_record.event_name,
            "severity_text": log_record.severity_text,
            **attributes,
        },
    )


def _text(value: Any) -> str:
    inside = value.array_value.values
    return inside[0].string_value if inside else value.string_value or str(value.int_value)


def _paths(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _paths(inner, f"{place}.{name}" if place else name)
    elif isinstance(value, list):
        for inner in value:
            yield from _paths(inner, place)
    else:
        yield place, str(value)


def _cell(rendered: Mapping[str, str], mark: str, name: str) -> str:
    """Return the keys whose value has the mark; fields with the whole record are not meant."""
    whole = {"event.original", "raw_data", "message"}
    found = [
        key
        for key, value in rendered.items()
        if key not in whole and _is_marked(value.lower().strip('"'), mark)
    ]
    if not found and name == "severity":
        found = [key for key in ("severity", "sev", "severity_id") if key in rendered]
    return ", ".join(f"`{key}`" for key in found[:2]) or "–"


def _is_marked(value: str, mark: str) -> bool:
    return value == mark if mark in _WORDS.values() else mark in value
