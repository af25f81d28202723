"""RFC 5424 messages in RFC 5425 frames, from leaves and checkpoints (pure).

A message above 8192 octets loses the certificate first, then everything but the envelope of its
record; what was left out is named in the structured data. Nothing is cut in the middle.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from estcore.tlog import canonical

MAX_OCTETS = 8192
_SD_ID = "estsuite@32473"
_BOM = b"\xef\xbb\xbf"
_SEVERITIES = {"critical": 2, "error": 3, "warning": 4, "notice": 5, "info": 6}
_ENVELOPE = (
    "record_id",
    "correlation_id",
    "occurred_at",
    "action",
    "phase",
    "outcome",
    "severity",
    "reason_code",
    "producer",
    "producer_seq",
)
_ESCAPED = re.compile(r'(["\\\]])')
_NOT_PRINTABLE = re.compile(r"[^\x21-\x7e]")
_HOSTNAME, _APP_NAME, _MSGID = 255, 48, 32
_PARAMETER = 256


@dataclass(frozen=True)
class Formatted:
    """A frame, and what its message leaves out of the record."""

    frame: bytes
    omitted: str = ""


def record(leaf: str, facility: int) -> Formatted:
    """Return the frame of one record given its leaf."""
    value = json.loads(leaf)
    body = value["record"]
    message = _message(value, leaf, facility, "")
    if len(message) <= MAX_OCTETS:
        return Formatted(_frame(message))
    if isinstance(body.get("target"), dict) and body["target"].pop("certificate", None):
        trimmed = _message(value, canonical.render(value), facility, "certificate")
        if len(trimmed) <= MAX_OCTETS:
            return Formatted(_frame(trimmed), "certificate")
    value["record"] = {name: body[name] for name in _ENVELOPE if name in body}
    small = _message(value, canonical.render(value), facility, "details")
    return Formatted(_frame(small), "details")


def checkpoint(size: int, note: str, signed_at: str, hostname: str, facility: int) -> bytes:
    """Return the frame of a signed checkpoint."""
    data = _data(
        record_id=f"checkpoint-{size}", action="audit.checkpoint", phase="outcome", size=str(size)
    )
    header = _header(facility, "info", signed_at, hostname, "audit", "audit.checkpoint")
    text = canonical.encode({"checkpoint": note, "size": size})
    return _frame(header + data + b" " + _BOM + text)


def escape(value: str) -> str:
    """Return a PARAM-VALUE (RFC 5424 section 6.3.3): quote, backslash and ] are escaped."""
    return _ESCAPED.sub(r"\\\1", value)


def _message(value: dict[str, Any], text: str, facility: int, omitted: str) -> bytes:
    body = value["record"]
    producer = body["producer"]
    header = _header(
        facility,
        str(body.get("severity", "info")),
        str(value["recorded_at"]),
        str(producer["instance"]),
        str(producer["service"]),
        str(body["action"]),
    )
    parameters = {
        "record_id": str(body["record_id"]),
        "log_index": str(value["log_index"]),
        "correlation_id": str(body["correlation_id"]),
        "action": str(body["action"]),
        "phase": str(body["phase"]),
    }
    if omitted:
        parameters |= {"trimmed": "true", "omitted": omitted}
    return header + _data(**parameters) + b" " + _BOM + text.encode()


def _header(
    facility: int, severity: str, timestamp: str, hostname: str, app: str, msgid: str
) -> bytes:
    priority = facility * 8 + _SEVERITIES.get(severity, _SEVERITIES["info"])
    return (
        f"<{priority}>1 {timestamp} {_name(hostname, _HOSTNAME)} {_name(app, _APP_NAME)}"
        f" - {_name(msgid, _MSGID)} "
    ).encode()


def _name(text: str, limit: int) -> str:
    """A header field: printable ASCII without blanks, - when there is none."""
    return _NOT_PRINTABLE.sub("_", text)[:limit] or "-"


def _data(**parameters: str) -> bytes:
    inside = "".join(f' {n}="{escape(v[:_PARAMETER])}"' for n, v in parameters.items())
    return f"[{_SD_ID}{inside}]".encode()


def _frame(message: bytes) -> bytes:
    return b"%d %b" % (len(message), message)
