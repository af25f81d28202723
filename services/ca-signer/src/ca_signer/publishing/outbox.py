"""Transactional outbox: publish what was committed and is not marked as published.

The row is the outbox: a source selects unpublished rows, publishes what they say, awaits the
PubAcks and marks them. Ids follow from the rows, so two signers, or a crash in between, publish
the same facts twice. Each source is drained by itself: a full audit stream holds no revocation
back.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import asyncpg

from ca_signer.publishing.publisher import EventPublisher
from estcore.errors import Unavailable
from estcore.messages.audit import AuditRecord
from estcore.messages.envelope import decode
from estcore.runtime.database import Database
from estcore.runtime.logs import fields

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OutboxSource:
    """One kind of row to publish.

    ``select`` returns unpublished rows, oldest first; ``$1`` is how many at most. ``mark`` marks
    them, with an array of each of ``keys`` as its parameters.
    """

    select: str
    mark: str
    keys: tuple[str, ...]
    publish: Callable[[Sequence[asyncpg.Record]], Awaitable[None]]
    limit: int = 200


class Outbox:
    """Runs in every signer: at once after a commit, and again every ``every_s``."""

    def __init__(
        self, database: Database, sources: Sequence[OutboxSource], *, every_s: float
    ) -> None:
        self._database = database
        self._sources = sources
        self._every_s = every_s
        self._due = asyncio.Event()
        due = [f"exists (select from ({source.select}) due)" for source in sources]
        self._due_statement = f"select {', '.join(due)}"

    def changed(self) -> None:
        """Say that something was committed."""
        self._due.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Publish until ``stop``."""
        while not stop.is_set():
            try:
                async with asyncio.timeout(self._every_s):
                    await self._due.wait()
            except TimeoutError:
                pass
            self._due.clear()
            await self.flush()

    async def flush(self) -> None:
        """Publish everything that is due; what cannot be published now is deferred."""
        try:
            # One statement where there is nothing to publish, which is nearly always.
            async with self._database.connection() as connection:
                (due,) = await connection.fetch(self._due_statement, 1)
        except Unavailable as exc:
            log.warning("publication deferred", extra=fields(code=exc.code))
            return
        for source in itertools.compress(self._sources, due):
            try:
                while await drain(self._database, source):
                    pass
            except Unavailable as exc:
                log.warning("publication deferred", extra=fields(code=exc.code))


async def drain(database: Database, source: OutboxSource) -> bool:
    """Publish a batch of a source; returns whether there may be more.

    Raises:
        Unavailable: database or bus unavailable; the rows stay unpublished.
    """
    async with database.connection() as connection:
        rows = await connection.fetch(source.select, source.limit)
    if not rows:
        return False
    await source.publish(rows)
    async with database.connection() as connection:
        await connection.execute(source.mark, *([row[key] for row in rows] for key in source.keys))
    return len(rows) == source.limit


def command_records(publisher: EventPublisher) -> OutboxSource:
    """Return the source of the audit records of commands."""

    async def publish(rows: Sequence[asyncpg.Record]) -> None:
        records = [decode(AuditRecord, row["announcement"].encode()) for row in rows]
        await publisher.records([r for r in records if r.phase != "denied"])
        await publisher.denials([r for r in records if r.phase == "denied"])

    return OutboxSource(
        select="select command_id, announcement from command where announced_at is null "
        "and announcement is not null order by created_at limit $1",
        mark="update command set announced_at = now() where command_id = any($1::uuid[])",
        keys=("command_id",),
        publish=publish,
    )
