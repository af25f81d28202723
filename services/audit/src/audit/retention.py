"""Retention: archive a month, purge it, restore it; legal holds win.

A purge drops a month's records and keeps the hashes of their leaves, so the log still verifies:

1. The month is older than the retention period, and no legal hold touches it.
2. A checkpoint and the tiles cover it.
3. The tiles have the root that the checkpoint signed, and every record of the month the hash in
   its tile: what is dropped is what was logged.
4. An archive, if one is given, has exactly these records and verifies.
5. Partitions dropped and the purge noted, in one transaction.

Each needs the owner's access to the schema, as ``migrate`` does; the service's own role cannot.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from typing_extensions import override

from audit import indexer, retention_store, term_store, tiles
from audit.retention_store import Purged
from audit.settings import RetentionSettings
from audit.tiles import TreeReader
from estcore.errors import AuditChainBroken, Conflict, MalformedRequest
from estcore.runtime.database import Connection
from estcore.tlog import export
from estcore.tlog.checkpoint import SignedCheckpoint, VerifierKey, parse_signed
from estcore.tlog.tree import Frontier, leaf_hash
from estcore.tlog.verify import Options, Verification, verify

_ROWS = 2000
_FIRST_YEAR, _LAST_YEAR = 2000, 2999
_COVERED = """select coalesce(
  (select note || (select string_agg(line, '' order by witness) from cosignature c
     where c.size = p.size)
   from checkpoint p where size between $1 and $1 + 65536
     and exists (select from cosignature c where c.size = p.size) order by size limit 1),
  (select note from checkpoint where size >= $1 order by size limit 1))"""
"""The next checkpoint with lines of witnesses or time stamps; the next one where none is near."""


@dataclass(frozen=True)
class Month:
    """One month of the log, by UTC."""

    year: int
    month: int

    @classmethod
    def parse(cls, text: str) -> Month:
        """Return the month in ``YYYY-MM``.

        Raises:
            ValueError: it is not one, or of a year that no log has.
        """
        start = dt.datetime.strptime(text, "%Y-%m").replace(tzinfo=dt.UTC)
        if not _FIRST_YEAR <= start.year <= _LAST_YEAR:
            raise ValueError(f"{start.year} is not a year of a log")
        return cls(start.year, start.month)

    @property
    def start(self) -> dt.datetime:
        """Its first moment."""
        return dt.datetime(self.year, self.month, 1, tzinfo=dt.UTC)

    @property
    def end(self) -> dt.datetime:
        """The first moment of the month after it."""
        years, month = divmod(self.month, 12)
        return dt.datetime(self.year + years, month + 1, 1, tzinfo=dt.UTC)

    @property
    def digits(self) -> str:
        """``YYYYMM``, as partitions have it."""
        return f"{self.year:04}{self.month:02}"

    @override
    def __str__(self) -> str:
        return f"{self.year:04}-{self.month:02}"


def purgeable_at(month: Month, settings: RetentionSettings) -> dt.datetime:
    """Return when the youngest record of the month has been kept long enough."""
    return month.end.replace(year=month.end.year + settings.keep_years)


async def archive(
    connection: Connection, month: Month, origin: str, key: VerifierKey
) -> AsyncIterator[bytes]:
    """Yield the lines of a month's archive, without line ends.

    Raises:
        Conflict: the month has no records, or is not sealed yet.
    """
    first, end, count = await _extent(connection, month)
    signed = await _covered(connection, end)
    size = signed.checkpoint.size
    edge = await TreeReader(connection).frontier(first)
    yield export.ArchiveHeader(origin, str(key), count, 1, first, str(month)).line()
    yield export.edge_line(edge)
    start = first
    while rows := await retention_store.month_records(
        connection, (month.start, month.end), start, _ROWS
    ):
        for row in rows:
            yield export.record_line(*row)
        start = rows[-1][0] + 1
    for line in export.purged_lines(end, await tiles.leaf_hashes(connection, end, size)):
        yield line
    yield export.checkpoint_line(size, signed.note)


async def check_purge(
    connection: Connection, month: Month, settings: RetentionSettings, now: dt.datetime
) -> tuple[int, int]:
    """Return first and end index of a month that may be purged.

    Raises:
        Conflict: it is too young, held, empty, or not sealed.
    """
    allowed = purgeable_at(month, settings)
    if now < allowed:
        raise Conflict(f"{month} must be kept until {allowed.date()}", code="retention.too_young")
    holds = await retention_store.held_by(connection, month.start, month.end)
    if holds:
        raise Conflict(f"{month} is under legal hold: {', '.join(holds)}", code="retention.held")
    first, end, _ = await _extent(connection, month)
    if await tiles.count(connection) * tiles.WIDTH < end:
        raise Conflict(f"the tiles do not cover {month} yet", code="retention.unsealed")
    await _covered(connection, end)
    return first, end


async def purge(
    connection: Connection,
    month: Month,
    settings: RetentionSettings,
    *,
    key: VerifierKey,
    now: dt.datetime,
    archived: str | None,
) -> Purged:
    """Purge a month in the transaction of the connection; ``archived`` is SHA-256 of an archive.

    Raises:
        Conflict: it may not be purged.
        AuditChainBroken: the database has something else than was signed; nothing is purged.
    """
    await retention_store.lock_for_purge(connection)
    first, end = await check_purge(connection, month, settings, now)
    await _check_tree(connection, end, key)
    await _check_records(connection, month, first, end)
    done = Purged(first, end, month.digits, now, archived)
    await retention_store.drop_month(connection, done)
    return done


def check_archive(
    lines: Iterable[bytes], month: Month, extent: tuple[int, int], key: VerifierKey
) -> tuple[str, Verification]:
    """Verify an archive of a month; returns SHA-256 of the file.

    Raises:
        AuditChainBroken: it has findings, or is of other records.
    """
    digest = hashlib.sha256()

    def read() -> Iterable[bytes]:
        for line in lines:
            digest.update(line)
            yield line

    found = verify(read(), Options(now=month.end, key=key))
    report = found.report
    if not report.ok:
        raise AuditChainBroken(
            f"the archive has findings: {report.findings[0]}", code="archive.findings"
        )
    here = [leaf["log_index"] for leaf in found.records]
    if report.archive != str(month) or (here[:1], len(here)) != (
        [extent[0]],
        extent[1] - extent[0],
    ):
        raise AuditChainBroken(
            f"the archive is not of all records of {month}", code="archive.other"
        )
    return digest.hexdigest(), found


async def restore(connection: Connection, lines: list[bytes], key: VerifierKey) -> Purged:
    """Insert the records of an archive again, in the transaction of the connection.

    Raises:
        Conflict: these records were not purged.
        AuditChainBroken: the archive has findings, or other records than were purged.
    """
    values = [export.read_line(line) for line in lines]
    if not values or values[0]["type"] != "archive":
        raise MalformedRequest("this is not an archive", code="archive.malformed")
    try:
        month = Month.parse(values[0]["month"])
    except ValueError as exc:
        raise MalformedRequest("an archive is of a month", code="archive.malformed") from exc
    await retention_store.lock_for_purge(connection)
    purges = {done.month: done for done in await retention_store.purged(connection)}
    done = purges.get(month.digits)
    if done is None:
        raise Conflict(f"{month} is not purged", code="archive.not_purged")
    check_archive(lines, month, (done.first_index, done.end_index), key)
    records = [value for value in values if value["type"] == "record"]
    hashes = [bytes.fromhex(value["leaf_hash"]) for value in records]
    if hashes != await tiles.leaf_hashes(connection, done.first_index, done.end_index):
        raise AuditChainBroken("the archive is of a different log", code="archive.other")
    await connection.execute("select ensure_month($1)", month.start)
    await retention_store.insert_records(
        connection,
        [value["log_index"] for value in records],
        [value["leaf"] for value in records],
        hashes,
        [bytes.fromhex(value["prev_hash"]) for value in records],
    )
    await retention_store.forget_purge(connection, done.first_index)
    bounds = (done.first_index, done.end_index)
    rows = await term_store.records_between(connection, bounds)
    for chunk in indexer.chunks(rows):
        for start in range(0, len(chunk), _ROWS):
            await indexer.index(connection, chunk[start : start + _ROWS])
    return done


async def _extent(connection: Connection, month: Month) -> tuple[int, int, int]:
    if month.digits not in await retention_store.months(connection):
        raise Conflict(f"the log has no records of {month}", code="retention.unknown")
    first, end, count = await retention_store.extent(connection, month.start, month.end)
    if not count:
        raise Conflict(f"the log has no records of {month}", code="retention.unknown")
    if end - first != count:
        raise AuditChainBroken(f"records of {month} are missing in the database")
    return first, end, count


async def _covered(connection: Connection, end: int) -> SignedCheckpoint:
    note = await connection.fetchval(_COVERED, end)
    if note is None:
        raise Conflict("no checkpoint covers the month yet", code="retention.unsealed")
    return parse_signed(str(note))


async def _check_tree(connection: Connection, end: int, key: VerifierKey) -> None:
    signed = await _covered(connection, end)
    signed.verify(key)
    edge, size = Frontier(), signed.checkpoint.size
    while edge.size < size:
        until = min(edge.size + 64 * tiles.WIDTH, size)
        for hashed in await tiles.leaf_hashes(connection, edge.size, until):
            edge.append(hashed)
    if edge.root() != signed.checkpoint.root:
        raise AuditChainBroken("the tiles do not have the root that was signed")


async def _check_records(connection: Connection, month: Month, first: int, end: int) -> None:
    start = first
    while start < end:
        rows = await retention_store.month_records(
            connection, (month.start, month.end), start, _ROWS
        )
        expected = await tiles.leaf_hashes(connection, start, start + len(rows))
        found = [leaf_hash(leaf.encode()) for _, leaf, _, _ in rows]
        if not rows or found != expected:
            raise AuditChainBroken(f"records of {month} are not what was signed")
        start += len(rows)
