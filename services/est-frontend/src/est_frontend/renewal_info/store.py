"""The entries of renewal information on disk: SQLite, one row for each certificate.

On disk and not in memory, since there may be millions. The file is a copy of the stream, so nothing
in it has to survive: one that is damaged is made anew and filled from the stream. Position and
entries are in one transaction, so after a crash no message is skipped.

Reads and writes run in a thread each; the event loop waits for no disk.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from estcore.errors import Unavailable
from estcore.est.renewal_info import ManagedState
from estcore.messages.renewal_info import RenewalInfoEntry

T = TypeVar("T")

_VERSION = 2
_PAGE_CACHE_KIB = 1024
_WAL_PAGES = 1000
_WAL_BYTES = 4 * 1024 * 1024
_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY)
_SEARCHED = 5000
"""Rows that are searched for expired entries at a time."""
_CREATE = """
create table if not exists entry (
    key blob primary key, version integer not null, start integer not null, "end" integer not null,
    not_after integer not null, rotation blob, reason text, url text, managed text
) without rowid;
create table if not exists progress (
    id integer primary key check (id = 1), position integer not null, epoch text, reading text
);
insert into progress (id, position) values (1, 0) on conflict do nothing;
"""
_FIND = 'select start, "end", not_after, rotation, reason, url, managed from entry where key = ?'
_PUT = """
insert into entry (key, version, start, "end", not_after, rotation, reason, url, managed)
values (?, ?, ?, ?, ?, ?, ?, ?, ?)
on conflict (key) do update set version = excluded.version, start = excluded.start,
    "end" = excluded."end", not_after = excluded.not_after, rotation = excluded.rotation,
    reason = excluded.reason, url = excluded.url, managed = excluded.managed
