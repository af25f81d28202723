"""The statements of the index of terms: which records have a serial number, a name, an action.

A chunk is a range of the log: at most ``CHUNK_RECORDS`` records of one month, recorded within
``CHUNK_SPAN``. A row of ``record_term`` says which records of a chunk have a term, so a term that
most records share costs one row a chunk. The index follows the log and is no evidence: what it
finds is read from the record itself.
"""

from __future__ import annotations

import datetime as dt
import struct
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import asyncpg

from audit.packed_leaf import LEAF, unpack
from estcore.runtime.database import Connection

CHUNK_RECORDS = 2000
CHUNK_SPAN = dt.timedelta(minutes=10)

# One transaction; nothing is done if a different process indexed this chunk.
_ADD = """
with added as (
    insert into record_chunk (first_index, end_index, recorded_at) values ($1, $2, $3)
    on conflict do nothing returning 1)
insert into record_term (term, recorded_at, chunk, places)
select u.term, $3, $1, u.places from added, unnest($4::bigint[], $5::bytea[]) as u(term, places)
"""
UNINDEXED = f"""
select log_index, recorded_at, {LEAF} from record
where log_index >= $1 and recorded_at >= $2 order by log_index limit $3
"""  # noqa: S608 - our own expression
BEFORE = f"""
select log_index, recorded_at, {LEAF} from record
where log_index < $1 and log_index >= $2 and recorded_at >= $3 and recorded_at < $4
order by log_index desc limit $5
"""  # noqa: S608 - our own expression
AFTER = f"""
select log_index, recorded_at, {LEAF} from record
where log_index >= $1 and recorded_at >= $2 order by log_index limit $3
"""  # noqa: S608 - our own expression
POSTINGS = """
select recorded_at, chunk, places from record_term
where term = $1 and recorded_at >= $2 and recorded_at <= $3 and chunk < $4
order by recorded_at desc, chunk desc limit $5
"""
# "offset 0" keeps this an index look-up for each chunk, whatever the planner knows of the term.
POSTINGS_AT = """
select w.chunk, t.places from unnest($2::timestamptz[], $3::bigint[]) as w(recorded_at, chunk)
cross join lateral (
    select places from record_term r
    where r.term = $1 and r.recorded_at = w.recorded_at and r.chunk = w.chunk offset 0) t
"""
RECORDS = f"""
select log_index, recorded_at, {LEAF} from record
where log_index = any($1::bigint[]) and recorded_at >= $2 and recorded_at <= $3
order by log_index desc
"""  # noqa: S608 - our own expression
_BETWEEN = f"""
select log_index, recorded_at, {LEAF} from record
where log_index >= $1 and log_index < $2 order by log_index
"""  # noqa: S608 - our own expression
_CHUNK_BEFORE = """
select recorded_at from record_chunk where first_index < $1 order by first_index desc limit 1
"""
_CHUNK_UNTIL = """
select end_index from record_chunk where recorded_at < $1
order by recorded_at desc, first_index desc limit 1
"""
_CHUNK_FROM = """
select first_index from record_chunk where recorded_at >= $1
order by recorded_at, first_index limit 1
"""

Row = tuple[int, dt.datetime, str]
"""Log index, time of recording and leaf of a record."""


@dataclass(frozen=True)
class Posting:
    """Which records of a chunk have a term; ``recorded_at`` is that of the chunk's first."""

    recorded_at: dt.datetime
    chunk: int
    places: bytes


async def indexed(connection: Connection) -> tuple[int, dt.datetime | None]:
    """Return up to where the terms are indexed, and the time of the newest chunk."""
    row = await connection.fetchrow(
        "select end_index, recorded_at from record_chunk order by first_index desc limit 1"
    )
    return (0, None) if row is None else (row[0], row[1])


async def add_chunk(
    connection: Connection,
    bounds: tuple[int, int],
    recorded_at: dt.datetime,
    terms: Mapping[int, Sequence[int]],
) -> None:
    """Index a chunk: the places of its records, from 0, by the key of a term."""
    first, end = bounds
    places = [struct.pack(f">{len(found)}H", *found) for found in terms.values()]
    await connection.execute(_ADD, first, end, recorded_at, list(terms), places)


async def unindexed(
    connection: Connection, start: int, since: dt.datetime, limit: int
) -> list[Row]:
    """Return records from ``start`` on, in order."""
    return _rows(await connection.fetch(UNINDEXED, start, since, limit))


async def records_before(
    connection: Connection,
    bounds: tuple[int, int],
    times: tuple[dt.datetime, dt.datetime],
    limit: int,
) -> list[Row]:
    """Return records of [start, end) that were recorded in [since, until), newest first."""
    start, end = bounds
    return _rows(await connection.fetch(BEFORE, end, start, *times, limit))


async def records_after(
    connection: Connection, start: int, since: dt.datetime, limit: int
) -> list[Row]:
    """Return records from ``start`` on that were recorded since then, oldest first."""
    return _rows(await connection.fetch(AFTER, start, since, limit))


async def records_at(
    connection: Connection, indexes: Sequence[int], since: dt.datetime, until: dt.datetime
) -> list[Row]:
    """Return the records with these indexes, newest first; the times bound the months."""
    return _rows(await connection.fetch(RECORDS, indexes, since, until))


async def records_between(connection: Connection, bounds: tuple[int, int]) -> list[Row]:
    """Return the records of [start, end), in order."""
    return _rows(await connection.fetch(_BETWEEN, *bounds))


async def postings(
    connection: Connection,
    key: int,
    times: tuple[dt.datetime, dt.datetime],
    before: int,
    limit: int,
) -> list[Posting]:
    """Return the newest postings of a term in chunks that begin before an index."""
    rows = await connection.fetch(POSTINGS, key, *times, before, limit)
    return [Posting(row[0], row[1], row[2]) for row in rows]


async def postings_at(
    connection: Connection, key: int, chunks: Iterable[Posting]
) -> dict[int, bytes]:
    """Return the places of records that have a term, for those of the chunks that have one."""
    wanted = list(chunks)
    rows = await connection.fetch(
        POSTINGS_AT, key, [c.recorded_at for c in wanted], [c.chunk for c in wanted]
    )
    return {row[0]: row[1] for row in rows}


async def indexes_of(connection: Connection, key: int) -> list[int]:
    """Return the records that have a term by the index, in order."""
    rows = await connection.fetch("select chunk, places from record_term where term = $1", key)
    return sorted(row[0] + place for row in rows for place in places_of(row[1]))


async def time_before(connection: Connection, index: int) -> dt.datetime | None:
    """Return a time that no chunk beginning before ``index`` is later than."""
    moment: dt.datetime | None = await connection.fetchval(_CHUNK_BEFORE, index)
    return moment


async def index_until(connection: Connection, moment: dt.datetime) -> int:
    """Return an index that every indexed record recorded before ``moment`` is below."""
    return int(await connection.fetchval(_CHUNK_UNTIL, moment) or 0)


async def index_from(connection: Connection, moment: dt.datetime) -> int | None:
    """Return the index of the first chunk recorded at ``moment`` or later, if there is one."""
    index: int | None = await connection.fetchval(_CHUNK_FROM, moment)
    return index


def places_of(octets: bytes) -> set[int]:
    """Return the places of records in a chunk: numbers of 16 bits, most significant octet first."""
    found = array("H", octets)
    if sys.byteorder == "little":
        found.byteswap()
    return set(found)


def _rows(rows: Sequence[asyncpg.Record]) -> list[Row]:
    return [(row[0], row[1], unpack(row[2])) for row in rows]
