"""The statements of the audit schema. The one place that knows its SQL."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from audit.packed_leaf import LEAF, unpack
from estcore.errors import AuditChainBroken
from estcore.runtime.database import Connection
from estcore.tlog.tree import Frontier

WRITER_LOCK = 0x4553_5441_5544_4954
"""The advisory lock whose holder is the writer of this schema's log."""

_HEAD = "select size, frontier, last_hash, recorded_at from head"

SEPARATOR = "\x1f"
"""Between the values of a column. Canonical JSON escapes it; other columns may not hold it."""

# One statement is one transaction: the head moves from the size it is expected to have, and
# only then are rows inserted. If another writer moved the head, nothing is inserted.
# Columns travel as joined text, hashes as one octet string: encoding arrays element by element
# took the client a third of its time.
_APPEND = """
with moved as (
    update head set size = $2, frontier = $3, last_hash = $4, recorded_at = $5
    where size = $1 returning 1),
rows as (
    select u.*, $1::bigint + u.place - 1 as log_index,
        substr($16::bytea, (u.place::int - 1) * 32 + 1, 32) as leaf_hash,
        substr($17::bytea, (u.place::int - 1) * 32 + 1, 32) as prev_hash,
        substr($15::bytea, u.leaf_start, u.leaf_octets) as packed_leaf
    from moved, unnest(
        string_to_array($6, e'\\x1f')::uuid[], string_to_array($7, e'\\x1f')::timestamptz[],
        string_to_array($8, e'\\x1f'), string_to_array($9, e'\\x1f'),
        string_to_array($10, e'\\x1f'), string_to_array($11, e'\\x1f'),
        string_to_array($12, e'\\x1f'), string_to_array($13, e'\\x1f'),
        string_to_array($14, e'\\x1f', '')::bigint[], string_to_array($18, e'\\x1f'),
        string_to_array($21, e'\\x1f')::int[], string_to_array($22, e'\\x1f')::int[]
    ) with ordinality as u(record_id, occurred_at, correlation_id, action, phase, outcome,
           service, instance, producer_seq, boot_id, leaf_start, leaf_octets, place)),
known as (
    insert into seen (record_id, log_index) select record_id, log_index from rows),
certificates as (
    insert into issued (issuance_id, issued_at)
    select * from unnest($19::text[], $20::timestamptz[]) where exists (select from moved)
    on conflict do nothing),
written as (
    insert into record (log_index, recorded_at, record_id, occurred_at, correlation_id, action,
        phase, outcome, service, instance, boot_id, producer_seq, packed_leaf, leaf_hash,
        prev_hash)
    select log_index, $5, record_id, occurred_at, correlation_id, action,
        phase, outcome, service, instance, boot_id, producer_seq, packed_leaf, leaf_hash, prev_hash
    from rows)
select exists (select from moved)
"""


_RECORDS_FROM = f"""
select log_index, {LEAF} from record where log_index >= $1 order by log_index limit $2
"""  # noqa: S608 - our own expression


@dataclass(frozen=True)
class Head:
    """Where the log ends."""

    size: int
    frontier: bytes
    last_hash: bytes
    recorded_at: dt.datetime


async def become_writer(connection: Connection) -> bool:
    """Take the writer's lock for this session, if it is free; ``terminate`` gives it back.

    The server notices within half a minute that this host is gone, so that the lock
    does not outlive it for hours.
    """
    if not await connection.fetchval("select pg_try_advisory_lock($1)", WRITER_LOCK):
        return False
    await connection.execute(
        "set tcp_keepalives_idle = 10; set tcp_keepalives_interval = 5;"
        " set tcp_keepalives_count = 4"
    )
    return True


async def load_head(connection: Connection) -> Head:
    """Return the head."""
    row = await connection.fetchrow(_HEAD)
    if row is None:
        raise AuditChainBroken("the log has no head")
    return Head(*row)


async def ensure_months(connection: Connection, now: dt.datetime) -> None:
    """Make the partitions of this month and the next."""
    await connection.execute("select ensure_month($1), ensure_month($1 + interval '1 month')", now)


class Columns(NamedTuple):
    """The rows of one append, by column."""

    record_id: Sequence[str]
    occurred_at: Sequence[str]
    correlation_id: Sequence[str]
    action: Sequence[str]
    phase: Sequence[str]
    outcome: Sequence[str]
    service: Sequence[str]
    instance: Sequence[str]
    producer_seq: Sequence[str]
    packed_leaf: Sequence[bytes]
    leaf_hash: Sequence[bytes]
    prev_hash: Sequence[bytes]
    boot_id: Sequence[str]


