"""What operators do with the receivers of the log: status, test, replay, dead letters.

The command line of est-audit and the signed commands of operators both work by these; each puts on
record what moves or delivers before it calls them.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from typing import Any

from audit import store
from audit.formats.entry import Entry
from audit.sink_settings import SinkSettings
from audit.transports.assembly import transport_for
from audit.transports.transport import BatchRefused, Transport
from estcore import ids
from estcore.clock import Clock, monotonic_s
from estcore.errors import Conflict, Unavailable
from estcore.runtime.database import Connection, Database

PAGE = 200


def named(sinks: Sequence[SinkSettings], name: str) -> SinkSettings:
    """Return the sink of that name.

    Raises:
        Conflict: the settings have none.
    """
    for sink in sinks:
        if sink.name == name:
            return sink
    raise Conflict(f"no sink has the name {name}", code="command.unknown")


async def status(
    connection: Connection, sinks: Sequence[SinkSettings], clock: Clock
) -> list[dict[str, Any]]:
    """Return cursor, lag in records, age in seconds of what waits, dead letters of each sink."""
    size = (await store.load_head(connection)).size
    rows = []
    for sink in sinks:
        cursor = await store.cursor(connection, sink.name)
        waiting = await store.records_from(connection, cursor.next_index, 1)
        rows.append(
            {
                "sink": sink.name,
                "kind": sink.kind,
                "next": cursor.next_index,
                "lag": max(0, size - cursor.next_index),
                "age_s": _age_s(waiting, clock),
                "dead_letters": await store.count_dead_letters(connection, sink.name),
            }
        )
    return rows


def _age_s(waiting: Sequence[tuple[int, str]], clock: Clock) -> int:
    if not waiting:
        return 0
    recorded = dt.datetime.fromisoformat(json.loads(waiting[0][1])["recorded_at"])
    return max(0, int((clock.now() - recorded).total_seconds()))


async def test(sink: SinkSettings, clock: Clock, *, send: bool, by: str) -> str:
    """Connect to a sink as the service does; with ``send`` deliver an entry beside the log.

    Returns what was reached, in words.

    Raises:
        Unavailable: it cannot be reached, or refuses; the reason is the receiver's.
    """
    transport = transport_for(sink, clock)
    try:
        await transport.open()
        if send:
            outcome = await transport.deliver([transport.prepare(_test_entry(by, clock))])
            if outcome.refused:
                raise BatchRefused(next(iter(outcome.refused.values())))
    except (OSError, BatchRefused) as exc:
        raise _unavailable(sink, exc) from exc
    finally:
        await transport.close()
    if not send:
        return "reached"
    return "took the entry" if transport.acknowledged else "was sent the entry"


def _unavailable(sink: SinkSettings, exc: Exception) -> Unavailable:
    reason = f"{sink.name}: {str(exc) or type(exc).__name__}"[:300]
    return Unavailable(reason, code="sink.unavailable")


def _test_entry(by: str, clock: Clock) -> Entry:
    """Return an entry that says what it is, beside the log: without a place in it."""
    now = clock.now().isoformat()
    record = {
        "record_id": ids.uuid7(),
        "correlation_id": "sink-test",
        "occurred_at": now,
        "action": "audit.sink_test",
        "phase": "outcome",
        "outcome": "success",
        "severity": "info",
        "producer": {"service": "audit", "instance": by, "boot_id": "sink-test"},
        "actor": {"type": "human", "subject": by},
        "target": {},
    }
    leaf = json.dumps({"log_index": 0, "recorded_at": now, "record": record})
    return Entry.of_record(0, leaf)


async def replay(connection: Connection, sink: SinkSettings, start: int) -> int:
    """Move a sink's cursor back, so that it gets everything from there again.

    Returns where the cursor was.

    Raises:
        Conflict: it has not come so far.
    """
    before = await store.replay_from(connection, sink.name, start)
    if before is None:
        raise Conflict(f"the cursor of {sink.name} has not come to {start}", code="sink.cursor")
    return before


async def deliver_dead_letters(
    database: Database, sink: SinkSettings, clock: Clock, *, after: int = -1, within_s: float
) -> tuple[int, list[tuple[int, str]], int | None]:
    """Deliver a page of dead letters again, one by one; what is taken is none any more.

    Returns how many were taken, (log_index, reason) of those refused again, and the log index to
    go on ``after``, None when all were tried.

    Raises:
        Unavailable: the receiver cannot be reached; those before it are delivered.
    """
    async with database.connection() as connection:
        found = await store.dead_letters(connection, sink.name, PAGE, after)
    if not found:
        return 0, [], None
    transport = transport_for(sink, clock)
    refused: list[tuple[int, str]] = []
    taken, end = 0, monotonic_s() + within_s
    try:
        await transport.open()
        for log_index, _ in found:
            async with database.connection() as connection:
                rows = await store.records_from(connection, log_index, 1)
            reason = await _deliver(transport, rows[0][1], log_index)
            if reason is None:
                async with database.connection() as connection:
                    await store.remove_dead_letter(connection, sink.name, log_index)
                taken += 1
            else:
                refused.append((log_index, reason))
            after = log_index
            if monotonic_s() > end:
                break
    except OSError as exc:
        raise _unavailable(sink, exc) from exc
    finally:
        await transport.close()
    return taken, refused, after


async def _deliver(transport: Transport, leaf: str, log_index: int) -> str | None:
    """Deliver one record; returns the reason for which it is refused again."""
    prepared = transport.prepare(Entry.of_record(log_index, leaf))
    try:
        outcome = await transport.deliver([prepared])
    except BatchRefused as exc:
        return str(exc)
    return outcome.refused.get(prepared.key)
