"""Index the terms of what was appended, and write the tiles of its tree, beside the writer.

An append waits for neither: this job reads the log as a sink does, many records at once. A search
reads what is not indexed yet from the log itself (``audit.search``), a proof the hashes of the
records after the last tile (``audit.tiles``).
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Sequence
from typing import Protocol

import asyncpg

from audit import metrics, term_store, tiles
from audit.term_store import CHUNK_RECORDS, CHUNK_SPAN, Row
from estcore.clock import monotonic_s
from estcore.errors import AuditChainBroken, MalformedRequest, Unavailable
from estcore.runtime.database import Connection, Database
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop
from estcore.tlog import canonical
from estcore.tlog.terms import record_keys

log = logging.getLogger(__name__)

_POLL_S = 1.0
_RETRY_S = 5.0
_ENOUGH = 500
_LINGER_S = 5.0
"""How long fewer than enough records wait for others: a term costs one row a chunk."""
_TILES_AT_ONCE = 16
_AT_ONCE = 100
"""Records whose terms are made before the writer has its turn: some milliseconds."""
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class Log(Protocol):
    """The writer that this job works beside."""

    @property
    def leading(self) -> bool:
        """This process is the writer."""
        ...

    @property
    def size(self) -> int:
        """Records in the log."""
        ...


class Indexer:
    """The job; it works only beside the writer, so two replicas do not index the same."""

    def __init__(self, database: Database, writer: Log) -> None:
        self._database, self._writer = database, writer
        self._end: int | None = None
        self._since = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Index until ``stop``."""
        while not stop.is_set():
            pause = _POLL_S
            if not self._writer.leading:
                self._end = None
            elif self._due():
                try:
                    pause = 0 if await self._step() else _POLL_S
                except (Unavailable, AuditChainBroken, asyncpg.PostgresError) as exc:
                    log.warning("records not indexed", extra=fields(error=type(exc).__name__))
                    pause = _RETRY_S
            await sleep_or_stop(stop, pause)

    def _due(self) -> bool:
        """Return whether enough records wait, or some long enough."""
        if self._end is None:
            return True
        waiting = self._writer.size - self._end
        if waiting == 0:
            self._since = monotonic_s()
        return waiting >= _ENOUGH or (waiting > 0 and monotonic_s() - self._since >= _LINGER_S)

    async def _step(self) -> bool:
        """Index the next records; returns whether many more wait."""
        async with self._database.connection() as connection:
            start, since = await term_store.indexed(connection)
            rows = await term_store.unindexed(connection, start, since or _EPOCH, CHUNK_RECORDS)
            for chunk in chunks(rows):
                await index(connection, chunk)
            await self._add_tiles(connection)
        self._end, self._since = rows[-1][0] + 1 if rows else start, monotonic_s()
        metrics.INDEXED_SIZE.set(self._end)
        return len(rows) == CHUNK_RECORDS

    async def _add_tiles(self, connection: Connection) -> None:
        position = await tiles.count(connection)
        last = min(self._writer.size // tiles.WIDTH, position + _TILES_AT_ONCE)
        for number in range(position, last):
            await tiles.add_next(connection, number)


async def index(connection: Connection, rows: Sequence[Row]) -> None:
    """Index the records of one chunk."""
    terms: dict[int, list[int]] = {}
    first, recorded_at, _ = rows[0]
    for place, (_, _, leaf) in enumerate(rows):
        for key in _keys(leaf):
            terms.setdefault(key, []).append(place)
        if place % _AT_ONCE == _AT_ONCE - 1:
            await asyncio.sleep(0)
    await term_store.add_chunk(connection, (first, rows[-1][0] + 1), recorded_at, terms)


def chunks(rows: Sequence[Row]) -> list[Sequence[Row]]:
    """Return consecutive records as chunks: of one month each, and no longer than the span."""
    found: list[Sequence[Row]] = []
    start = 0
    for place in range(1, len(rows) + 1):
        first = rows[start][1].astimezone(dt.UTC)
        if place < len(rows):
            here = rows[place][1].astimezone(dt.UTC)
            same_month = (here.year, here.month) == (first.year, first.month)
            if same_month and here - first <= CHUNK_SPAN:
                continue
        found.append(rows[start:place])
        start = place
    return found


def _keys(leaf: str) -> set[int]:
    try:
        return record_keys(canonical.parse(leaf)["record"])
    except (MalformedRequest, KeyError, TypeError, AttributeError):
        # What a superuser wrote may be no record. Verification reports it.
        return set()