async def append(
    connection: Connection,
    old_size: int,
    head: Head,
    columns: Columns,
    issued: Sequence[tuple[str, dt.datetime]],
) -> bool:
    """Append rows and move the head in one transaction; False if the head has moved.

    Raises:
        asyncpg.UniqueViolationError: one of the record ids is in the log; nothing was done.
    """
    join = SEPARATOR.join
    sizes = [len(leaf) for leaf in columns.packed_leaf]
    ends = list(accumulate(sizes))
    return bool(
        await connection.fetchval(
            _APPEND,
            old_size,
            head.size,
            head.frontier,
            head.last_hash,
            head.recorded_at,
            join(columns.record_id),
            join(columns.occurred_at),
            join(columns.correlation_id),
            join(columns.action),
            join(columns.phase),
            join(columns.outcome),
            join(columns.service),
            join(columns.instance),
            join(columns.producer_seq),
            b"".join(columns.packed_leaf),
            b"".join(columns.leaf_hash),
            b"".join(columns.prev_hash),
            join(columns.boot_id),
            [i for i, _ in issued],
            [at for _, at in issued],
            join(str(end - size + 1) for end, size in zip(ends, sizes, strict=True)),
            join(map(str, sizes)),
        )
    )


async def logged(connection: Connection, ids: Sequence[str]) -> dict[str, tuple[str, ...] | None]:
    """Return what is logged under those of the ids: service, action, phase and outcome.

    None stands for a record that was purged.
    """
    rows = await connection.fetch(
        "select seen.record_id, service, action, phase, outcome "
        "from seen left join record using (log_index) where seen.record_id = any($1::uuid[])",
        ids,
    )
    return {str(row[0]): tuple(row)[1:] if row[1] is not None else None for row in rows}


async def last_checkpoint(connection: Connection) -> int:
    """Return the size of the newest checkpoint, 0 if there is none."""
    return int(await connection.fetchval("select coalesce(max(size), 0) from checkpoint"))


async def add_checkpoint(
    connection: Connection, size: int, root: bytes, note: str, signed_at: dt.datetime
) -> None:
    """Store a signed checkpoint."""
    await connection.execute(
        "insert into checkpoint (size, root, note, signed_at) values ($1, $2, $3, $4)",
        size,
        root,
        note,
        signed_at,
    )


async def newest_note(connection: Connection) -> str | None:
    """Return the signed note of the newest checkpoint."""
    note = await connection.fetchval("select note from checkpoint order by size desc limit 1")
    return None if note is None else str(note)


async def newest_cosigned_note(connection: Connection) -> str | None:
    """Return the newest checkpoint as it was signed, with the lines of witnesses behind it."""
    note = await connection.fetchval(
        "select note || coalesce((select string_agg(line, '' order by witness) from cosignature c"
        " where c.size = p.size), '') from checkpoint p order by size desc limit 1"
    )
    return None if note is None else str(note)


async def has_line(connection: Connection, size: int, name: str) -> bool:
    """Return whether a witness or a time-stamping authority signed the checkpoint of a size."""
    return bool(
        await connection.fetchval(
            "select exists (select from cosignature where size = $1 and witness = $2)", size, name
        )
    )


async def add_line(connection: Connection, size: int, name: str, line: str) -> None:
    """Store a signature line behind the checkpoint of a size."""
    await connection.execute(
        "insert into cosignature (size, witness, line) values ($1, $2, $3) on conflict do nothing",
        size,
        name,
        line,
    )


async def leaf_hashes(connection: Connection, start: int, end: int) -> list[bytes]:
    """Return the hashes of the leaves [start, end), in order."""
    rows = await connection.fetch(
        "select leaf_hash from record where log_index >= $1 and log_index < $2 order by log_index",
        start,
        end,
    )
    return [row[0] for row in rows]


async def witnessed(connection: Connection, name: str) -> Frontier:
    """Return the tree that a witness cosigned last; an empty one where it never did."""
    row = await connection.fetchrow("select size, frontier from witness where name = $1", name)
    return Frontier() if row is None else Frontier.from_bytes(row[0], row[1])


async def add_cosignature(
    connection: Connection, size: int, name: str, line: str, edge: Frontier
) -> None:
    """Store a cosignature and the tree it is for."""
    await add_line(connection, size, name, line)
    await connection.execute(
        "insert into witness (name, size, frontier) values ($1, $2, $3) on conflict (name) "
        "do update set size = excluded.size, frontier = excluded.frontier, at = now()",
        name,
        edge.size,
        edge.to_bytes(),
    )


async def records_from(connection: Connection, start: int, limit: int) -> list[tuple[int, str]]:
    """Return (log_index, leaf) from ``start`` on, in order."""
    rows = await connection.fetch(
        _RECORDS_FROM,
        start,
        limit,
    )
    return [(row[0], unpack(row[1])) for row in rows]


