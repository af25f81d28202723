"""Verbs of ``estctl sinks``: how far each receiver of the audit log is, test, replay, dead letters.

Each is a signed command: est-audit carries it out after ca-signer verified and recorded it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import click

from estclient.operators.audit_log import SERVICE, operator_of, taken_connection
from estclient.operators.connection_options import connection_options
from estclient.operators.orders import Connection
from estcore.runtime.command_line import Command, Group
from estcore.runtime.sink_lines import print_dead_letters, print_status
from estcore.runtime.terminal import write_line

sinks = Group("sinks", help="Look after the receivers of the audit log.")
_SINK = click.Option(["--sink"], required=True, help="Name of the sink.")


async def _ask(connection: Connection, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
    async with operator_of(connection) as operator:
        return await operator.send(SERVICE, verb, arguments)


def _status(**values: Any) -> None:
    connection = taken_connection(values)
    answer = asyncio.run(_ask(connection, "sink-status", {}))
    print_status(answer["sinks"], as_json=values["as_json"])


def _test(**values: Any) -> None:
    connection = taken_connection(values)
    answer = asyncio.run(_ask(connection, "sink-test", values))
    write_line(f"{answer['sink']}: {answer['answer']}")


def _replay(**values: Any) -> None:
    connection = taken_connection(values)
    answer = asyncio.run(_ask(connection, "sink-replay", values))
    write_line(f"{answer['sink']}: cursor moved from {answer['before']} to {answer['next']}")


def _dead_letters(**values: Any) -> None:
    connection, deliver = taken_connection(values), values.pop("deliver")
    work = _deliver if deliver else _list
    asyncio.run(work(connection, values["sink"]))


async def _list(connection: Connection, sink: str) -> None:
    after: int | None = None
    async with operator_of(connection) as operator:
        while True:
            asked = {"sink": sink, "after": after}
            answer = await operator.send(SERVICE, "sink-dead-letters", asked)
            print_dead_letters(_pairs(answer["records"]))
            after = answer["after"]
            if after is None:
                break
    write_line(f"{answer['count']} records")


async def _deliver(connection: Connection, sink: str) -> None:
    """Have page after page delivered; est-audit delivers some seconds for each command."""
    delivered = refused = 0
    after: int | None = None
    async with operator_of(connection) as operator:
        while True:
            answer = await operator.send(SERVICE, "sink-deliver", {"sink": sink, "after": after})
            print_dead_letters(_pairs(answer["refused"]))
            delivered += answer["delivered"]
            refused += len(answer["refused"])
            after = answer["after"]
            if after is None:
                break
    write_line(f"{delivered} of {delivered + refused} delivered")


def _pairs(records: list[dict[str, Any]]) -> list[tuple[int, str]]:
    return [(record["log_index"], record["reason"]) for record in records]


sinks.add_command(
    Command(
        "status",
        help="Show cursor, lag and dead letters of each sink.",
        callback=_status,
        params=[
            click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
            *connection_options(),
        ],
    )
)
sinks.add_command(
    Command(
        "test",
        help="Have est-audit connect to a sink.",
        callback=_test,
        params=[
            _SINK,
            click.Option(["--send"], is_flag=True, help="Deliver one entry, audit.sink_test."),
            *connection_options(),
        ],
    )
)
sinks.add_command(
    Command(
        "replay",
        help="Deliver records to a sink again, from one on.",
        callback=_replay,
        params=[
            _SINK,
            click.Option(
                ["--from", "start"],
                type=click.IntRange(min=0),
                required=True,
                help="Log index to begin with.",
            ),
            *connection_options(),
        ],
    )
)
sinks.add_command(
    Command(
        "dead-letters",
        help="List what a sink refused for good, or deliver it again.",
        callback=_dead_letters,
        params=[
            _SINK,
            click.Option(["--deliver"], is_flag=True, help="Deliver them again, one by one."),
            *connection_options(),
        ],
    )
)
