"""IBM QRadar Log Event Extended Format, version 2.0.

    LEEF:2.0|vendor|product|version|event id|delimiter|attributes

Attributes are separated by a tab. LEEF has no escape for it or for line breaks: in a value they are
spaces, so a value can begin no attribute of its own.
"""

from __future__ import annotations

import re

from audit.formats.entry import Entry, Facts, milliseconds

_SEVERITY = {"critical": 10, "error": 8, "warning": 6, "notice": 3, "info": 1}
_VENDOR, _PRODUCT, _VERSION = "estsuite", "est-audit", "1"
_DELIMITER = "x09"
_BREAKS = re.compile(r"[\t\r\n\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_VALUE_LIMIT = 2000


def render(entry: Entry) -> str:
    """Return an entry as one line of LEEF."""
    facts = entry.facts
    header = "|".join(_header(text) for text in (_VENDOR, _PRODUCT, _VERSION, facts.action))
    attributes = "\t".join(f"{k}={_value(v)}" for k, v in _attributes(facts).items() if v)
    return f"LEEF:2.0|{header}|{_DELIMITER}|{attributes}"


def _attributes(facts: Facts) -> dict[str, str]:
    return {
        "devTime": str(milliseconds(facts.occurred_at)),
        "sev": str(_SEVERITY.get(facts.severity, _SEVERITY["info"])),
        "cat": facts.phase,
        "usrName": facts.actor,
        "src": facts.peer_ip,
        "srcPort": str(facts.peer_port or ""),
        "identHostName": facts.instance,
        "recordId": facts.record_id,
        "logIndex": "" if facts.log_index is None else str(facts.log_index),
        "correlationId": facts.correlation_id,
        "outcome": facts.outcome,
        "reasonCode": facts.reason_code,
        "reason": facts.reason,
        "producer": facts.service,
        "authMethod": facts.auth_method,
        "tenant": facts.tenant,
        "service": facts.owner,
        "serialNumber": facts.serial,
        "certificateSha256": facts.fingerprint,
        "subject": facts.subject,
        "names": ",".join(facts.names),
        "issuer": facts.issuer,
        "profile": facts.profile,
        "userAgent": facts.user_agent,
        "items": str(facts.items) if facts.items > 1 else "",
    }


def _header(text: str) -> str:
    return _BREAKS.sub(" ", text).replace("|", "_")


def _value(text: str) -> str:
    one_line = _BREAKS.sub(" ", text)
    return one_line if len(one_line) <= _VALUE_LIMIT else one_line[: _VALUE_LIMIT - 1] + "…"
