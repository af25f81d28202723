"""Progress of one definition: its state, why, and since when. What status and metrics show.

    enrolling ──► valid ──► renewing ──► valid …
        │           │           │
        └───────────┴───────────┴──► retrying, pending (approval), needs attention

``valid`` means that the certificate is stored and in use. A definition in ``retrying``,
``renewing`` or ``needs attention`` may still have a valid certificate: ``has_credential`` says so.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Any, Literal

from estclient.agent.attention import Attention
from estclient.agent.bundle import Bundle
from estcore.pki.names import display_name

State = Literal["enrolling", "valid", "renewing", "pending", "retrying", "needs attention"]
STATES: tuple[State, ...] = (
    *("enrolling", "valid", "renewing", "pending", "retrying", "needs attention"),
)
_STATE_OF_STEP: dict[str, State] = {"bootstrapping": "enrolling", "enrolling": "renewing"}


@dataclass
class Progress:
    """What is known of one definition. Times are aware, UTC."""

    state: State = "enrolling"
    since: dt.datetime | None = None
    step: str = ""
    code: str = ""
    reason: str = ""
    next_attempt: dt.datetime | None = None
    due: dt.datetime | None = None
    due_by: str = ""
    last_success: dt.datetime | None = None
    enrollments: int = 0
    failures: int = 0
    clock_offset_s: float | None = None
    bundle: Bundle | None = field(default=None, repr=False)

    def entered(self, step: str, now: dt.datetime) -> None:
        """Note a step of the agent."""
        self.step = step
        if step == "stored":
            self.enrollments += 1
            self.last_success = now
        if step in _STATE_OF_STEP and self.state != "needs attention":
            self._change(_STATE_OF_STEP[step], now)

    def succeeded(self, now: dt.datetime) -> None:
        """Note that everything is done for now."""
        self.code = self.reason = ""
        self.next_attempt = None
        self._change("valid", now)

    def failed(
        self,
        state: State,
        why: Attention,
        *,
        now: dt.datetime,
        pause_s: float,
    ) -> None:
        """Note a failure, and when it is tried again."""
        self.failures += 1
        self.code, self.reason = why.code, why.reason
        self.next_attempt = now + dt.timedelta(seconds=pause_s)
        self._change(state, now)

    def has_credential(self, now: dt.datetime) -> bool:
        """Return whether a certificate that is not expired is stored."""
        return self.bundle is not None and self.bundle.certificate.not_valid_after_utc > now

    def _change(self, state: State, now: dt.datetime) -> None:
        if state != self.state or self.since is None:
            self.state, self.since = state, now

    def report(self, now: dt.datetime) -> dict[str, Any]:
        """Return the facts for the status file; None where something is not known."""
        bundle = self.bundle
        facts: dict[str, Any] = {
            "state": self.state,
            "since": _text(self.since),
            "step": self.step,
            "code": self.code or None,
            "reason": self.reason or None,
            "next_attempt": _text(self.next_attempt),
            "renewal_due": _text(self.due),
            "renewal_due_by": self.due_by or None,
            "last_success": _text(self.last_success),
            "enrollments": self.enrollments,
            "failures": self.failures,
            "has_credential": self.has_credential(now),
            "clock_offset_s": None if self.clock_offset_s is None else round(self.clock_offset_s),
        }
        if bundle is None:
            return facts
        certificate = bundle.certificate
        return facts | {
            "subject": display_name(certificate.subject),
            "serial": bundle.serial,
            "not_before": _text(certificate.not_valid_before_utc),
            "not_after": _text(certificate.not_valid_after_utc),
            "in_use": bundle.in_use,
            "proven": bundle.proven,
        }


def _text(moment: dt.datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds")