where excluded.version > entry.version
"""
_MOVE = "update progress set position = ?, epoch = ?, reading = ?"
_UP_TO = "select key from entry where key > ? order by key limit 1 offset ?"
_EXPIRED = "delete from entry where key > ? and key <= ? and not_after < ?"
_LAST = b"\xff" * 17


class StoreDamaged(Unavailable):
    """The file cannot be read; it is made anew."""

    default_code = "renewal_info.store"


class StoreClosed(Unavailable):
    """The file is not open yet, or is being made anew."""

    default_code = "renewal_info.store"


class StoreFull(Unavailable):
    """The file cannot be written now; reading goes on."""

    default_code = "renewal_info.store"


class StoredEntry(NamedTuple):
    """What is known about one certificate; times are Unix seconds."""

    start: int
    end: int
    not_after: int
    rotation: bytes | None
    reason: str | None
    url: str | None
    managed: ManagedState | None = None


@dataclass(frozen=True)
class Progress:
    """How far the stream was read.

    ``epoch`` is the last one that was read completely, ``reading`` one that is being read.
    """

    position: int = 0
    epoch: str | None = None
    reading: str | None = None

    def restart(self, reading: str | None) -> Progress:
        """Return the progress at the start of the stream."""
        return replace(self, position=0, reading=reading)


class RenewalInfoStore:
    """Finds and keeps entries.

    Every method may raise ``StoreDamaged``, and ``StoreClosed`` before it was opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reading = ThreadPoolExecutor(1, "renewal-info-read")
        self._writing = ThreadPoolExecutor(1, "renewal-info-write")
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None

    async def open(self) -> Progress:
        """Open or create the file; returns how far it is.

        Raises:
            StoreDamaged: it cannot be used.
        """
        return await self._write(self._open)

    async def rebuild(self) -> Progress:
        """Remove the file and create it.

        Raises:
            StoreDamaged: that is not possible now.
        """
        await self.close()
        return await self._write(self._rebuild)

    async def find(self, key: bytes) -> StoredEntry | None:
        """Return the entry of a key."""

        def find() -> StoredEntry | None:
            row = _opened(self._reader).execute(_FIND, (key,)).fetchone()
            return None if row is None else StoredEntry(*row)

        return await self._run(self._reading, find)

    async def put(self, entries: Sequence[RenewalInfoEntry], progress: Progress) -> None:
        """Keep entries that are newer than those here, and the progress with them.

        Raises:
            StoreFull: the disk is full; nothing changed.
        """

        def put() -> None:
            writer = _opened(self._writer)
            with writer:
                writer.execute("begin immediate")
                writer.executemany(_PUT, map(_row, entries))
                writer.execute(_MOVE, (progress.position, progress.epoch, progress.reading))

        await self._write(put)

    async def drop_expired(self, after: bytes, before: int) -> bytes:
        """Delete what expired ``before`` from the rows next to the key ``after``.

        Returns the key to go on from; empty at the end of the table.
        """

        def drop() -> bytes:
            writer = _opened(self._writer)
            row = writer.execute(_UP_TO, (after, _SEARCHED - 1)).fetchone()
            writer.execute(_EXPIRED, (after, row[0] if row else _LAST, before))
            return bytes(row[0]) if row else b""

        return await self._write(drop)

    async def count(self) -> int:
        """Return how many entries there are."""

        def count() -> int:
            row = _opened(self._writer).execute("select count(*) from entry").fetchone()
            return int(row[0])

        return await self._write(count)

    async def close(self) -> None:
        """Close the file; it can be opened again."""
        await self._run(self._reading, lambda: self._disconnect("_reader"))
        await self._write(lambda: self._disconnect("_writer"))

    def stop(self) -> None:
        """End the threads."""
        self._reading.shutdown()
        self._writing.shutdown()

    async def _write(self, work: Callable[[], T]) -> T:
        return await self._run(self._writing, work)

    async def _run(self, threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, work)
        except sqlite3.Error as exc:
            if getattr(exc, "sqlite_errorcode", 0) & 0xFF in _NO_ROOM:
                raise StoreFull(f"renewal information cannot be stored: {exc}") from exc
            raise StoreDamaged(f"renewal information cannot be read: {exc}") from exc
        except OSError as exc:
            raise StoreDamaged(f"renewal information cannot be kept: {exc.strerror}") from exc

    def _rebuild(self) -> Progress:
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        return self._open()

    def _open(self) -> Progress:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path.touch(mode=0o600)
        self._writer = _connect(self._path)
        if self._writer.execute("pragma user_version").fetchone()[0] not in {0, _VERSION}:
            raise sqlite3.DatabaseError("made by a different version")
        self._writer.executescript(_CREATE)
        self._writer.execute(f"pragma user_version = {_VERSION}")
        self._reader = _connect(self._path)
        row = self._writer.execute("select position, epoch, reading from progress").fetchone()
        return Progress(*row)

    def _disconnect(self, which: str) -> None:
        connection: sqlite3.Connection | None = getattr(self, which)
        setattr(self, which, None)
        if connection is not None:
            connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    try:
        connection.execute("pragma journal_mode = wal")
        # A power cut may lose the last transactions, with their position: they are read again.
        connection.execute("pragma synchronous = normal")
        connection.execute(f"pragma cache_size = -{_PAGE_CACHE_KIB}")
        connection.execute(f"pragma wal_autocheckpoint = {_WAL_PAGES}")
        connection.execute(f"pragma journal_size_limit = {_WAL_BYTES}")
    except BaseException:  # Cleanup, then raised again.
        connection.close()
        raise
    return connection


def _opened(connection: sqlite3.Connection | None) -> sqlite3.Connection:
    if connection is None:
        raise StoreClosed("renewal information is not read yet")
    return connection


def _row(entry: RenewalInfoEntry) -> tuple[object, ...]:
    return (
        entry.key_octets,
        entry.version,
        entry.start,
        entry.end,
        entry.not_after,
        entry.rotation.bytes if entry.rotation else None,
        entry.reason,
        entry.url,
        entry.managed,
    )
