"""``est-audit sinks``: how far each receiver is, what it refused, and whether it can be reached.

- ``status`` shows cursor, lag, age of what waits and dead letters of each sink.
- ``test`` connects as the service would and delivers nothing, or with ``--send`` one marked entry.
- ``replay`` moves a cursor back.
- ``dead-letters`` lists what a receiver refused; with ``--deliver`` it gets it again, one by one.

What moves or delivers is on record before it is done. ``estctl sinks`` has the same verbs for
operators, who need no settings of the service.
"""

from __future__ import annotations

import click

from audit import sinks, store
from audit.command_context import audited, opened_database
from audit.settings import Settings
from estcore.clock import SystemClock
from estcore.runtime.service import ServiceCommand
from estcore.runtime.sink_lines import print_dead_letters, print_status
from estcore.runtime.terminal import write_line

_CLOCK = SystemClock()
_DELIVER_S = 3600.0
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
    async with opened_database(settings) as database, database.connection() as connection:
        print_status(await sinks.status(connection, settings.sinks, _CLOCK), as_json=as_json)


@_sink
@click.option("--send", is_flag=True, help="Deliver one entry with the action audit.sink_test.")
async def test(settings: Settings, name: str, send: bool) -> None:
    """Connect to a sink; with --send deliver an entry that is not in the log.

    Raises:
        Conflict: no such sink.
        Unavailable: it cannot be reached, or refuses; the line says why.
    """
    sink = sinks.named(settings.sinks, name)
    if send:
        await audited(settings, "audit.sink_test", sink=name)
    reached = await sinks.test(sink, _CLOCK, send=send, by=settings.instance)
    write_line(f"{name}: {reached}")


@_sink
@click.option("--from", "start", type=click.IntRange(min=0), required=True, help="Log index.")
async def replay(settings: Settings, name: str, start: int) -> None:
    """Move a sink's cursor back, so that it gets everything from there again.

    Raises:
        Conflict: no such sink, or its cursor has not come to that place.
    """
    sink = sinks.named(settings.sinks, name)
    await audited(settings, "audit.replay", sink=name, start=start)
    async with opened_database(settings) as database, database.connection() as connection:
        before = await sinks.replay(connection, sink, start)
    write_line(f"{name}: cursor moved from {before} to {start}")


@_sink
@click.option("--deliver", is_flag=True, help="Deliver them again, one by one.")
async def dead_letters(settings: Settings, name: str, deliver: bool) -> None:
    """List the records that a receiver refused for good, oldest first.

    With --deliver each is sent again, for a receiver that was corrected; what it takes is no dead
    letter any more.

    Raises:
        Conflict: no such sink.
        Unavailable: the receiver cannot be reached; those before it are delivered.
    """
    sink = sinks.named(settings.sinks, name)
    async with opened_database(settings) as database:
        async with database.connection() as connection:
            count = await store.count_dead_letters(connection, name)
        if deliver and count:
            await audited(settings, "audit.dead_letters_delivered", sink=name, records=count)
        after: int | None = -1
        taken = 0
        while after is not None:
            if deliver:
                delivered, shown, after = await sinks.deliver_dead_letters(
                    database, sink, _CLOCK, after=after, within_s=_DELIVER_S
                )
                taken += delivered
            else:
                async with database.connection() as connection:
                    shown = await store.dead_letters(connection, name, sinks.PAGE, after)
                after = shown[-1][0] if shown else None
            print_dead_letters(shown)
    write_line(f"{taken} of {count} delivered" if deliver else f"{count} records")
