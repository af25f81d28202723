"""Reports that auditors ask for over the bus: made once, handed out in parts.

A report of a long period takes longer than an operator waits for an answer. The first question
begins it, later ones find it. Records and period alone decide its octets, and its signature is
deterministic (Ed25519), so every replica gives the same parts.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit import report
from estcore.clock import Clock
from estcore.errors import Unavailable
from estcore.runtime.database import Database
from estcore.tlog.activity import Period
from estcore.tlog.checkpoint import sign_text

_WAIT_S = 3.0
_KEPT = 2


@dataclass(frozen=True)
class SignedReport:
    """The files of a report, and its manifest as a signed note."""

    files: dict[str, bytes]
    manifest: str


class RequestedReports:
    """The newest reports of this process, and those being made."""

    def __init__(
        self, database: Database, origin: str, key: Ed25519PrivateKey, clock: Clock
    ) -> None:
        self._database, self._clock = database, clock
        self._origin, self._key = origin, key
        self._made: OrderedDict[Period, asyncio.Task[SignedReport]] = OrderedDict()

    async def get(self, period: Period) -> SignedReport | None:
        """Return the report of a period; None while it is being made.

        Raises:
            Conflict: the period is not over, or no checkpoint covers it yet.
            Unavailable: two others are being made.
        """
        task = self._made.get(period)
        if task is None:
            self._make_room()
            task = self._made[period] = asyncio.create_task(self._make(period))
        self._made.move_to_end(period)
        await asyncio.wait({task}, timeout=_WAIT_S)
        if not task.done():
            return None
        if task.cancelled() or task.exception() is not None:
            del self._made[period]
        return task.result()

    def _make_room(self) -> None:
        for period, task in list(self._made.items()):
            if len(self._made) < _KEPT:
                return
            if task.done():
                del self._made[period]
        if len(self._made) >= _KEPT:
            raise Unavailable(
                "two reports are being made; ask again in a minute", code="report.busy"
            )

    async def _make(self, period: Period) -> SignedReport:
        async with self._database.connection() as connection:
            files, text = await report.build(connection, self._origin, period, self._clock.now())
        return SignedReport(files, sign_text(text, self._origin, self._key))

    def close(self) -> None:
        """End what is being made."""
        for task in self._made.values():
            task.cancel()
