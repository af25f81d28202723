"""Reading the log out of the database: whole or one correlation id, in one snapshot."""

from __future__ import annotations

from collections.abc import AsyncIterator

from asyncpg import Record
from sqlalchemy import JSON, ColumnElement, and_, cast, func, or_, select

from audit import retention_store, term_store, tiles
from audit.tables import checkpoint, cosignature, head, record
from audit.tiles import TreeReader
from estcore.runtime import statements
from estcore.runtime.database import Connection, Database
from estcore.tlog import export
from estcore.tlog.terms import term

_HASHES = 16 * tiles.WIDTH
_LINES = select(record.c.log_index, record.c.leaf, record.c.leaf_hash, record.c.prev_hash).order_by(
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


async def _full(
    connection: Connection, origin: str, vkey: str, *, sealed: bool
) -> AsyncIterator[bytes]:
    size = await statements.fetch_value(
        connection,
        select(func.coalesce(func.max(checkpoint.c.size), 0)) if sealed else select(head.c.size),
    )
    absent = [part for part in await retention_store.purged(connection) if part.end_index <= size]
    records = size - sum(part.end_index - part.first_index for part in absent)
    checkpoints = await statements.fetch_value(
        connection, select(func.count()).select_from(checkpoint)
    )
    yield export.Header(origin, vkey, records, checkpoints).line()
    start = 0
    for part in absent:
        async for row in _between(connection, start, part.first_index):
            yield export.record_line(*row)
        start = part.end_index
        for index in range(part.first_index, start, _HASHES):
            hashes = await tiles.leaf_hashes(connection, index, min(index + _HASHES, start))
            for line in export.purged_lines(index, hashes):
                yield line
    async for row in _between(connection, start, size):
        yield export.record_line(*row)
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
        yield export.record_line(index, row["leaf"], row["leaf_hash"], row["prev_hash"], proof)
    if newest:
        yield export.checkpoint_line(newest["size"], newest["note"])


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
        leaf = cast(row_.leaf, JSON)
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
                leaf[("record", "reason_code")].as_string().label("reason"),
                leaf[("record", "target", "serial")].as_string().label("serial"),
            )
            .where(*await _of_call(connection, correlation_id))
            .order_by(row_.log_index),
        )
    return [
        " ".join(
            [
                f"{row['log_index']:>8}",
                row["occurred_at"].strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                f"{row['service']}/{row['instance']}",
                f"{row['action']}.{row['phase']}",
                row["outcome"],
                *([f"reason={row['reason']}"] if row["reason"] else []),
                *([f"serial={row['serial']}"] if row["serial"] else []),
            ]
        )
        for row in rows
    ]
