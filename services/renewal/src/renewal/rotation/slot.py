"""One slot's row, and how it changes with the roles of its certificates (pure)."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace

from estcore.messages.events import CertificateIssued
from estcore.pki.profile import PRIORITIES, Priority
from renewal.rotation.schedule import backoff, due_at
from renewal.rotation.slot_state import Generation, Rules, SlotState, Steps
from renewal.settings import RotationSettings

QUIET = frozenset({"idle", "due", "dispatched", "failed", "paused"})
"""States in which a slot stays as long as its active certificate stays."""


@dataclass(frozen=True)
class Slot:
    """One logical identity across its generations of certificates."""

    slot_id: str
    tenant: str
    service: str
    profile: str
    label: str
    issuer_id: str
    mode: str
    priority: int
    reaction_time_s: int
    overlap_s: int
    spread: float
    rules_at: dt.datetime
    active_id: str | None
    next_id: str | None
    generation: int
    not_after: dt.datetime | None
    due_at: dt.datetime | None
    next_attempt_at: dt.datetime | None
    check_at: dt.datetime | None
    state: str
    attempts: int
    first_due_at: dt.datetime | None
    last_error_class: str | None
    fence: int
    announced_fence: int
    due_reason: str | None
    renew_by: dt.datetime | None
    explanation_url: str | None
    expiry_expected: bool

    @property
    def urgency(self) -> Priority:
        """The priority by name."""
        return PRIORITIES[self.priority]

    def rules(self, rotation: RotationSettings) -> Rules:
        """Return how this slot's old and new certificates overlap."""
        return Rules(
            overlap=dt.timedelta(seconds=self.overlap_s),
            client_reload=rotation.client_reload,
            stall_safety=rotation.stall_safety,
            expiry_expected=self.expiry_expected,
        )

    def due(self, generation: Generation, number: int) -> dt.datetime:
        """Return when a certificate of this slot is due as generation ``number``."""
        return due_at(
            issued_at=generation.issued_at,
            not_after=generation.not_after,
            reaction_time=dt.timedelta(seconds=self.reaction_time_s),
            spread=self.spread,
            slot_id=self.slot_id,
            generation=number,
        )


def after(slot: Slot, updated: SlotState, *, now: dt.datetime, chance: float) -> Slot:
    """Return the row that fits the certificates in their new roles.

    Whenever the state or the active certificate changes the fence moves on, so a scheduler that
    still holds the slot from before changes nothing any more.
    """
    active, following = updated.active, updated.next
    if active is None:
        changed = replace(slot, active_id=None, next_id=None, not_after=None, due_at=None)
        return _moved(slot, _ended(changed, "failed", "revoked", updated))
    changed = replace(
        slot,
        active_id=active.issuance_id,
        next_id=following.issuance_id if following else None,
        generation=active.number,
        not_after=active.not_after,
        check_at=updated.check_at,
    )
    if active.state == "expired":
        state = "ended" if Steps.ENDED in active.reached else "expired"
        return _moved(slot, _ended(changed, state, "expired", updated))
    if _another(slot, active):
        due = slot.due(active, active.number)
        changed = replace(changed, due_at=due, next_attempt_at=due, state="idle")
        changed = replace(changed, attempts=0, last_error_class=None)
        changed = replace(changed, due_reason=None, renew_by=None, explanation_url=None)
    if following is not None:
        return _moved(slot, replace(changed, state="overlap"))
    if changed.state in QUIET:
        return _moved(slot, changed)
    # The new certificate was revoked before it was proven: ask again, not at once.
    remaining = active.not_after - now
    pause = backoff(slot.urgency, max(slot.attempts, 1), remaining=remaining, chance=chance)
    return _moved(slot, replace(changed, state="idle", next_attempt_at=now + pause))


def _another(slot: Slot, active: Generation) -> bool:
    same = slot.active_id == active.issuance_id and slot.generation == active.number
    return not same or slot.state in {"expired", "ended"}


def _ended(slot: Slot, state: str, error: str, updated: SlotState) -> Slot:
    return replace(
        slot,
        state=state,
        next_id=None,
        next_attempt_at=None,
        last_error_class=error,
        check_at=updated.check_at,
    )


def _moved(before: Slot, changed: Slot) -> Slot:
    identity = (changed.state, changed.active_id, changed.generation)
    if identity == (before.state, before.active_id, before.generation):
        return changed
    return replace(changed, fence=before.fence + 1, announced_fence=before.fence + 1)


@dataclass(frozen=True)
class Scheduled:
    """When a projected certificate will be due, and as which generation."""

    event: CertificateIssued
    generation: int
    due_at: dt.datetime
