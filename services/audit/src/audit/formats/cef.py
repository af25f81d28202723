r"""ArcSight Common Event Format, version 0 (CEF Implementation Standard, version 26).

    CEF:0|vendor|product|version|signature id|name|severity|extension

In the header ``\`` and ``|`` are escaped, in extension values ``\``, ``=`` and line breaks.
"""

from __future__ import annotations

from audit.formats.entry import Entry, Facts, milliseconds

_SEVERITY = {"critical": 10, "error": 8, "warning": 6, "notice": 3, "info": 1}
_VENDOR, _PRODUCT, _VERSION = "estsuite", "est-audit", "1"
_HEADER_LIMIT, _VALUE_LIMIT = 1023, 1023


def render(entry: Entry) -> str:
    """Return an entry as one line of CEF."""
    facts = entry.facts
    header = (
        *(_VENDOR, _PRODUCT, _VERSION),
        facts.action,
        f"{facts.action} {facts.outcome}",
        str(_SEVERITY.get(facts.severity, _SEVERITY["info"])),
    )
    extension = " ".join(f"{k}={_value(v)}" for k, v in _extension(facts).items() if v)
    return "CEF:0|" + "|".join(map(_header, header)) + "|" + extension


def _extension(facts: Facts) -> dict[str, str]:
    # In CEF:0 ``src`` is an IPv4 address; an IPv6 address has a field with a label of its own.
    labelled = {
        "c6a2": ("Source IPv6 Address", facts.peer_ip if ":" in facts.peer_ip else ""),
        "cs1": ("correlationId", facts.correlation_id),
        "cs2": ("serialNumber", facts.serial),
        "cs3": ("profile", facts.profile),
        "cs4": ("issuer", facts.issuer),
        "cs5": ("tenant", facts.tenant),
        "cs6": ("names", ",".join(facts.names)),
    }
    fields = {
        "rt": str(milliseconds(facts.recorded_at)),
        "start": str(milliseconds(facts.occurred_at)),
        "externalId": facts.record_id,
        "act": facts.action,
        "outcome": facts.outcome,
        "reason": facts.reason_code,
        "msg": facts.reason,
        "suser": facts.actor,
        "duser": facts.subject,
        "dproc": facts.owner,
        "src": "" if ":" in facts.peer_ip else facts.peer_ip,
        "spt": str(facts.peer_port or ""),
        "requestClientApplication": facts.user_agent,
        "dvchost": facts.instance,
        "deviceProcessName": facts.service,
        "cat": facts.phase,
        "fileHash": facts.fingerprint,
        "cnt": str(facts.items) if facts.items > 1 else "",
    }
    for key, (label, value) in labelled.items():
        if value:
            fields[f"{key}Label"], fields[key] = label, value
    if facts.log_index is not None:
        fields["cn1Label"], fields["cn1"] = "logIndex", str(facts.log_index)
    return fields


def _header(text: str) -> str:
    one_line = " ".join(text[:_HEADER_LIMIT].splitlines())
    return one_line.replace("\\", "\\\\").replace("|", "\\|")


def _value(text: str) -> str:
    cut = text if len(text) <= _VALUE_LIMIT else text[: _VALUE_LIMIT - 1] + "…"
    escaped = cut.replace("\\", "\\\\").replace("=", "\\=")
    return escaped.replace("\r\n", "\\n").replace("\n", "\\n").replace("\r", "\\r")
