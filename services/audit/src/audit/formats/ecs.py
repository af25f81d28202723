"""Elastic Common Schema 8.17: one document for each entry."""

from __future__ import annotations

from typing import Any

from audit.formats.entry import Entry, Facts, without_empty

ECS_VERSION = "8.17.0"
_OUTCOMES = {"success": "success", "failure": "failure"}
_SYSTEM = ("service.", "config.", "audit.")
_IDENTITY = ("certificate.", "est.", "rotation.", "renewal.", "operator.")


def render(entry: Entry) -> dict[str, Any]:
    """Return an entry as an ECS document; the whole of it is in ``event.original``.

    ``source.address`` is as the record has it, ``source.ip`` only an address without a zone: a
    field of type ip refuses the document for anything else.
    """
    facts = entry.facts
    return without_empty(
        {
            "@timestamp": facts.occurred_at.isoformat(),
            "ecs": {"version": ECS_VERSION},
            "message": _message(facts),
            "event": _event(entry),
            "log": {"level": facts.severity},
            "service": {"name": facts.service, "node": {"name": facts.instance}},
            "organization": {"id": facts.tenant},
            "user": {"name": facts.actor},
            "source": {
                "address": facts.peer_address,
                "ip": facts.peer_ip,
                "port": facts.peer_port,
            },
            "user_agent": {"original": facts.user_agent},
            "tls": {"version": facts.tls_version.removeprefix("TLSv")},
            "trace": {"id": facts.trace_id},
            "x509": {
                "serial_number": facts.serial.upper(),
                "subject": {"distinguished_name": facts.subject},
                "alternative_names": list(facts.names),
                "not_before": facts.not_before.isoformat() if facts.not_before else None,
                "not_after": facts.not_after.isoformat() if facts.not_after else None,
            },
            "hash": {"sha256": facts.fingerprint},
            "estsuite": _own(facts),
        }
    )


def _event(entry: Entry) -> dict[str, Any]:
    facts = entry.facts
    category, kind = _classified(facts)
    return {
        "id": facts.record_id,
        "kind": "event",
        "category": category,
        "type": kind,
        "action": facts.action,
        "outcome": _OUTCOMES.get(facts.outcome, "unknown"),
        "code": facts.reason_code,
        "reason": facts.reason,
        "provider": "est-audit",
        "module": "estsuite",
        "dataset": "estsuite.audit",
        "created": facts.recorded_at.isoformat(),
        "sequence": facts.log_index,
        "original": entry.leaf,
    }


def _classified(facts: Facts) -> tuple[list[str], list[str]]:
    """Return event.category and event.type, from the values that ECS allows."""
    denied = facts.phase == "denied"
    if facts.action.startswith("est.") and denied and facts.reason_code.startswith("auth."):
        return ["authentication"], ["start", "denied"]
    if facts.action.startswith(_SYSTEM):
        return ["configuration" if facts.action.startswith("config.") else "process"], ["info"]
    if facts.action.startswith(_IDENTITY):
        return ["iam"], ["admin", "denied"] if denied else ["admin", "change"]
    return ["process"], ["info"]


def _own(facts: Facts) -> dict[str, Any]:
    return {
        "correlation_id": facts.correlation_id,
        "phase": facts.phase,
        "owner": facts.owner,
        "issuer": facts.issuer,
        "profile": facts.profile,
        "label": facts.label,
        "auth_method": facts.auth_method,
        "actor_type": facts.actor_type,
        "actor_serial_number": facts.actor_serial,
        "rule": facts.rule,
        "items": facts.items if facts.items > 1 else None,
    }


def _message(facts: Facts) -> str:
    about = facts.subject or ",".join(facts.names) or facts.serial
    parts = (facts.action, facts.outcome, about, facts.reason_code)
    return " ".join(part for part in parts if part)
