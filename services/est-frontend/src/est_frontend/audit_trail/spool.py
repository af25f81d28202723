"""Where audit records wait while the bus is unavailable: SQLite, WAL, every commit on disk."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from pathlib import Path

from estcore.errors import AuditUnavailable, ConfigurationError
from estcore.runtime.logs import fields

log = logging.getLogger(__name__)


class Spool:
    """A bounded queue of encoded batches on disk. All calls run in a thread, one at a time."""

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit
        self._lock = asyncio.Lock()
        self._count = 0
        self._db: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Open or create the file.

        Raises:
            ConfigurationError: it cannot be used.
        """
        try:
            self._db = await asyncio.to_thread(self._connect)
        except (sqlite3.Error, OSError) as exc:
            raise ConfigurationError(f"cannot use the audit spool {self._path}") from exc

    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path.touch(mode=0o600)
        db = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        db.execute("pragma journal_mode=wal")
        db.execute("pragma synchronous=full")
        db.execute(
            "create table if not exists batch (id integer primary key autoincrement, "
            "records integer not null, body blob not null)"
        )
        self._count = db.execute("select coalesce(sum(records), 0) from batch").fetchone()[0]
        return db

    @property
    def count(self) -> int:
        """Records waiting."""
        return self._count

    @property
    def full(self) -> bool:
        """No more fit."""
        return self._count >= self._limit

    async def put(self, records: int, body: bytes) -> None:
        """Keep a batch; on return it is on disk.

        Raises:
            AuditUnavailable: the spool is full or the disk refuses.
        """
        if self.full:
            raise AuditUnavailable("the audit spool is full", code="audit.spool_full")
        await self._run("insert into batch (records, body) values (?, ?)", (records, body))
        self._count += records

    async def first(self) -> tuple[int, int, bytes] | None:
        """Return (id, records, body) of the oldest batch."""
        rows = await self._run("select id, records, body from batch order by id limit 1", ())
        return (rows[0][0], rows[0][1], rows[0][2]) if rows else None

    async def drop(self, batch_id: int, records: int) -> None:
        """Forget a batch that was delivered."""
        await self._run("delete from batch where id = ?", (batch_id,))
        self._count -= records

    async def _run(
        self, statement: str, values: tuple[object, ...]
    ) -> list[tuple[int, int, bytes]]:
        if self._db is None:
            raise AuditUnavailable("the audit spool is not open", code="audit.spool_full")
        db = self._db
        async with self._lock:
            try:
                return await asyncio.to_thread(lambda: db.execute(statement, values).fetchall())
            except (sqlite3.Error, OSError) as exc:
                raise AuditUnavailable("the audit spool refuses", code="audit.spool_full") from exc

    async def close(self) -> None:
        """Close the file."""
        if self._db is not None:
            db, self._db = self._db, None
            try:
                await asyncio.to_thread(db.close)
            except sqlite3.Error as exc:
                # Every commit is on disk already.
                log.warning("audit spool not closed", extra=fields(error=type(exc).__name__))
