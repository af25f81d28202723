"""``est-audit sinks``: how far each receiver is, what it refused, and whether it can be reached.

- ``status`` shows cursor, lag, age of what waits and dead letters of each sink.
- ``test`` connects as the service would and delivers nothing, or with ``--send`` one marked entry.
- ``replay`` moves a cursor back.
- ``dead-letters`` lists what a receiver refused; with ``--deliver`` it gets it again, one by one.

What moves or delivers is on record before it is done.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence

import click

from audit import store
from audit.command_context import audited, opened_database
from audit.formats.entry import Entry
from audit.settings import Settings
from audit.sink_settings import SinkSettings
from audit.transports.assembly import transport_for
from audit.transports.transport import BatchRefused, Transport
from estcore import ids
from estcore.clock import SystemClock
from estcore.errors import ConfigurationError, Unavailable
from estcore.runtime.service import ServiceCommand
from estcore.runtime.terminal import write_json, write_line

_CLOCK = SystemClock()
_LIMIT = 1000
_sink = click.option("--sink", "name", required=True, help="Name of the sink.")


def add(command: ServiceCommand[Settings]) -> None:
    """Add the verbs to the command line of est-audit."""
    group = command.verbs("sinks", "Look after the receivers of the log.")
    command.verb("status", "Show how far each sink is.", under=group)(status)
    command.verb("test", "Connect to a sink as the service does.", under=group)(test)
    command.verb("replay", "Deliver records to a sink again.", under=group)(replay)
    command.verb("dead-letters", "List what a sink refused.", under=group)(dead_letters)


@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
async def status(settings: Settings, as_json: bool) -> None:
    """Print cursor, lag, age of the oldest record that waits, and dead letters of each sink."""
    rows = []
    async with opened_database(settings) as database, database.connection() as connection:
        size = (await store.load_head(connection)).size
        for sink in settings.sinks:
            cursor = await store.cursor(connection, sink.name)
            waiting = await store.records_from(connection, cursor.next_index, 1)
            rows.append(
                {
                    "sink": sink.name,
                    "kind": sink.kind,
                    "next": cursor.next_index,
                    "lag": max(0, size - cursor.next_index),
                    "age_s": _age_s(waiting),
                    "dead_letters": await store.count_dead_letters(connection, sink.name),
                }
            )
    if as_json:
        write_json(rows, indent=1)
        return
    write_line(f"{'sink':20} {'kind':14} {'next':>12} {'lag':>10} {'oldest':>10} {'refused':>8}")
    for row in rows:
        write_line(
            f"{row['sink']:20} {row['kind']:14} {row['next']:>12} {row['lag']:>10} "
            f"{row['age_s']:>9}s {row['dead_letters']:>8}"
        )


def _age_s(waiting: Sequence[tuple[int, str]]) -> int:
    if not waiting:
        return 0
    recorded = dt.datetime.fromisoformat(json.loads(waiting[0][1])["recorded_at"])
    return max(0, int((_CLOCK.now() - recorded).total_seconds()))


@_sink
@click.option("--send", is_flag=True, help="Deliver one entry with the action audit.sink_test.")
async def test(settings: Settings, name: str, send: bool) -> None:
    """Connect to a sink; with --send deliver an entry that is not in the log.

    Raises:
        Unavailable: it cannot be reached, or refuses; the line says why.
    """
    sink = _named(settings, name)
    if send:
        await audited(settings, "audit.sink_test", sink=name)
    transport = transport_for(sink, _CLOCK)
    try:
        await transport.open()
        if send:
            entry = _test_entry(settings.instance)
            outcome = await transport.deliver([transport.prepare(entry)])
            if outcome.refused:
                raise BatchRefused(next(iter(outcome.refused.values())))
    except (OSError, BatchRefused) as exc:
        raise Unavailable(
            f"{name}: {str(exc) or type(exc).__name__}", code="sink.unavailable"
        ) from exc
    finally:
        await transport.close()
    done = "took the entry" if transport.acknowledged else "was sent the entry"
    write_line(f"{name}: {done if send else 'reached'}")


def _test_entry(instance: str) -> Entry:
    """Return an entry that says what it is, beside the log: without a place in it."""
    now = _CLOCK.now().isoformat()
    record = {
        "record_id": ids.uuid7(),
        "correlation_id": "sink-test",
        "occurred_at": now,
        "action": "audit.sink_test",
        "phase": "outcome",
        "outcome": "success",
        "severity": "info",
        "producer": {"service": "audit", "instance": instance, "boot_id": "sink-test"},
        "actor": {"type": "human", "subject": instance},
        "target": {},
    }
    leaf = json.dumps({"log_index": 0, "recorded_at": now, "record": record})
    return Entry.of_record(0, leaf)


@_sink
@click.option("--from", "start", type=click.IntRange(min=0), required=True, help="Log index.")
async def replay(settings: Settings, name: str, start: int) -> None:
    """Move a sink's cursor back, so that it gets everything from there again.

    Raises:
        ConfigurationError: no such sink, or its cursor is not beyond that place.
    """
    _named(settings, name)
    await audited(settings, "audit.replay", sink=name, start=start)
    async with opened_database(settings) as database, database.connection() as connection:
        before = await store.replay_from(connection, name, start)
    if before is None:
        raise ConfigurationError(f"the cursor of {name} is not beyond {start}")
    write_line(f"{name}: cursor moved from {before} to {start}")


@_sink
@click.option("--deliver", is_flag=True, help="Deliver them again, one by one.")
async def dead_letters(settings: Settings, name: str, deliver: bool) -> None:
    """List the records that a receiver refused for good, oldest first.

    With --deliver each is sent again, for a receiver that was corrected; what it takes is no dead
    letter any more.

    Raises:
        Unavailable: the receiver cannot be reached; those before it are delivered.
    """
    sink = _named(settings, name)
    async with opened_database(settings) as database:
        async with database.connection() as connection:
            found = await store.dead_letters(connection, name, _LIMIT)
        if not deliver or not found:
            for log_index, reason in found:
                write_line(f"{log_index}  {reason}")
            write_line(f"{len(found)} records" + (" or more" if len(found) == _LIMIT else ""))
            return
        await audited(settings, "audit.dead_letters_delivered", sink=name, records=len(found))
        transport = transport_for(sink, _CLOCK)
        taken = 0
        try:
            await transport.open()
            for log_index, _ in found:
                async with database.connection() as connection:
                    rows = await store.records_from(connection, log_index, 1)
                    refused = await _deliver(transport, rows[0][1], log_index)
                    if refused is None:
                        await store.remove_dead_letter(connection, name, log_index)
                        taken += 1
                    else:
                        write_line(f"{log_index}  {refused}")
        except OSError as exc:
            raise Unavailable(f"{name}: {exc}", code="sink.unavailable") from exc
        finally:
            await transport.close()
            write_line(f"{taken} of {len(found)} delivered")


async def _deliver(transport: Transport, leaf: str, log_index: int) -> str | None:
    """Deliver one record; returns the reason for which it is refused again."""
    prepared = transport.prepare(Entry.of_record(log_index, leaf))
    try:
        outcome = await transport.deliver([prepared])
    except BatchRefused as exc:
        return str(exc)
    return outcome.refused.get(prepared.key)


def _named(settings: Settings, name: str) -> SinkSettings:
    for sink in settings.sinks:
        if sink.name == name:
            return sink
    raise ConfigurationError(f"no sink has the name {name}")
