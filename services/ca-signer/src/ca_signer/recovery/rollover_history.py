"""Replay the rollovers of the audit log (pure), for a restored ledger.

The transitions are those of ``ca_signer.issuers.rollover``. Every transition is on record with its
rollover, so the log alone gives both tables as they last were.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from ca_signer.issuers.generations import GenerationState

MovedTo = Literal["planned", "published", "signing", "retired", "rolled_back"]
Ended = Literal["reversed"]


Change = tuple[str, tuple[GenerationState | None, ...] | None, GenerationState]
_CHANGES: dict[MovedTo, tuple[Change, ...]] = {
    "planned": (
        ("family", (None,), "signing"),
        ("to_issuer", (None, "withdrawn"), "planned"),
    ),
    "published": (("to_issuer", ("planned",), "published"),),
    "signing": (("from_issuer", None, "accepted"), ("to_issuer", None, "signing")),
    "retired": (("from_issuer", None, "retired"),),
    "rolled_back": (("to_issuer", ("planned", "published"), "withdrawn"),),
}
"""By step: whose state changes, from which (None: from any), and to which."""


@dataclass(frozen=True)
class Move:
    """One step of a rollover, as recorded."""

    rollover_id: str
    family: str
    from_issuer: str
    to_issuer: str
    state: MovedTo
    at: dt.datetime
    by: str
    fleet: int | None = None
    fetched: int | None = None


@dataclass
class Rollover:
    """One rollover after its last step; ``times`` says when it came to each state."""

    first: Move
    state: MovedTo | Ended
    by: str
    times: dict[str, dt.datetime] = field(default_factory=dict)
    fleet: int | None = None
    fetched: int | None = None

    @property
    def ended_at(self) -> dt.datetime | None:
        """When it came to an end, if it did."""
        ends = ("retired", "rolled_back", "reversed")
        return next((self.times[end] for end in ends if end in self.times), None)


@dataclass
class Replayed:
    """Both tables."""

    rollovers: dict[str, Rollover] = field(default_factory=dict)
    generations: dict[str, tuple[str, GenerationState]] = field(default_factory=dict)
    last_at: dt.datetime | None = None


def replay(moves: Iterable[Move]) -> Replayed:
    """Return what the tables are after these steps, in the order they were made."""
    replayed = Replayed()
    for move in moves:
        _step(replayed, move)
        replayed.last_at = move.at
    return replayed


def _step(replayed: Replayed, move: Move) -> None:
    if move.state == "signing":
        for rollover in replayed.rollovers.values():
            if rollover.first.family == move.family and rollover.state == "signing":
                rollover.state, rollover.by = "reversed", move.by
                rollover.times["reversed"] = move.at
    rollover = replayed.rollovers.setdefault(move.rollover_id, Rollover(move, move.state, move.by))
    rollover.state, rollover.by = move.state, move.by
    rollover.times[move.state] = move.at
    rollover.fleet, rollover.fetched = (
        move.fleet or rollover.fleet,
        move.fetched or rollover.fetched,
    )
    _generations(replayed, move)


def _generations(replayed: Replayed, move: Move) -> None:
    for which, before, after in _CHANGES[move.state]:
        issuer_id = getattr(move, which)
        generation = replayed.generations.get(issuer_id)
        if before is None or (generation[1] if generation else None) in before:
            replayed.generations[issuer_id] = (move.family, after)
