"""CloudEvents 1.0 in JSON (structured mode), one event for each entry."""

from __future__ import annotations

from typing import Any

from audit.formats.entry import Entry, without_empty

CONTENT_TYPE = "application/cloudevents+json"
_PREFIX = "estsuite.audit."


def render(entry: Entry) -> dict[str, Any]:
    """Return an entry as an event; ``data`` is the entry itself."""
    facts = entry.facts
    attributes = without_empty(
        {
            "specversion": "1.0",
            "id": facts.record_id,
            "source": f"/est-audit/{facts.service}/{facts.instance}",
            "type": _PREFIX + facts.action,
            "time": facts.occurred_at.isoformat(),
            "subject": facts.subject or facts.serial,
            "datacontenttype": "application/json",
            "severity": facts.severity,
            "outcome": facts.outcome,
            "correlationid": facts.correlation_id,
        }
    )
    return attributes | {"data": dict(entry.value)}
