"""Generations of an issuer: which one signs for its labels, and which ones are accepted.

A label names an issuer for ever; its rollovers give it generations, each with an id, a key and
CRLs of its own. An issuer without a rollover is its own only generation.

The ledger is authoritative: every signer reads it again each second, and step 5 refuses an intent
whose generation may not sign (``ca_signer.ledger.issuances``). A signer that has not read a switch
yet signs nothing by mistake; its requests wait until it has.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

from estcore.runtime.database import Database

GenerationState = Literal["planned", "published", "signing", "accepted", "retired", "withdrawn"]
ACCEPTED: tuple[GenerationState, ...] = ("signing", "accepted")
SHOWN: tuple[GenerationState, ...] = (*ACCEPTED, "published")


_READ = """select now() as now,
  coalesce((select array_agg(array[issuer_id, family, state]) from generation), '{}') as known,
  coalesce((select array_agg(array[family, rollover_id::text]) from rollover
    where state in ('published', 'signing')), '{}') as watched"""


@dataclass(frozen=True)
class Generation:
    """One issuer of a family."""

    issuer_id: str
    family: str
    state: GenerationState


@dataclass(frozen=True)
class Generations:
    """What the ledger said of all rollovers at one moment.

    ``watched`` are the rollovers, by family, of which it is counted who has fetched the trust.
    """

    by_issuer_id: Mapping[str, Generation] = field(default_factory=dict)
    watched: Mapping[str, UUID] = field(default_factory=dict)
    as_of: dt.datetime | None = None

    def state(self, issuer_id: str) -> GenerationState | None:
        """Return the state of a generation; None where no rollover ever named it."""
        generation = self.by_issuer_id.get(issuer_id)
        return generation.state if generation else None

    def signing(self, family: str) -> str:
        """Return the issuer that signs for a family."""
        return next(iter(self._in(family, ("signing",))), family)

    def accepted(self, family: str) -> tuple[str, ...]:
        """Return the issuers whose certificates the family's labels accept, who signs first."""
        return self._in(family, ACCEPTED) or (family,)

    def shown(self, family: str) -> tuple[str, ...]:
        """Return the issuers whose chains ``/cacerts`` shows, who signs first."""
        return self._in(family, SHOWN) or (family,)

    def _in(self, family: str, states: tuple[GenerationState, ...]) -> tuple[str, ...]:
        own = [g for g in self.by_issuer_id.values() if g.family == family and g.state in states]
        own.sort(key=lambda g: (states.index(g.state), g.issuer_id))
        return tuple(g.issuer_id for g in own)


async def read_generations(database: Database) -> Generations:
    """Return what the ledger says now.

    Raises:
        LedgerUnavailable: PostgreSQL is unavailable.
    """
    async with database.connection() as connection:
        # One statement, one snapshot: both tables are as one command left them.
        row = (await connection.fetch(_READ))[0]
    by_issuer_id = {columns[0]: Generation(*columns) for columns in row["known"]}
    watched = {family: UUID(rollover_id) for family, rollover_id in row["watched"]}
    return Generations(by_issuer_id, watched, row["now"])
