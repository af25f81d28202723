"""Verbs of ``estctl audit`` that read the log of a running est-audit, as an auditor.

Each is a signed command: est-audit answers it after ca-signer verified and recorded it.
"""

from __future__ import annotations

import asyncio
import base64
import os
import zlib
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from estclient.operators.client import Operator, connect
from estclient.operators.connection_options import connection_options
from estclient.operators.orders import Connection, operator_settings
from estcore.clock import SystemClock
from estcore.errors import Unavailable
from estcore.messages.audit_queries import MAX_PAGE, AuditSearch, AuditTail
from estcore.runtime.command_line import PATH, Command
from estcore.runtime.log_proof import (
    check_choice,
    old_size,
    proof_options,
    prove_from_export,
    write_proof,
)
from estcore.runtime.log_report import (
    period_of,
    report_of_export,
    report_options,
    write_report,
)
from estcore.runtime.log_search import (
    Format,
    Page,
    Search,
    condition_options,
    format_option,
    print_rows,
    print_search,
    read_search,
    read_tail,
    search_options,
)
from estcore.runtime.log_verification import open_lines
from estcore.runtime.terminal import STANDARD_OUTPUT, export_file, write_line
from estcore.tlog.activity import Period, check_files

SERVICE = "audit"
_POLL_S = 2.0
_LARGEST_PART = 4 * 1024 * 1024


def _search(**values: Any) -> None:
    connection = taken_connection(values)
    asyncio.run(_print_search(connection, read_search(values)))


async def _print_search(connection: Connection, wanted: Search) -> None:
    async with operator_of(connection) as operator:

        async def page(query: AuditSearch) -> Page:
            answer = await operator.send(SERVICE, "audit-search", _arguments(query))
            return answer["records"], answer["next"]

        await print_search(wanted, page)


search = Command(
    "search",
    help="Search the audit log of a running est-audit.",
    callback=_search,
    params=[*search_options(), *connection_options()],
)


def _prove(**values: Any) -> None:
    connection = taken_connection(values)
    index, checkpoint, out, export = (
        values[name] for name in ("index", "checkpoint", "out", "export")
    )
    check_choice(index, checkpoint)
    if export is not None:
        write_proof(out, prove_from_export(export, index, checkpoint).encode())
        return
    arguments = {"index": index}
    if checkpoint is not None:
        arguments = {"old_size": old_size(checkpoint)}
    write_proof(out, asyncio.run(_asked_proof(connection, arguments)))


async def _asked_proof(connection: Connection, arguments: dict[str, Any]) -> bytes:
    async with operator_of(connection) as operator:
        answer = await operator.send(SERVICE, "audit-prove", arguments)
    return str(answer["proof"]).encode()


prove = Command(
    "prove",
    help="Write a proof: a record is in the log, or the log continues a checkpoint.",
    callback=_prove,
    params=[
        *proof_options(),
        click.Option(["--export"], type=PATH, help="Export to prove from, without a service."),
        *connection_options(),
    ],
)


def _tail(**values: Any) -> None:
    connection, form = taken_connection(values), values.pop("format")
    asyncio.run(_follow(connection, read_tail(values), form))


async def _follow(connection: Connection, wanted: AuditTail, form: Format) -> None:
    """Print new records. A command is sent again until its page is full: one record each."""
    arguments = wanted.model_dump(mode="json", exclude_none=True)
    async with operator_of(connection) as operator:
        seen = (await operator.send(SERVICE, "audit-tail", arguments))["next"]
        while True:
            start, asked = seen, {**arguments, "after": seen}
            answers = operator.watch(SERVICE, "audit-tail", asked, every_s=_POLL_S)
            async with aclosing(answers):
                async for answer in answers:
                    print_rows([r for r in answer["records"] if r["log_index"] >= seen], form)
                    seen = answer["next"]
                    if seen - start >= MAX_PAGE:
                        break


tail = Command(
    "tail",
    help="Print new records as they come, until Ctrl-C.",
    callback=_tail,
    params=[*condition_options(), format_option(), *connection_options()],
)


def _propose(**values: Any) -> None:
    connection = taken_connection(values)
    _print_order(connection, "audit-purge-propose", {"month": values["month"]})


def _confirm(**values: Any) -> None:
    connection = taken_connection(values)
    arguments = {name: values[name] for name in ("id", "month", "records")}
    _print_order(connection, "audit-purge-confirm", arguments)


def _print_order(connection: Connection, verb: str, arguments: dict[str, Any]) -> None:
    async def ask() -> dict[str, Any]:
        async with operator_of(connection) as operator:
            return await operator.send(SERVICE, verb, arguments)

    answer = asyncio.run(ask())
    for name in ("id", "month", "records"):
        write_line(f"{name:<8} {answer[name]}")


def _report(**values: Any) -> None:
    connection = taken_connection(values)
    period = period_of(values["since"], values["until"])
    if values["export"] is not None:
        with open_lines(values["export"]) as lines:
            files, manifest = report_of_export(lines, period)
    else:
        files, manifest = asyncio.run(_asked_report(connection, period))
    write_report(values["out"], files, manifest)


