"""Reading the log out of the database: whole or one correlation id, in one snapshot."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg

from estcore.runtime.database import Connection, Database
from estcore.tlog import export
from estcore.tlog.tree import Tree

_PREFETCH = 1000
_COLUMNS = "select log_index, leaf, leaf_hash, prev_hash from record"


async def lines(
    database: Database, origin: str, vkey: str, correlation_id: str | None = None
) -> AsyncIterator[bytes]:
    """Yield the lines of an export, without line ends.

    Raises:
        LedgerUnavailable: the database does not answer.
    """
    async with (
        database.connection() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        await connection.execute("set local statement_timeout = 0")
        if correlation_id is None:
            whole = _whole(connection, origin, vkey)
        else:
            whole = _part(connection, origin, vkey, correlation_id)
        async for line in whole:
            yield line


async def _whole(connection: Connection, origin: str, vkey: str) -> AsyncIterator[bytes]:
    records = await connection.fetchval("select count(*) from record")
    checkpoints = await connection.fetchval("select count(*) from checkpoint")
    yield export.Header(origin, vkey, records, checkpoints).line()
    async for row in _rows(connection, f"{_COLUMNS} order by log_index"):
        yield export.record_line(*row)
    async for row in _rows(connection, "select size, note from checkpoint order by size"):
        yield export.checkpoint_line(*row)


async def _part(
    connection: Connection, origin: str, vkey: str, correlation_id: str
) -> AsyncIterator[bytes]:
    newest = await connection.fetchrow(
        "select size, note from checkpoint order by size desc limit 1"
    )
    found = await connection.fetch(
        f"{_COLUMNS} where correlation_id = $1 order by log_index", correlation_id
    )
    sealed = newest["size"] if newest else 0
    tree = Tree()
    async for row in _rows(
        connection, "select leaf_hash from record where log_index < $1 order by log_index", sealed
    ):
        tree.append(row[0])
    yield export.Header(origin, vkey, len(found), 1 if newest else 0, correlation_id).line()
    for row in found:
        index = row["log_index"]
        proof = tree.inclusion(index, sealed) if index < sealed else None
        yield export.record_line(index, row["leaf"], row["leaf_hash"], row["prev_hash"], proof)
    if newest:
        yield export.checkpoint_line(newest["size"], newest["note"])


async def _rows(
    connection: Connection, query: str, *arguments: Any
) -> AsyncIterator[asyncpg.Record]:
    async for row in connection.cursor(query, *arguments, prefetch=_PREFETCH):
        yield row


async def summary(database: Database, correlation_id: str) -> list[str]:
    """Return one line for each record of a correlation id, in log order."""
    async with database.connection() as connection:
        rows = await connection.fetch(
            "select log_index, occurred_at, service, instance, action, phase, outcome,"
            " leaf::json #>> '{record,reason_code}' as reason,"
            " leaf::json #>> '{record,target,serial}' as serial"
            " from record where correlation_id = $1 order by log_index",
            correlation_id,
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
