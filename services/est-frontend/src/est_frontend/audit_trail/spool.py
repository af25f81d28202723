"""Where audit records wait while the bus is unavailable: SQLite, WAL, every commit on disk.

A full disk ends nothing. What cannot be written raises ``AuditUnavailable``, and the next call
tries again. What was delivered is forgotten in memory first, so no batch is sent again because
there is no room to delete it; once all are delivered, the files are made anew, which needs no room.
A spool that cannot be opened for want of room is opened by a later call.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from estcore.errors import AuditUnavailable, ConfigurationError
from estcore.runtime.logs import fields

log = logging.getLogger(__name__)

T = TypeVar("T")

_WAL_PAGES = 64
_WAL_BYTES = 1024 * 1024
_LARGE_BYTES = 4 * 1024 * 1024
"""A file of this size is made anew when it is empty; a smaller one is used again."""
_SCARCE_BYTES = 128 * 1024
"""The same where the disk is nearly full."""
_RESERVE_BYTES = 64 * 1024 * 1024
_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
_NO_ROOM_ERRNO = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_CREATE = (
    "create table if not exists batch (id integer primary key autoincrement, "
    "records integer not null, body blob not null)"
)


class Spool:
    """A bounded queue of encoded batches on disk. All calls run in a thread, one at a time."""

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit
        self._lock = asyncio.Lock()
        self._count = 0
        self._delivered = 0
        """The last batch that was delivered; those up to it are not here any more."""
        self._undeleted = False
        self._scarce_disk = False
        self._db: sqlite3.Connection | None = None
        self._closed = True

    async def open(self) -> None:
        """Open or create the file; one on a full disk is opened by a later call.

        Raises:
            ConfigurationError: it cannot be used.
        """
        self._closed = False
        try:
            await asyncio.to_thread(self._connect)
        except (sqlite3.Error, OSError) as exc:
            if not _lacks_room(exc):
                raise ConfigurationError(f"cannot use the audit spool {self._path}") from exc
            log.error("no room for the audit spool", extra=fields(path=str(self._path)))

    def _connect(self) -> sqlite3.Connection:
        if self._db is not None:
            return self._db
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path.touch(mode=0o600)
        db = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        try:
            db.execute("pragma journal_mode=wal")
            db.execute("pragma synchronous=full")
            db.execute(f"pragma wal_autocheckpoint={_WAL_PAGES}")
            db.execute(f"pragma journal_size_limit={_WAL_BYTES}")
            db.execute(_CREATE)
            count = db.execute("select coalesce(sum(records), 0) from batch").fetchone()[0]
        except BaseException:  # Cleanup, then raised again.
            db.close()
            raise
        self._count, self._db = count, db
        self._delivered, self._undeleted = 0, False
        self._measure()
        return db

    @property
    def count(self) -> int:
        """Records waiting."""
        return self._count

    @property
    def full(self) -> bool:
        """No more fit."""
        return self._count >= self._limit

    @property
    def scarce(self) -> bool:
        """Less than half of the room is left, or little of the disk: kept for enrollments."""
        return self._count >= self._limit // 2 or self._scarce_disk

    async def put(self, records: int, body: bytes) -> None:
        """Keep a batch; on return it is on disk.

        Raises:
            AuditUnavailable: the spool is full or the disk refuses.
        """
        if self.full:
            raise AuditUnavailable("the audit spool is full", code="audit.spool_full")

        def insert(db: sqlite3.Connection) -> None:
            db.execute("insert into batch (records, body) values (?, ?)", (records, body))
            self._count += records
            self._measure()

        await self._run(insert)

    async def first(self) -> tuple[int, int, bytes] | None:
        """Return (id, records, body) of the oldest batch that was not delivered."""

        def select(db: sqlite3.Connection) -> tuple[int, int, bytes] | None:
            row: tuple[int, int, bytes] | None = db.execute(
                "select id, records, body from batch where id > ? order by id limit 1",
                (self._delivered,),
            ).fetchone()
            if row is None:
                self._count = 0
            return row

        return await self._run(select)

    async def drop(self, batch_id: int, records: int) -> None:
        """Forget the oldest batch, which was delivered; its room is free at once, or later."""
        self._delivered = batch_id
        self._count -= records
        self._undeleted = True
        try:
            await self._run(self._delete)
        except AuditUnavailable as exc:
            log.info("delivered audit records stay on disk", extra=fields(reason=exc.reason))

    def _delete(self, db: sqlite3.Connection) -> None:
        db.execute("delete from batch where id <= ?", (self._delivered,))
        self._undeleted = False
        self._measure()

    async def tidy(self) -> None:
        """Give the room on disk back when nothing waits: remove the files and make new ones.

        Raises:
            AuditUnavailable: there is no room for new ones.
        """
        if self._count or self._closed:
            return
        large = _SCARCE_BYTES if self._scarce_disk else _LARGE_BYTES
        if self._db is None:
            await self._run(lambda _: None)
        elif self._undeleted or self._size() > large:
            await self._run(self._renew)

    def _renew(self, db: sqlite3.Connection) -> None:
        db.close()
        self._db = None
        for file in self._files():
            file.unlink(missing_ok=True)
        self._connect()

    def _files(self) -> list[Path]:
        return [Path(f"{self._path}{suffix}") for suffix in ("", "-wal", "-shm")]

    def _size(self) -> int:
        try:
            return sum(file.stat().st_size for file in self._files() if file.exists())
        except OSError:
            return 0

    def _measure(self) -> None:
        try:
            found = os.statvfs(self._path.parent)
        except OSError:
            return
        reserve = min(_RESERVE_BYTES, found.f_blocks * found.f_frsize // 4)
        self._scarce_disk = found.f_bavail * found.f_frsize < reserve

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do something with the database in a thread, opening it first where it is not.

        Raises:
            AuditUnavailable: it is closed, or the disk refuses.
        """
        if self._closed:
            raise AuditUnavailable("the audit spool is not open", code="audit.spool_full")
        async with self._lock:
            try:
                return await asyncio.to_thread(lambda: work(self._connect()))
            except (sqlite3.Error, OSError) as exc:
                raise AuditUnavailable("the audit spool refuses", code="audit.spool_full") from exc

    async def close(self) -> None:
        """Close the file."""
        self._closed = True
        if self._db is not None:
            db, self._db = self._db, None
            try:
                await asyncio.to_thread(db.close)
            except sqlite3.Error as exc:
                # Every commit is on disk already.
                log.warning("audit spool not closed", extra=fields(error=type(exc).__name__))


def _lacks_room(error: sqlite3.Error | OSError) -> bool:
    if isinstance(error, OSError):
        return error.errno in _NO_ROOM_ERRNO
    # The low octet is the primary result code.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _NO_ROOM
