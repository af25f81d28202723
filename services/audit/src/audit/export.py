"""Reading the log out of the database: whole or one correlation id, in one snapshot."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from asyncpg import Record
from sqlalchemy import ColumnElement, and_, func, literal_column, or_, select

from audit import retention_store, term_store, tiles
from audit.packed_leaf import LEAF, unpack
from audit.tables import checkpoint, cosignature, head, record
from audit.tiles import TreeReader
from estcore.errors import Conflict, ESTSuiteError
from estcore.runtime import statements
from estcore.runtime.database import Connection, Database
from estcore.tlog import export
from estcore.tlog.leaf import read_leaf
from estcore.tlog.terms import term

_HASHES = 16 * tiles.WIDTH
_LEAF: ColumnElement[bytes] = literal_column(LEAF).label("leaf")
_LINES = select(record.c.log_index, _LEAF, record.c.leaf_hash, record.c.prev_hash).order_by(
    record.c.log_index
)
_LINES_OF_WITNESSES = (
    select(func.string_agg(cosignature.c.line, ""))
    .where(cosignature.c.size == checkpoint.c.size)
    .scalar_subquery()
)
# The note as the log signed it, and the lines of witnesses behind it.
_CHECKPOINTS = select(
    checkpoint.c.size,
    (checkpoint.c.note + func.coalesce(_LINES_OF_WITNESSES, "")).label("note"),
)


async def lines(
    database: Database,
    origin: str,
    vkey: str,
    correlation_id: str | None = None,
    *,
    sealed: bool = False,
) -> AsyncIterator[bytes]:
    """Yield the lines of an export, without line ends.

    ``sealed`` ends a whole export with the records that the newest checkpoint covers.

    Raises:
        LedgerUnavailable: the database does not answer.
    """
    async with (
        database.connection() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        await connection.execute("set local statement_timeout = 0")
        if correlation_id is None:
            stream = _full(connection, origin, vkey, sealed=sealed)
        else:
            stream = _part(connection, origin, vkey, correlation_id)
        async for line in stream:
            yield line


@dataclass(frozen=True)
class Part:
    """Lines of an export, and where the next part begins; None at the end."""

    size: int
    lines: list[bytes]
    next_record: int | None
    next_checkpoint: int | None


async def part(
    connection: Connection,
    origin: str,
    vkey: str,
    *,
    size: int | None,
    start: int,
    checkpoint_from: int,
    octets: int,
) -> Part:
    """Return a part of a sealed export of the whole log, of about so many octets.

    The parts together are what ``lines`` yields, if nothing is purged meanwhile. ``size`` is that
    of the checkpoint that ends it; None begins a new export with the newest.

    Raises:
        Conflict: the log has no checkpoint of that size.
    """
    newest = await statements.fetch_value(connection, select(func.max(checkpoint.c.size)))
    if newest is None or (size is not None and size > newest):
        raise Conflict("no checkpoint covers that; ask again in a minute", code="proof.unsealed")
    size = newest if size is None else size
    found: list[bytes] = []
    if start == 0 and checkpoint_from == 0:
        found.append((await _header(connection, origin, vkey, size)).line())
    taken, place = 0, start
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        async for index, line in _records(connection, start, size):
            if taken >= octets:
                return Part(size, found, index, 0)
            found.append(line)
            taken, place = taken + len(line), index + 1
    points = _CHECKPOINTS.where(
        and_(checkpoint.c.size > checkpoint_from, checkpoint.c.size <= size)
    ).order_by(checkpoint.c.size)
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        async for row in statements.stream(connection, points):
            if taken >= octets:
                return Part(size, found, max(place, size), row["size"] - 1)
            found.append(export.checkpoint_line(*row))
            taken += len(found[-1])
    return Part(size, found, None, None)


async def _header(connection: Connection, origin: str, vkey: str, size: int) -> export.Header:
    absent = [part for part in await retention_store.purged(connection) if part.end_index <= size]
    records = size - sum(part.end_index - part.first_index for part in absent)
    checkpoints = await statements.fetch_value(
        connection, select(func.count()).select_from(checkpoint).where(checkpoint.c.size <= size)
    )
    return export.Header(origin, vkey, records, checkpoints)


async def _records(
    connection: Connection, start: int, size: int
) -> AsyncIterator[tuple[int, bytes]]:
    """Yield lines of records and purged ones from an index on, each with its first index."""
    for absent in await retention_store.purged(connection):
        if absent.end_index > size:
            break
        async for row in _between(connection, start, absent.first_index):
            yield row["log_index"], export.record_line(*_line(row))
        for index in range(max(start, absent.first_index), absent.end_index, _HASHES):
            hashes = await tiles.leaf_hashes(
                connection, index, min(index + _HASHES, absent.end_index)
            )
            for number, line in enumerate(export.purged_lines(index, hashes)):
                yield index + number * export.PURGED_HASHES, line
        start = max(start, absent.end_index)
    async for row in _between(connection, start, size):
        yield row["log_index"], export.record_line(*_line(row))


async def _full(
    connection: Connection, origin: str, vkey: str, *, sealed: bool
) -> AsyncIterator[bytes]:
    size = await statements.fetch_value(
        connection,
        select(func.coalesce(func.max(checkpoint.c.size), 0)) if sealed else select(head.c.size),
    )
    yield (await _header(connection, origin, vkey, size)).line()
    async for _, line in _records(connection, 0, size):
        yield line
    async for row in statements.stream(connection, _CHECKPOINTS.order_by(checkpoint.c.size)):
        yield export.checkpoint_line(*row)


def _between(connection: Connection, start: int, end: int) -> AsyncIterator[Record]:
    condition = and_(record.c.log_index >= start, record.c.log_index < end)
    return statements.stream(connection, _LINES.where(condition))


async def _part(
    connection: Connection, origin: str, vkey: str, correlation_id: str
) -> AsyncIterator[bytes]:
    newest = await statements.fetch_row(
        connection, _CHECKPOINTS.order_by(checkpoint.c.size.desc()).limit(1)
    )
    rows = await statements.fetch(
        connection, _LINES.where(*await _of_call(connection, correlation_id))
    )
    sealed = newest["size"] if newest else 0
    tree = TreeReader(connection)
    yield export.Header(origin, vkey, len(rows), 1 if newest else 0, correlation_id).line()
    for row in rows:
        index = row["log_index"]
        proof = await tree.inclusion(index, sealed) if index < sealed else None
        yield export.record_line(*_line(row), proof)
    if newest:
        yield export.checkpoint_line(newest["size"], newest["note"])


def _line(row: Record) -> tuple[int, str, bytes, bytes]:
    return row["log_index"], unpack(row["leaf"]), row["leaf_hash"], row["prev_hash"]


async def _of_call(
    connection: Connection, correlation_id: str
) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """Return the conditions of the records of one call: by the index, and behind it."""
    end, _ = await term_store.indexed(connection)
    found = await term_store.indexes_of(connection, term("correlation", correlation_id).key)
    place = or_(record.c.log_index.in_(found), record.c.log_index >= end)
    return place, record.c.correlation_id == correlation_id


async def summary(database: Database, correlation_id: str) -> list[str]:
    """Return one line for each record of a correlation id, in log order."""
    async with database.connection() as connection:
        row_ = record.c
        rows = await statements.fetch(
            connection,
            select(
                row_.log_index,
                row_.occurred_at,
                row_.service,
                row_.instance,
                row_.action,
                row_.phase,
                row_.outcome,
                _LEAF,
            )
            .where(*await _of_call(connection, correlation_id))
            .order_by(row_.log_index),
        )
    facts = [_facts(unpack(row["leaf"])) for row in rows]
    return [
        " ".join(
            [
                f"{row['log_index']:>8}",
                row["occurred_at"].strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                f"{row['service']}/{row['instance']}",
                f"{row['action']}.{row['phase']}",
                row["outcome"],
                *([f"reason={reason}"] if reason else []),
                *([f"serial={serial}"] if serial else []),
            ]
        )
        for row, (reason, serial) in zip(rows, facts, strict=True)
    ]


def _facts(leaf: str) -> tuple[str | None, str | None]:
    """Return reason code and serial number; of what is no record any more, neither."""
    try:
        found = read_leaf(leaf.encode())["record"]
    except ESTSuiteError:
        return None, None
    return found.get("reason_code"), (found.get("target") or {}).get("serial")
