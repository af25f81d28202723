"""Announces what was committed for operators and is not told yet: the row is the outbox.

Each part goes by itself, so that a full stream of audit records keeps no revocation back. Ids
follow from the rows: two signers, or a crash in between, tell the same facts twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from ca_signer.publishing.publisher import EventPublisher
from estcore.errors import Unavailable
from estcore.messages.audit import AuditRecord
from estcore.messages.envelope import decode
from estcore.runtime.database import Database
from estcore.runtime.logs import fields

log = logging.getLogger(__name__)

_LIMIT = 200
Part = Callable[[], Awaitable[bool]]
"""Tells some of what is due; returns whether there may be more."""


class Outbox:
    """Runs in every signer: at once after a commit, and again every ``every_s``."""

    def __init__(self, parts: Sequence[Part], *, every_s: float) -> None:
        self._parts = parts
        self._every_s = every_s
        self._due = asyncio.Event()

    def changed(self) -> None:
        """Say that something was committed."""
        self._due.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Announce until ``stop``."""
        while not stop.is_set():
            try:
                async with asyncio.timeout(self._every_s):
                    await self._due.wait()
            except TimeoutError:
                pass
            self._due.clear()
            await self.flush()

    async def flush(self) -> None:
        """Tell everything that is due, as far as the surroundings let us."""
        for part in self._parts:
            try:
                while await part():
                    pass
            except Unavailable as exc:
                log.warning("publication deferred", extra=fields(code=exc.code))


def command_records(database: Database, publisher: EventPublisher) -> Part:
    """Return the part that publishes the audit records of commands."""

    async def part() -> bool:
        async with database.connection() as connection:
            rows = await connection.fetch(
                "select command_id, announcement from command where announced_at is null "
                "and announcement is not null order by created_at limit $1",
                _LIMIT,
            )
        if not rows:
            return False
        found = [decode(AuditRecord, r["announcement"].encode()) for r in rows]
        denied = [r for r in found if r.phase == "denied"]
        await publisher.records([r for r in found if r.phase != "denied"])
        await publisher.denials(denied)
        async with database.connection() as connection:
            await connection.execute(
                "update command set announced_at = now() where command_id = any($1::uuid[])",
                [r["command_id"] for r in rows],
            )
        return len(rows) == _LIMIT

    return part
