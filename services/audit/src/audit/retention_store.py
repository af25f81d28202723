"""The statements of retention. Those that change anything need the owner of the schema."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from audit.packed_leaf import LEAF, pack, unpack
from estcore.runtime.database import Connection

_MONTHS = """
select right(relid::text, 6) from pg_partition_tree('record') where isleaf order by 1
"""
_HELD = """
select name from legal_hold where released_at is null and since < $2 and until > $1 order by name
"""
_OF_MONTH = f"""
select log_index, {LEAF}, leaf_hash, prev_hash from record
where recorded_at >= $1 and recorded_at < $2 and log_index >= $3 order by log_index limit $4
"""  # noqa: S608 - our own expression
_RESTORE = """
insert into record (log_index, recorded_at, record_id, occurred_at, correlation_id, action, phase,
    outcome, service, instance, boot_id, producer_seq, packed_leaf, leaf_hash, prev_hash)
select i, (l->>'recorded_at')::timestamptz, (r->>'record_id')::uuid,
    (r->>'occurred_at')::timestamptz, r->>'correlation_id', r->>'action', r->>'phase',
    r->>'outcome', r#>>'{producer,service}', r#>>'{producer,instance}', r#>>'{producer,boot_id}',
    (r->>'producer_seq')::bigint, packed, h, p
from unnest($1::bigint[], $2::text[], $3::bytea[], $4::bytea[], $5::bytea[])
    as u(i, t, packed, h, p)
cross join lateral (select t::json as l, (t::json)->'record' as r) parsed
"""


@dataclass(frozen=True)
class Hold:
    """A legal hold: nothing recorded in [since, until) is purged until it is released."""

    name: str
    since: dt.datetime
    until: dt.datetime
    reason: str
    placed_at: dt.datetime
    placed_by: str
    released_at: dt.datetime | None = None
    released_by: str | None = None


@dataclass(frozen=True)
class Purged:
    """Records [first_index, end_index) whose content was purged."""

    first_index: int
    end_index: int
    month: str
    purged_at: dt.datetime
    archive_sha256: str | None


async def months(connection: Connection) -> list[str]:
    """Return the months that have a partition, as YYYYMM, oldest first."""
    return [row[0] for row in await connection.fetch(_MONTHS)]


async def extent(
    connection: Connection, start: dt.datetime, end: dt.datetime
) -> tuple[int, int, int]:
    """Return first and end index of a month's records, and their number; zeros for none."""
    row = await connection.fetchrow(
        "select min(log_index), max(log_index) + 1, count(*) from record"
        " where recorded_at >= $1 and recorded_at < $2",
        start,
        end,
    )
    return (row[0] or 0, row[1] or 0, row[2]) if row is not None else (0, 0, 0)


async def purged(connection: Connection) -> list[Purged]:
    """Return what is purged, in order of the log."""
    rows = await connection.fetch(
        "select first_index, end_index, month, purged_at, archive_sha256 from purge"
        " order by first_index"
    )
    return [Purged(*row) for row in rows]


async def holds(connection: Connection) -> list[Hold]:
    """Return every hold, released ones too."""
    rows = await connection.fetch(
        "select name, since, until, reason, placed_at, placed_by, released_at, released_by"
        " from legal_hold order by placed_at"
    )
    return [Hold(*row) for row in rows]


async def held_by(connection: Connection, start: dt.datetime, end: dt.datetime) -> list[str]:
    """Return the holds in force that touch a period."""
    return [row[0] for row in await connection.fetch(_HELD, start, end)]


async def place_hold(connection: Connection, hold: Hold) -> bool:
    """Place a hold; False if there is one of this name."""
    return bool(
        await connection.fetchval(
            "insert into legal_hold (name, since, until, reason, placed_at, placed_by)"
            " values ($1, $2, $3, $4, $5, $6) on conflict do nothing returning true",
            hold.name,
            hold.since,
            hold.until,
            hold.reason,
            hold.placed_at,
            hold.placed_by,
        )
    )


async def release_hold(connection: Connection, name: str, now: dt.datetime, by: str) -> bool:
    """Release a hold; False if none of this name is in force."""
    return bool(
        await connection.fetchval(
            "update legal_hold set released_at = $2, released_by = $3"
            " where name = $1 and released_at is null returning true",
            name,
            now,
            by,
        )
    )


async def lock_for_purge(connection: Connection) -> None:
    """Keep other purges and new holds out until the transaction ends."""
    await connection.execute("lock table legal_hold, purge in share row exclusive mode")


async def drop_month(connection: Connection, done: Purged) -> None:
    """Drop a month's records and its part of the index, and note it."""
    for table in (partition(done.month), partition(done.month, "record_term")):
        await connection.execute(f"drop table if exists {table}")
    await connection.execute(
        "delete from record_chunk where first_index >= $1 and end_index <= $2",
        done.first_index,
        done.end_index,
    )
    await connection.execute(
        "insert into purge (first_index, end_index, month, purged_at, archive_sha256)"
        " values ($1, $2, $3, $4, $5)",
        done.first_index,
        done.end_index,
        done.month,
        done.purged_at,
        done.archive_sha256,
    )


async def forget_purge(connection: Connection, first_index: int) -> None:
    """Note that the records are here again."""
    await connection.execute("delete from purge where first_index = $1", first_index)


async def insert_records(
    connection: Connection,
    indexes: Sequence[int],
    leaves: Sequence[str],
    leaf_hashes: Sequence[bytes],
    prev_hashes: Sequence[bytes],
) -> None:
    """Insert records again as they were."""
    packed = [pack(leaf) for leaf in leaves]
    await connection.execute(_RESTORE, indexes, leaves, packed, leaf_hashes, prev_hashes)


async def month_records(
    connection: Connection, times: tuple[dt.datetime, dt.datetime], first: int, limit: int
) -> list[tuple[int, str, bytes, bytes]]:
    """Return (log_index, leaf, leaf_hash, prev_hash) of a month, from an index on, in order."""
    rows = await connection.fetch(
        _OF_MONTH,
        *times,
        first,
        limit,
    )
    return [(index, unpack(leaf), hashed, prev) for index, leaf, hashed, prev in rows]


def partition(month: str, table: str = "record") -> str:
    """Return the name of a month's partition.

    Raises:
        ValueError: the month is not YYYYMM.
    """
    if len(month) != 6 or not (month.isascii() and month.isdigit()):  # noqa: PLR2004
        raise ValueError("a month is YYYYMM")
    return f"{table}_{month}"