async def checkpoints_between(
    connection: Connection, after: int, until: int, limit: int
) -> list[tuple[int, str, dt.datetime]]:
    """Return (size, note, signed_at) of checkpoints above ``after`` and up to ``until``."""
    rows = await connection.fetch(
        "select size, note, signed_at from checkpoint where size > $1 and size <= $2"
        " order by size limit $3",
        after,
        until,
        limit,
    )
    return [(row[0], row[1], row[2]) for row in rows]


@dataclass(frozen=True)
class Cursor:
    """How far a sink is: what it gets next. ``epoch`` changes when an operator moves it."""

    next_index: int
    checkpoint_size: int
    epoch: int


async def cursor(connection: Connection, sink: str) -> Cursor:
    """Return the sink's cursor; a new sink gets everything from the beginning."""
    row = await connection.fetchrow(
        "select next_index, checkpoint_size, epoch from sink_cursor where sink = $1", sink
    )
    if row is not None:
        return Cursor(*row)
    await connection.execute(
        "insert into sink_cursor (sink) values ($1) on conflict do nothing", sink
    )
    return Cursor(0, 0, 0)


async def checkpoint_before(connection: Connection, size: int, count: int) -> int:
    """Return the size after which the last ``count`` checkpoints up to ``size`` come."""
    value = await connection.fetchval(
        "select size from checkpoint where size <= $1 order by size desc offset $2 limit 1",
        size,
        count,
    )
    return int(value or 0)


async def move_cursor(connection: Connection, sink: str, to: Cursor) -> bool:
    """Move the cursor forward; False if an operator moved it meanwhile."""
    return bool(
        await connection.fetchval(
            "update sink_cursor set next_index = $2, checkpoint_size = $3, moved_at = now()"
            " where sink = $1 and epoch = $4 returning true",
            sink,
            to.next_index,
            to.checkpoint_size,
            to.epoch,
        )
    )


async def replay_from(connection: Connection, sink: str, start: int) -> int | None:
    """Move the sink's cursor back to ``start``; returns where it was, None if before."""
    value = await connection.fetchval(
        "update sink_cursor c set next_index = $2, checkpoint_size = least(c.checkpoint_size, $2),"
        " epoch = c.epoch + 1, moved_at = now() from sink_cursor old"
        " where c.sink = $1 and old.sink = $1 and c.next_index >= $2 returning old.next_index",
        sink,
        start,
    )
    return None if value is None else int(value)


async def add_dead_letter(connection: Connection, sink: str, log_index: int, reason: str) -> None:
    """Note that a sink could not be given a record whole."""
    await connection.execute(
        "insert into sink_dead_letter (sink, log_index, reason) values ($1, $2, $3)"
        " on conflict do nothing",
        sink,
        log_index,
        reason,
    )


async def dead_letters(
    connection: Connection, sink: str, limit: int, after: int = -1
) -> list[tuple[int, str]]:
    """Return (log_index, reason) of what a sink refused after a record, oldest first."""
    rows = await connection.fetch(
        "select log_index, reason from sink_dead_letter where sink = $1 and log_index > $3 "
        "order by log_index limit $2",
        sink,
        limit,
        after,
    )
    return [(row[0], row[1]) for row in rows]


async def count_dead_letters(connection: Connection, sink: str) -> int:
    """Return how many records a sink refused."""
    return int(
        await connection.fetchval("select count(*) from sink_dead_letter where sink = $1", sink)
    )


async def remove_dead_letter(connection: Connection, sink: str, log_index: int) -> None:
    """Forget that a sink refused a record: it has it now."""
    await connection.execute(
        "delete from sink_dead_letter where sink = $1 and log_index = $2", sink, log_index
    )


async def issued_between(connection: Connection, start: dt.datetime, end: dt.datetime) -> list[str]:
    """Return the ids of certificates issued in the window [start, end)."""
    rows = await connection.fetch(
        "select issuance_id from issued where issued_at >= $1 and issued_at < $2", start, end
    )
    return [row[0] for row in rows]


async def note_window(
    connection: Connection,
    window: tuple[dt.datetime, dt.datetime],
    *,
    expected: int,
    logged: int,
    state: str,
    attempts: int,
) -> None:
    """Keep the outcome of the newest comparison of a window."""
    await connection.execute(
        'insert into window_check (start, "end", expected, found, state, attempts)'
        " values ($1, $2, $3, $4, $5, $6) on conflict (start) do update set"
        ' "end" = excluded."end", expected = excluded.expected, found = excluded.found,'
        " state = excluded.state, attempts = excluded.attempts, at = now()",
        *window,
        expected,
        logged,
        state,
        attempts,
    )
