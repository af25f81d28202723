"""Detect a stale ledger (restored backup, lagging replica) by the newest events on the bus.

A certificate is published only after its commit. An event that the ledger does not know means that
the ledger is older than the bus. Such a signer would certify again what it does not know, accept
revoked certificates and sign CRLs with entries missing. It signs nothing until ``ca-signer
reconcile`` has restored what is missing. Comparing the newest events is enough: a backup lacks the
newest rows.

Where PostgreSQL and NATS were lost together there is nothing to compare with; see the runbook.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pydantic_core import from_json

from ca_signer.publishing.publisher import EventPublisher
from estcore.clock import monotonic_s
from estcore.errors import InvariantBroken, LedgerUnavailable, Unavailable
from estcore.messages.topics import PKI_EVENTS
from estcore.runtime.bus import Bus
from estcore.runtime.database import Database
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop

log = logging.getLogger(__name__)

ISSUED, REVOKED = "pki.certificate.issued.>", "pki.certificate.revoked.>"
BEHIND = "ledger.stale"
_LOOKED_AT = 1000
_EVERY_S = 5.0
_SAY_EVERY_S = 300.0

_MISSING_ISSUED = """select id from unnest($1::uuid[]) id where not exists (
  select 1 from issuance where issuance_id = id and state = 'issued')"""
_MISSING_REVOKED = """select id from unnest($1::uuid[], $2::int[]) as t(id, seq) where not exists (
  select 1 from issuance where issuance_id = id and revocation_seq >= seq)"""


@dataclass(frozen=True)
class EventRef:
    """What an event says of a certificate; ``change`` counts its revocations and releases."""

    issuance_id: UUID
    change: int


def read_event_ref(payload: bytes) -> EventRef | None:
    """Return what an event of issuing or revoking says; None where it is none of ours."""
    try:
        name = str(from_json(payload)["id"])
        if not name.startswith("revoked-"):
            return EventRef(UUID(name), 0)
        issuance_id, _, change = name.removeprefix("revoked-").rpartition("-")
        return EventRef(UUID(issuance_id), int(change))
    except (ValueError, KeyError, TypeError):
        return None


class StaleLedgerCheck:
    """Compares the ledger with the newest events."""

    def __init__(self, bus: Bus, database: Database) -> None:
        self._bus = bus
        self._database = database
        self.complete = False
        self._next: dict[str, int] = {}
        self._result: dict[str, deque[EventRef]] = {
            topics: deque(maxlen=_LOOKED_AT) for topics in (ISSUED, REVOKED)
        }

    async def missing(self) -> list[UUID]:
        """Return the issuances among the newest events that the ledger does not know.

        Raises:
            Unavailable: bus or database is unavailable.
        """
        # The events first: what is announced meanwhile is committed already.
        for topics in (ISSUED, REVOKED):
            await self._hear(topics)
        issued = [reference.issuance_id for reference in self._result[ISSUED]]
        revoked = [(reference.issuance_id, reference.change) for reference in self._result[REVOKED]]
        async with self._database.connection() as connection:
            rows: list[Any] = await connection.fetch(_MISSING_ISSUED, issued)
            rows += await connection.fetch(
                _MISSING_REVOKED,
                [change[0] for change in revoked],
                [change[1] for change in revoked],
            )
        self.complete = not rows
        return list(dict.fromkeys(row["id"] for row in rows))

    async def _hear(self, topics: str) -> None:
        newest = await self._bus.last_sequence(PKI_EVENTS, topics)
        start = max(self._next.get(topics, 1), newest - _LOOKED_AT + 1)
        if newest + 1 < start:
            # The stream is another one; what the old one said still holds.
            start = 1
        while 0 < start <= newest:
            messages, start = await self._bus.stored_from(PKI_EVENTS, topics, start)
            self._result[topics].extend(
                t for message in messages if (t := read_event_ref(message.payload))
            )
        self._next[topics] = max(start, newest + 1)

    async def require(self) -> None:
        """Check once.

        Raises:
            LedgerUnavailable: the ledger is behind.
            Unavailable: bus or database is unavailable.
        """
        missing = await self.missing()
        if missing:
            raise LedgerUnavailable(_sentence(missing), code=BEHIND)

    async def hold(self, publisher: EventPublisher, stop: asyncio.Event) -> bool:
        """Wait until the ledger is complete; False when the process stops before."""
        said_at: float | None = None
        while not stop.is_set():
            try:
                missing = await self.missing()
            except Unavailable as exc:
                log.warning(
                    "ledger not compared with the bus",
                    extra=fields(code=exc.code, reason=exc.reason),
                )
                await sleep_or_stop(stop, 1)
                continue
            if not missing:
                return True
            if said_at is None or monotonic_s() - said_at > _SAY_EVERY_S:
                said_at = monotonic_s()
                log.error(
                    "ledger is older than the bus, run ca-signer reconcile",
                    extra=fields(code=BEHIND, missing=len(missing)),
                )
                details = {"reason": BEHIND, "issuance": str(missing[0])}
                await publisher.service_event("signing.refused", details)
            await sleep_or_stop(stop, _EVERY_S)
        return False

    async def watch(self, stop: asyncio.Event) -> None:
        """Look again now and then: a database can be replaced while we run.

        Raises:
            InvariantBroken: the ledger is behind; the process ends, and its next start waits.
        """
        while not await sleep_or_stop(stop, _EVERY_S):
            try:
                missing = await self.missing()
            except Unavailable as exc:
                log.warning(
                    "ledger not compared with the bus",
                    extra=fields(code=exc.code, reason=exc.reason),
                )
                continue
            if missing:
                raise InvariantBroken(_sentence(missing), code=BEHIND)


def _sentence(missing: list[UUID]) -> str:
    return (
        f"the ledger lacks {len(missing)} of the newest certificates or revocations on the bus; "
        "run ca-signer reconcile"
    )
