"""RFC 5424 messages with an entry as JSON, CEF, LEEF, OCSF or ECS (pure).

The structured data has what a SIEM searches by. A message above the limit loses the bulky members
of its record, in the order of ``_BULKY``, until it fits; which ones is in the structured data
(``trimmed``, ``omitted``). Nothing else is cut, and no message is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from audit.formats import cef, ecs, leef, ocsf
from audit.formats.entry import SEVERITIES, Entry, Facts

MAX_OCTETS = 8192
"""What receivers should take (RFC 5424 section 6.1)."""
Format = Literal["json", "cef", "leef", "ocsf", "ecs"]
NO_ENTERPRISE = 0
"""Reserved by IANA for no organisation; set your own private enterprise number."""
_BOM = b"\xef\xbb\xbf"
_BULKY = (
    "target.certificate",
    "items",
    "details",
    "target.san",
    "origin.user_agent",
    "origin.client_correlation_id",
    "reason",
    "target.subject",
    "actor.subject",
)
_ENVELOPE = frozenset(
    {
        *("record_id", "correlation_id", "occurred_at", "action", "phase", "outcome"),
        *("severity", "reason_code", "producer", "producer_seq"),
    }
)
_ESCAPED = re.compile(r'(["\\\]])')
_NOT_PRINTABLE = re.compile(r"[^\x21-\x7e]")
_HOSTNAME, _APP_NAME, _MSGID = 255, 48, 32
_PARAMETER = 256


@dataclass(frozen=True)
class Options:
    """How messages of a sink look.

    ``bom`` precedes the message as RFC 5424 section 6.4 wants it; parsers of JSON do not expect it.
    """

    form: Format = "json"
    facility: int = 13
    bom: bool = False
    enterprise_number: int = NO_ENTERPRISE
    max_octets: int = MAX_OCTETS


@dataclass(frozen=True)
class Formatted:
    """A message, and the members of the record that it leaves out."""

    message: bytes
    omitted: tuple[str, ...] = ()


def render(entry: Entry, options: Options) -> Formatted:
    """Return an entry as a message of at most ``max_octets``, if its envelope fits."""
    message = _message(entry, options, ())
    if len(message) <= options.max_octets or entry.is_checkpoint:
        return Formatted(message)
    omitted: list[str] = []
    for member in _BULKY:
        smaller = entry.without([member])
        if smaller.leaf == entry.leaf:
            continue
        entry = smaller
        omitted.append(member)
        message = _message(entry, options, tuple(omitted))
        if len(message) <= options.max_octets:
            return Formatted(message, tuple(omitted))
    envelope = entry.only(_ENVELOPE)
    return Formatted(_message(envelope, options, ("all",)), ("all",))


def framed(message: bytes) -> bytes:
    """Return a message in the octet-counting frame of RFC 5425 section 4.3."""
    return b"%d %b" % (len(message), message)


def escape(value: str) -> str:
    """Return a PARAM-VALUE (RFC 5424 section 6.3.3): quote, backslash and ] are escaped."""
    return _ESCAPED.sub(r"\\\1", value) if _ESCAPED.search(value) else value


def _message(entry: Entry, options: Options, omitted: tuple[str, ...]) -> bytes:
    facts = entry.facts
    priority = options.facility * 8 + SEVERITIES.get(facts.severity, SEVERITIES["info"])
    recorded_at = str(entry.value.get("recorded_at") or entry.signed_at)
    header = (
        f"<{priority}>1 {_name(recorded_at, 32)} {_name(facts.instance, _HOSTNAME)}"
        f" {_name(facts.service, _APP_NAME)} - {_name(facts.action, _MSGID)} "
    ).encode()
    body = _BODIES[options.form](entry).encode("utf-8", "replace")
    data = _data(options.enterprise_number, facts, entry, omitted)
    return header + data + b" " + (_BOM if options.bom else b"") + body


def _data(enterprise_number: int, facts: Facts, entry: Entry, omitted: tuple[str, ...]) -> bytes:
    """Return the structured data; parameters without a value are left out."""
    parameters = {
        "record_id": facts.record_id,
        "log_index": "" if entry.log_index is None else str(entry.log_index),
        "size": str(entry.value["size"]) if entry.is_checkpoint else "",
        "action": facts.action,
        "phase": facts.phase,
        "outcome": facts.outcome,
        "severity": facts.severity,
        "reason_code": facts.reason_code,
        "correlation_id": facts.correlation_id,
        "tenant": facts.tenant,
        "service": facts.owner,
        "serial_number": facts.serial,
        "items": str(facts.items) if facts.items > 1 else "",
        "trimmed": "true" if omitted else "",
        "omitted": ",".join(omitted),
    }
    inside = "".join(f' {n}="{escape(v[:_PARAMETER])}"' for n, v in parameters.items() if v)
    return f"[estsuite@{enterprise_number}{inside}]".encode()


def _name(text: str, limit: int) -> str:
    """A header field: printable ASCII without blanks, - when there is none."""
    if _NOT_PRINTABLE.search(text):
        text = _NOT_PRINTABLE.sub("_", text)
    return text[:limit] or "-"


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


_BODIES: dict[Format, Callable[[Entry], str]] = {
    "json": lambda entry: entry.leaf,
    "cef": cef.render,
    "leef": leef.render,
    "ocsf": lambda entry: _compact(ocsf.render(entry)),
    "ecs": lambda entry: _compact(ecs.render(entry)),
}
