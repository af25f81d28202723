"""Open Cybersecurity Schema Framework 1.4: API Activity, Entity Management, Authentication.

OCSF has no class for a PKI. Calls of clients and operators are API Activity (6003), what happens to
a certificate is Entity Management (3004), a refusal for credentials is Authentication (3002).
"""

from __future__ import annotations

from typing import Any

from audit.formats.entry import Entry, Facts, milliseconds, without_empty

OCSF_VERSION = "1.4.0"
_SEVERITY = {"critical": 5, "error": 4, "warning": 3, "notice": 2, "info": 1}
_STATUS = {"success": (1, "Success"), "failure": (2, "Failure")}
_API, _ENTITY, _AUTHENTICATION = 6003, 3004, 3002
_IAM, _APPLICATION = 3, 6
_ACTIVITIES = {
    "certificate.issue": 1,
    "certificate.returned": 2,
    "certificate.revoked": 4,
    "rotation.activated": 10,
    "rotation.deprecated": 9,
    "rotation.retired": 11,
}
"""Entity Management: 1 create, 2 read, 4 delete, 9 disable, 10 activate, 11 deactivate."""
_UPDATE, _OTHER, _LOGON = 3, 99, 1


def render(entry: Entry) -> dict[str, Any]:
    """Return an entry as an OCSF event; the whole of it is in ``raw_data``."""
    facts = entry.facts
    class_uid, activity = _classified(facts)
    status_id, status = _STATUS.get(facts.outcome, (0, "Unknown"))
    own = {
        "correlation_id": facts.correlation_id,
        "phase": facts.phase,
        "profile": facts.profile,
        "owner": facts.owner,
        "issuer": facts.issuer,
        "rule": facts.rule,
        "auth_method": facts.auth_method,
        "log_index": facts.log_index,
    }
    event: dict[str, Any] = {
        "class_uid": class_uid,
        "category_uid": _APPLICATION if class_uid == _API else _IAM,
        "activity_id": activity,
        "type_uid": class_uid * 100 + activity,
        "time": milliseconds(facts.occurred_at),
        "severity_id": _SEVERITY.get(facts.severity, 1),
        "status_id": status_id,
        "status": status,
        "status_code": facts.reason_code,
        "status_detail": facts.reason,
        "message": f"{facts.action} {facts.outcome}",
        "count": facts.items if facts.items > 1 else None,
        "metadata": {
            "version": OCSF_VERSION,
            "uid": facts.record_id,
            "correlation_uid": facts.correlation_id,
            "logged_time": milliseconds(facts.recorded_at),
            "sequence": facts.log_index,
            "tenant_uid": facts.tenant,
            "product": {"name": "est-audit", "vendor_name": "estsuite"},
        },
        "actor": {"user": {"name": facts.actor}, "app_name": facts.user_agent},
        "src_endpoint": {"ip": facts.peer_ip, "port": facts.peer_port},
        "raw_data": entry.leaf,
        "unmapped": own,
    }
    event |= _of_class(class_uid, facts)
    return without_empty(event)


def _classified(facts: Facts) -> tuple[int, int]:
    if facts.phase == "denied" and facts.reason_code.startswith("auth."):
        return _AUTHENTICATION, _LOGON
    if facts.action.startswith(("certificate.", "rotation.", "renewal.")):
        return _ENTITY, _ACTIVITIES.get(facts.action, _UPDATE)
    return _API, _OTHER


def _of_class(class_uid: int, facts: Facts) -> dict[str, Any]:
    certificate = {
        "serial_number": facts.serial,
        "issuer": facts.issuer,
        "subject": facts.subject,
        "sans": [{"name": n, "type": n.partition(":")[0]} for n in facts.names],
        "created_time": milliseconds(facts.not_before) if facts.not_before else None,
        "expiration_time": milliseconds(facts.not_after) if facts.not_after else None,
        "fingerprints": [{"algorithm_id": 3, "algorithm": "SHA-256", "value": facts.fingerprint}]
        if facts.fingerprint
        else [],
    }
    about = [{"name": "certificate", "value": facts.serial, "data": certificate}]
    enriched: dict[str, Any] = {"enrichments": about if facts.serial else []}
    if class_uid == _ENTITY:
        name = facts.subject or ",".join(facts.names) or facts.serial or facts.record_id
        return {
            "entity": {
                "name": name,
                "uid": facts.fingerprint or facts.serial,
                "type": "Certificate",
            },
        } | enriched
    if class_uid == _AUTHENTICATION:
        return {
            "user": {"name": facts.actor or "unknown"},
            "auth_protocol": facts.auth_method,
            "service": {"name": facts.service},
        }
    return {
        "api": {"operation": facts.action, "service": {"name": facts.service}},
        "dst_endpoint": {"name": facts.instance, "svc_name": facts.service},
    } | enriched