async def _asked_report(connection: Connection, period: Period) -> tuple[dict[str, bytes], str]:
    """Have est-audit make and sign a report, and fetch its files.

    Raises:
        AuditChainBroken: a file is not what the manifest says.
    """
    arguments = {"since": period.since.isoformat(), "until": period.until.isoformat()}
    async with operator_of(connection) as operator:
        made: dict[str, Any] = {}
        answers = operator.watch(SERVICE, "audit-report", arguments, every_s=_POLL_S)
        async with aclosing(answers):
            async for made in answers:
                if made["ready"]:
                    break
        files: dict[str, bytes] = {}
        for name, size in made["files"].items():
            octets = b""
            while len(octets) < size:
                asked = {**arguments, "file": name, "offset": len(octets)}
                part = await _until_ready(operator, asked)
                octets += unpacked(part["part"])
            files[name] = octets
    check_files(made["manifest"], files.__getitem__)
    return files, made["manifest"]


async def _until_ready(operator: Operator, asked: dict[str, Any]) -> dict[str, Any]:
    """Ask for a part; a replica that has not made the report yet says so."""
    answers = operator.watch(SERVICE, "audit-report", asked, every_s=_POLL_S)
    async with aclosing(answers):
        async for part in answers:
            if part["ready"]:
                return part
    raise AssertionError("it is watched until it is ready")


report = Command(
    "report",
    help="Write the signed report of a period; from an export, without signature.",
    callback=_report,
    params=[
        *report_options(),
        click.Option(["--export"], type=PATH, help="Export of the whole log, without a service."),
        *connection_options(),
    ],
)


def _export(**values: Any) -> None:
    connection = taken_connection(values)
    count, records = asyncio.run(_write_export(connection, values["out"]))
    write_line(f"{count} lines, {records} records", error=values["out"] == STANDARD_OUTPUT)


async def _write_export(connection: Connection, out: Path) -> tuple[int, int]:
    """Write part after part; an incomplete file is removed."""
    arguments: dict[str, Any] = {}
    count = 0
    with export_file(out, new=True) as file:
        try:
            async with operator_of(connection) as operator:
                while True:
                    part = await operator.send(SERVICE, "audit-export", arguments)
                    file.write(unpacked(part["part"]))
                    count += part["lines"]
                    if part["next_record"] is None:
                        return count, part["size"]
                    arguments = {
                        "size": part["size"],
                        "record": part["next_record"],
                        "checkpoint": part["next_checkpoint"],
                    }
        except BaseException:  # Cleanup, then raised again: half an export must not stay.
            if out != STANDARD_OUTPUT:
                out.unlink(missing_ok=True)
            raise


def unpacked(text: str) -> bytes:
    """Return the octets of a part: compressed (RFC 1950), in base64.

    Raises:
        Unavailable: it is none, or longer than est-audit makes one.
    """
    unpacking = zlib.decompressobj()
    try:
        octets = unpacking.decompress(base64.b64decode(text, validate=True), _LARGEST_PART)
    except (ValueError, zlib.error) as exc:
        raise Unavailable("est-audit answered with no part", code="command.answer") from exc
    if not unpacking.eof:
        raise Unavailable("est-audit answered with no whole part", code="command.answer")
    return octets


export = Command(
    "export",
    help="Write the audit log to a file, up to the newest checkpoint.",
    callback=_export,
    params=[
        click.Option(
            ["--out"], type=PATH, required=True, help="File to create; - is standard output."
        ),
        *connection_options(),
    ],
)


_MONTH = click.Option(["--month"], required=True, help="Month of the log, YYYY-MM, by UTC.")
purge_propose = Command(
    "purge-propose",
    help="Propose to purge a month of the log; nothing is purged.",
    callback=_propose,
    params=[_MONTH, *connection_options()],
)
purge_confirm = Command(
    "purge-confirm",
    help="Confirm a proposal as a second operator; est-audit retention purge carries it out.",
    callback=_confirm,
    params=[
        click.Option(["--id"], required=True, help="Id, as the proposal printed it."),
        _MONTH,
        click.Option(["--records"], type=int, required=True, help="Number, as it printed it."),
        *connection_options(),
    ],
)


def _arguments(query: AuditSearch) -> dict[str, Any]:
    return query.model_dump(mode="json", exclude_none=True)


def taken_connection(values: dict[str, Any]) -> Connection:
    """Take the options of the connection out of all options."""
    return Connection(**{field.name: values.pop(field.name) for field in fields(Connection)})


@asynccontextmanager
async def operator_of(connection: Connection) -> AsyncIterator[Operator]:
    """Connect as an operator for the length of a verb."""
    home = Path(os.environ.get("ESTSUITE_HOME", ".estsuite"))
    settings = operator_settings(connection, home, os.environ)
    operator, bus = await connect(settings, SystemClock())
    try:
        yield operator
    finally:
        await bus.close()
