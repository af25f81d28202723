"""The generations of one slot: which certificate is active, which is next, what happened.

Pure. ``compute_slot_state`` takes every certificate of a slot that still matters, in any order,
and returns the role of each. It is a fold over issuances and proofs of use in the order of time, so
events that arrive late, twice or out of order lead to the same roles:

1. The first certificate is active.
2. A later one is ``next``. If it was asked for with one that waited to be proven, that one is
   thereby proven in use and becomes active first (``mtls_seen``). The same proof without an
   enrollment is a ``rotation-ack`` over a connection authenticated by the certificate.
3. A second ``next`` before the first was proven displaces it: the older is ``superseded``, but
   may still be proven. A client that lost its key (no predecessor) is one such case.
4. A certificate issued after the active one had expired or was revoked is active at once.
5. Proof of use makes ``next`` active; the old one is ``deprecated`` when the overlap is over
   and ``retired`` at its end. Without proof it is never deprecated; time alone can retire it.

What happened is collected in ``reached``, one bit per step of the rotation that led to a
certificate. ``renewal.publishing.publisher`` publishes the bits that are not in ``announced``.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntFlag
from typing import Literal

from renewal.rotation.schedule import overlap, stall_at

Role = Literal["active", "next"]
State = Literal["active", "next", "superseded", "deprecated", "retired", "expired", "revoked"]
Proof = Literal["mtls_seen", "agent_ack", "operator"]


class Steps(IntFlag):
    """What a rotation has been through; kept on the row of the certificate it led to.

    ``EXPIRED`` stands on the certificate that ended as active one without a successor, ``ENDED`` in
    its place where that is expected.
    """

    NONE = 0
    ISSUED = 1
    OVERLAP = 2
    STALLED = 4
    ACTIVATED = 8
    DEPRECATED = 16
    RETIRED = 32
    EXPIRED = 64
    ENDED = 128


@dataclass(frozen=True)
class Generation:
    """One certificate of a slot. ``number`` 0 means it was never placed."""

    issuance_id: str
    fingerprint: str
    predecessor: str | None
    issued_at: dt.datetime
    not_after: dt.datetime
    number: int = 0
    role: Role | None = None
    state: State = "superseded"
    replaces: str | None = None
    overlap_until: dt.datetime | None = None
    activated_at: dt.datetime | None = None
    proof: Proof | None = None
    reached: Steps = Steps.NONE


@dataclass(frozen=True)
class Rules:
    """How long old and new live side by side; whether one may end without a successor."""

    overlap: dt.timedelta
    client_reload: dt.timedelta
    stall_safety: dt.timedelta
    expiry_expected: bool = False


@dataclass(frozen=True)
class SlotState:
    """A slot's computed state. ``check_at`` is when time alone changes something again."""

    generations: dict[str, Generation]
    active: Generation | None
    next: Generation | None
    check_at: dt.datetime | None


def compute_slot_state(
    generations: Iterable[Generation], *, rules: Rules, now: dt.datetime, last_number: int = 0
) -> SlotState:
    """Say what each certificate of the slot is at ``now``.

    ``last_number`` is the slot's generation, used only where none of ``generations`` was placed.
    """
    fold = _Fold(rules, last_number)
    for generation in sorted(generations, key=lambda g: (g.issued_at, g.issuance_id)):
        fold.add(generation)
    fold.place()
    fold.let_expire(now)
    fold.let_age(now)
    fold.let_stall(now)
    active, following = fold.active, fold.next
    return SlotState(
        generations=fold.all,
        active=active,
        next=following,
        check_at=_check_at(fold, now),
    )


def _inferred(generation: Generation, askers: dict[str | None, dt.datetime]) -> bool:
    """Return whether an enrollment made with the certificate proved it, and no earlier proof."""
    asked_at, at = askers.get(generation.fingerprint), generation.activated_at
    return asked_at is not None and (at is None or at >= asked_at)


