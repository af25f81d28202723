"""Conditions in the status of Kubernetes objects, by the API conventions and cert-manager's (pure).

- A list has one condition of each type; others' conditions are kept as they are.
- ``lastTransitionTime`` changes with ``status`` only.
- Ready of a CertificateRequest: ``Pending``, ``Issued``, ``Failed`` or ``Denied``; the last
  two have ``failureTime`` beside them. InvalidRequest says that a request can never be granted.
"""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Sequence
from typing import Any

Condition = dict[str, Any]
READY, INVALID, APPROVED, DENIED = "Ready", "InvalidRequest", "Approved", "Denied"
PENDING, ISSUED, FAILED = "Pending", "Issued", "Failed"
_MESSAGE_LIMIT = 1024


def conditions_of(found: dict[str, Any]) -> list[Condition]:
    """Return the conditions in an object's status."""
    return list((found.get("status") or {}).get("conditions") or [])


def find(conditions: Sequence[Condition], kind: str) -> Condition:
    """Return the condition of a type; empty if there is none."""
    return next((c for c in conditions if c.get("type") == kind), {})


def is_true(conditions: Sequence[Condition], kind: str) -> bool:
    """Return whether a condition is there with status True."""
    return find(conditions, kind).get("status") == "True"


def with_condition(
    conditions: Sequence[Condition], new: Condition, *, now: dt.datetime
) -> list[Condition]:
    """Return the conditions with ``new`` in place of the one of its type."""
    before = find(conditions, new["type"])
    moment = before.get("lastTransitionTime") if before.get("status") == new["status"] else None
    made = {**new, "lastTransitionTime": moment or rfc3339(now)}
    if not before:
        return [*conditions, made]
    return [made if c is before else c for c in conditions]


def condition(kind: str, status: bool, reason: str, message: str) -> Condition:
    """Return a condition; the message is one line of at most 1,024 characters."""
    text = " ".join(message.split())[:_MESSAGE_LIMIT]
    return {"type": kind, "status": str(status), "reason": reason, "message": text}


def pending(conditions: Sequence[Condition], message: str, *, now: dt.datetime) -> Condition:
    """Return the status of a request that will be processed later."""
    new = condition(READY, False, PENDING, message)
    return {"conditions": with_condition(conditions, new, now=now)}


def failed(conditions: Sequence[Condition], message: str, *, now: dt.datetime) -> Condition:
    """Return the status of a request that was refused for good."""
    new = condition(READY, False, FAILED, message)
    return {"conditions": with_condition(conditions, new, now=now), "failureTime": rfc3339(now)}


def denied(conditions: Sequence[Condition], *, now: dt.datetime) -> Condition:
    """Return the status of a request that an approver denied."""
    message = find(conditions, DENIED).get("message") or "no message"
    new = condition(READY, False, DENIED, f"the request was denied: {message}")
    return {"conditions": with_condition(conditions, new, now=now), "failureTime": rfc3339(now)}


def invalid(conditions: Sequence[Condition], message: str, *, now: dt.datetime) -> Condition:
    """Return the status of a request that can never be granted as it is."""
    new = condition(INVALID, True, INVALID, message)
    return failed(with_condition(conditions, new, now=now), message, now=now)


def issued(
    conditions: Sequence[Condition],
    message: str,
    *,
    chain: bytes,
    authority: bytes | None,
    now: dt.datetime,
) -> Condition:
    """Return the status with a certificate: PEM of its chain, and of the root it leads to."""
    new = condition(READY, True, ISSUED, message)
    status: Condition = {"conditions": with_condition(conditions, new, now=now)}
    status["certificate"] = base64_text(chain)
    if authority is not None:
        status["ca"] = base64_text(authority)
    return status


def base64_text(octets: bytes) -> str:
    """Return octets as a field of type ``byte`` of the Kubernetes API."""
    return base64.b64encode(octets).decode()


def rfc3339(moment: dt.datetime) -> str:
    """Return a moment as the Kubernetes API writes it: UTC, whole seconds."""
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
