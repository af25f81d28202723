"""Renewal information of one certificate: which window it has, and why (pure).

- Active, or issued and not proven in use: the window of its own schedule, or the earlier one an
  operator chose for its slot.
- Replaced by a certificate that is in use, or revoked: a window in the past, so its holder acts at
  once.

Of a slot that ca-signer renews by itself the entry says so too: a renewal is scheduled, or a newer
certificate is available. Not where it refused to renew: then the client renews by itself.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from uuid import UUID

from estcore.errors import MalformedRequest
from estcore.est.renewal_info import ManagedState, identify
from estcore.ids import rotation_id
from estcore.messages.renewal_info import RenewalInfoEntry, RenewalReason, entry_key
from renewal.rotation.schedule import Window, window, window_in_the_past
from renewal.rotation.slot import Scheduled
from renewal.rotation.slot_state import Generation, State

_LIVE: frozenset[State] = frozenset({"active", "next"})
_ENDED: frozenset[State] = frozenset({"superseded", "deprecated", "retired"})


@dataclass(frozen=True)
class InfoFacts:
    """What the window of a certificate follows from. ``due_at`` is None where it has none."""

    certificate: bytes
    slot_id: str
    number: int
    state: State
    issued_at: dt.datetime
    not_after: dt.datetime
    version: int
    due_at: dt.datetime | None
    due_reason: RenewalReason | None = None
    renew_by: dt.datetime | None = None
    explanation_url: str | None = None
    managed: ManagedState | None = None


def managed_state(
    state: State, *, mode: str, slot_state: str, succeeded: bool
) -> ManagedState | None:
    """Return what a client of managed renewal is to know of a certificate in this state.

    ``succeeded`` is whether the active certificate of the slot has a successor.
    """
    if mode != "managed" or state == "revoked":
        return None
    if state in _ENDED or (state == "active" and succeeded):
        return "available"
    return None if slot_state == "failed" else "scheduled"


def informs(before: Generation, after: Generation) -> bool:
    """Return whether a change of a certificate's row may change its renewal information."""
    if after.state == "expired":
        return False
    return before.number != after.number or _kind(before.state) != _kind(after.state)


def _kind(state: State) -> str:
    return "ended" if state in _ENDED else state


def entry_of(facts: InfoFacts) -> RenewalInfoEntry | None:
    """Return the entry of a certificate; None where the certificate has no id to ask by."""
    key = _key(facts.certificate)
    if key is None:
        return None
    chosen, reason = _window(facts)
    follows = facts.number > 0
    return RenewalInfoEntry(
        key=key,
        version=facts.version,
        start=_unix(chosen.start),
        end=_unix(chosen.end),
        not_after=_unix(facts.not_after),
        rotation=UUID(rotation_id(facts.slot_id, facts.number + 1)) if follows else None,
        reason=reason,
        url=facts.explanation_url if facts.state in _LIVE else None,
        managed=facts.managed,
    )


def first_entry(item: Scheduled) -> RenewalInfoEntry | None:
    """Return the entry of the first certificate of a slot, version 0: any later one counts."""
    event = item.event
    return entry_of(
        InfoFacts(
            certificate=event.certificate,
            slot_id=event.slot_id,
            number=item.generation,
            state="active",
            issued_at=event.issued_at,
            not_after=event.not_after,
            version=0,
            due_at=item.due_at,
            managed="scheduled" if event.mode == "managed" else None,
        )
    )


def _window(facts: InfoFacts) -> tuple[Window, RenewalReason | None]:
    if facts.state == "revoked":
        return window_in_the_past(facts.issued_at), "revoked"
    if facts.state in _LIVE and facts.due_at is not None:
        chosen = window(facts.due_at, not_after=facts.not_after, renew_by=facts.renew_by)
        return chosen, facts.due_reason
    return window_in_the_past(facts.issued_at), "superseded"


def _key(certificate: bytes) -> str | None:
    try:
        return entry_key(identify(certificate))
    except MalformedRequest:
        return None


def _unix(moment: dt.datetime) -> int:
    return int(moment.timestamp())