class _Fold:
    """The certificates of a slot while their roles are computed."""

    def __init__(self, rules: Rules, last_number: int) -> None:
        self._rules, self._last_number = rules, last_number
        self.all: dict[str, Generation] = {}
        self._active: str | None = None
        self._next: str | None = None
        self._placed: set[str] = set()
        self._proven_early: set[str] = set()

    @property
    def active(self) -> Generation | None:
        return self.all[self._active] if self._active else None

    @property
    def next(self) -> Generation | None:
        return self.all[self._next] if self._next else None

    def add(self, generation: Generation) -> None:
        self.all[generation.issuance_id] = generation

    def place(self) -> None:
        """Rules 1 to 5, in the order of time; at one moment a proof comes before an issuance."""
        moments: list[tuple[dt.datetime, bool, str]] = []
        askers: dict[str | None, dt.datetime] = {}
        for asker in self.all.values():
            if asker.state != "revoked":
                earlier = askers.get(asker.predecessor, asker.issued_at)
                askers[asker.predecessor] = min(earlier, asker.issued_at)
        before = list(self.all.values())
        for generation in before:
            if generation.state == "revoked":
                self._put(generation, role=None)
                continue
            if generation.proof == "mtls_seen" and _inferred(generation, askers):
                # What proved it is here: the fold finds the proof again, at its right place.
                generation = self._put(generation, activated_at=None, proof=None)
            moments.append((generation.issued_at, True, generation.issuance_id))
            if generation.activated_at is not None:
                moments.append((generation.activated_at, False, generation.issuance_id))
        for _, is_issuance, name in sorted(moments):
            if is_issuance:
                self._issue(self.all[name])
            else:
                self._prove(self.all[name])
        for generation in before:
            self._keep_facts(generation)

    def _keep_facts(self, before: Generation) -> None:
        """Generations in between may have ended and not be here: numbers and proofs stay."""
        now = self.all[before.issuance_id]
        if before.activated_at is not None and now.activated_at is None:
            self._put(now, activated_at=before.activated_at, proof=before.proof)
        missing = before.number - now.number
        if before.role != "active" or before.issuance_id != self._active or missing <= 0:
            return
        for generation in (self.active, self.next):
            if generation is not None:
                self._put(generation, number=generation.number + missing)

    def _issue(self, generation: Generation) -> None:
        active = self.active
        if active is None:
            self._first(generation)
        elif active.not_after <= generation.issued_at:
            self._recover(active, generation)
        else:
            self._follow(active, generation)

    def _prove(self, generation: Generation) -> None:
        active = self.active
        if generation.issuance_id not in self._placed:
            # Clocks differ: it is issued in a moment.
            self._proven_early.add(generation.issuance_id)
        elif active is not None and self._waits(generation, active):
            self._activate(
                active, generation, at=generation.activated_at or generation.issued_at, proof=None
            )

    def _waits(self, generation: Generation, active: Generation) -> bool:
        """It was issued to succeed the active one, and was not proven yet."""
        return generation.issuance_id in self._placed and generation.number > active.number

    def _put(self, generation: Generation, **changes: object) -> Generation:
        changed = replace(generation, **changes)  # type: ignore[arg-type] # fields of Generation
        self.all[generation.issuance_id] = changed
        return changed

    def _first(self, generation: Generation) -> None:
        if generation.number and generation.role is None and not self._has_successor(generation):
            return  # replaced long ago by one that is no longer here: stays what it is
        number = generation.number or self._first_number()
        self._active = generation.issuance_id
        self._placed.add(generation.issuance_id)
        self._put(generation, role="active", state="active", number=number)

    def _has_successor(self, generation: Generation) -> bool:
        return any(
            g.replaces == generation.issuance_id and g.state != "revoked" for g in self.all.values()
        )

    def _first_number(self) -> int:
        placed = [g.number for g in self.all.values() if g.number]
        return max(1, placed[0] - 1) if placed else self._last_number + 1

    def _recover(self, dead: Generation, generation: Generation) -> None:
        self._put(dead, role=None, state="expired")
        if self.next is not None:
            self._put(self.next, role=None, state="superseded")
        self._active, self._next = generation.issuance_id, None
        self._placed.add(generation.issuance_id)
        self._put(
            generation,
            role="active",
            state="active",
            number=dead.number + 1,
            replaces=dead.issuance_id,
            activated_at=generation.activated_at or generation.issued_at,
            reached=generation.reached | Steps.ISSUED,
        )

    def _follow(self, active: Generation, generation: Generation) -> None:
        for waiting in list(self.all.values()):
            if waiting.fingerprint == generation.predecessor and self._waits(waiting, active):
                active = self._activate(active, waiting, at=generation.issued_at, proof="mtls_seen")
        if self.next is not None:
            self._put(self.next, role=None, state="superseded")
        self._placed.add(generation.issuance_id)
        placed = self._put_next(active, generation)
        if generation.issuance_id in self._proven_early:
            self._activate(
                active, placed, at=generation.activated_at or generation.issued_at, proof=None
            )

    def _put_next(self, active: Generation, generation: Generation) -> Generation:
        self._next = generation.issuance_id
        return self._put(
            generation,
            role="next",
            state="next",
            number=active.number + 1,
            replaces=active.issuance_id,
            overlap_until=self._overlap_until(active, generation.issued_at),
            reached=generation.reached | Steps.ISSUED | Steps.OVERLAP,
        )

    def _activate(
        self, old: Generation, new: Generation, *, at: dt.datetime, proof: Proof | None
    ) -> Generation:
        """Rule 5. Without proof (the old one ended) nothing is announced as activated."""
        at, proof = min(at, new.activated_at or at), new.proof or proof
        self._put(old, role=None, state="superseded")
        self._active = new.issuance_id
        active = self._put(
            new,
            role="active",
            state="active",
            replaces=old.issuance_id,
            activated_at=at,
            proof=proof,
            overlap_until=self._overlap_until(old, at),
            reached=new.reached | (Steps.ACTIVATED if proof else Steps.NONE),
        )
        following = self.next
        if following is None or following.issuance_id == new.issuance_id:
            self._next = None
        else:
            self._put_next(active, following)
        return active

    def _overlap_until(self, old: Generation, start: dt.datetime) -> dt.datetime:
        return start + overlap(
            self._rules.overlap,
            client_reload=self._rules.client_reload,
            remaining=old.not_after - start,
        )

    def let_expire(self, now: dt.datetime) -> None:
        """The end of the active certificate: an unproven next one becomes active, or none does."""
        active, following = self.active, self.next
        if following is not None and following.not_after <= now:
            self._put(following, role=None, state="expired")
            self._next = following = None
        if active is None or active.not_after > now:
            return
        if following is not None:
            self._activate(active, following, at=active.not_after, proof=None)
            return
        end = Steps.ENDED if self._rules.expiry_expected else Steps.EXPIRED
        if active.reached & (Steps.ENDED | Steps.EXPIRED):
            end = Steps.NONE  # said before, by the rules of then
        self._put(active, state="expired", reached=active.reached | end)

    def let_age(self, now: dt.datetime) -> None:
        """What became of the certificates that are neither active nor next."""
        successors = {
            g.replaces: g for g in self.all.values() if g.replaces and g.activated_at is not None
        }
        for old in [g for g in self.all.values() if g.role is None]:
            new = successors.get(old.issuance_id)
            if old.state == "revoked":
                self._retire_revoked(old)
            elif new is not None and old.state != "expired":
                self._age_replaced(old, new, now)
            elif old.not_after <= now and old.state != "retired":
                self._put(old, state="expired")

    def _retire_revoked(self, old: Generation) -> None:
        for new in list(self.all.values()):
            if new.replaces == old.issuance_id and new.role == "active":
                self._put(new, reached=new.reached | Steps.RETIRED)

    def _age_replaced(self, old: Generation, new: Generation, now: dt.datetime) -> None:
        reached, state = new.reached, old.state
        proven = Steps.ACTIVATED in reached
        if proven and (new.overlap_until or old.not_after) <= now:
            reached, state = reached | Steps.DEPRECATED, "deprecated"
        if old.not_after <= now:
            reached, state = reached | Steps.RETIRED, "retired"
        if reached != new.reached:
            self._put(self.all[new.issuance_id], reached=reached)
        self._put(old, state=state)

    def let_stall(self, now: dt.datetime) -> None:
        """No proof of use shortly before the old one ends: said once, nothing else happens."""
        following = self.next
        if self._rules.expiry_expected:
            return
        if following is not None and self._stall_at() <= now:
            self._put(following, reached=following.reached | Steps.STALLED)

    def _stall_at(self) -> dt.datetime:
        active = self.active
        assert active is not None  # noqa: S101 - there is no next without an active one
        return stall_at(
            issued_at=active.issued_at,
            not_after=active.not_after,
            safety=self._rules.stall_safety,
        )

    def stall_ahead(self) -> dt.datetime | None:
        """When the rotation under way will count as stalled; None if it has, or there is none."""
        following = self.next
        if following is None or Steps.STALLED in following.reached or self._rules.expiry_expected:
            return None
        return self._stall_at()


def _check_at(fold: _Fold, now: dt.datetime) -> dt.datetime | None:
    moments = [fold.stall_ahead()]
    successors = {g.replaces: g for g in fold.all.values() if Steps.ACTIVATED in g.reached}
    for generation in fold.all.values():
        if generation.state in {"retired", "expired", "revoked"}:
            continue
        moments.append(generation.not_after)
        new = successors.get(generation.issuance_id)
        if new is not None:
            moments.append(new.overlap_until)
    return min((m for m in moments if m is not None and m > now), default=None)
