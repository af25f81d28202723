"""Command line of searches in the audit log, shared by ``estctl`` and ``est-audit``.

People get a table, tools JSON lines or CSV. Values hold text of strangers: in the table every
value stays in its column, and in CSV no value can be a formula of a spreadsheet.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import click
from pydantic import ValidationError

from estcore.display import spreadsheet_value, visible
from estcore.errors import ConfigurationError
from estcore.messages.audit_queries import MAX_PAGE, AuditSearch, AuditTail, Conditions
from estcore.runtime.command_line import Converted
from estcore.runtime.terminal import write_document, write_json, write_line

Q = TypeVar("Q", bound=Conditions)
Format = Literal["table", "json", "csv"]
Page = tuple[list[dict[str, Any]], int | None]
COLUMNS = (
    "log_index",
    "recorded_at",
    "occurred_at",
    "producer",
    "action",
    "phase",
    "outcome",
    "reason_code",
    "correlation_id",
    "principal",
    "owner",
    "serial",
    "subject",
    "san",
)
"""What CSV has, in this order."""
_TABLE = ("index", "recorded", "action", "outcome", "principal", "owner", "serial", "subject")
_CELL = 48
_SPACES = re.compile("  +")
_OUTCOMES = ("success", "failure", "unknown")
_PHASES = ("intent", "outcome", "denied", "error")


def _moment(text: str) -> dt.datetime:
    moment = dt.datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


MOMENT = Converted("time", _moment)


@dataclass(frozen=True)
class Search:
    """A search as given on the command line: what, how many rows, in which format."""

    query: AuditSearch
    rows: int
    format: Format


def condition_options() -> list[click.Parameter]:
    """Return the options that say which records are wanted."""
    return [
        _option("correlation-id", "Correlation id: everything about one call."),
        _option("serial", "Serial number: as target, as predecessor or as the actor's."),
        _option("name", "SAN entry with or without its type, subject or common name."),
        _option("principal", "Who acted: secret:ID, certificate:ISSUER/SUBJECT, or an operator."),
        _option("owner", "Owner of the certificate: TENANT/SERVICE, or TENANT."),
        _option("action", "Action, as certificate.issue."),
        _option("outcome", "Outcome.", type=click.Choice(_OUTCOMES)),
        _option("phase", "Phase.", type=click.Choice(_PHASES)),
        _option("producer", "Service that wrote the record."),
    ]


def search_options() -> list[click.Parameter]:
    """Return the options of a search."""
    return [
        *condition_options(),
        _option("since", "Recorded then or later, ISO 8601.", type=MOMENT),
        _option("until", "Recorded before, ISO 8601.", type=MOMENT),
        _option("before", "Next page, as the page before said.", type=int),
        _option("limit", "At most about so many rows.", type=click.IntRange(1), default=50),
        _option("full", "With --format json: whole records.", is_flag=True),
        format_option(),
    ]


def format_option() -> click.Option:
    """Return the option that says how rows are printed."""
    return _option("format", "Format.", type=click.Choice(get_args(Format)), default="table")


def read_search(values: Mapping[str, Any]) -> Search:
    """Return the search that the options of ``search_options`` say.

    Raises:
        ConfigurationError: a value that no record could have.
    """
    given = {name: value for name, value in values.items() if value is not None}
    form, rows = given.pop("format"), given.pop("limit")
    return Search(_valid(AuditSearch, given | {"limit": min(rows, MAX_PAGE)}), rows, form)


def read_tail(values: Mapping[str, Any]) -> AuditTail:
    """Return what the options of ``condition_options`` say to follow.

    Raises:
        ConfigurationError: a value that no record could have.
    """
    return _valid(AuditTail, {name: value for name, value in values.items() if value is not None})


def _valid(model: type[Q], values: Mapping[str, Any]) -> Q:
    try:
        return model(**values)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        raise ConfigurationError(f"{first['loc'][0]}: {first['msg'].lower()}") from exc


async def print_search(search: Search, page: Callable[[AuditSearch], Awaitable[Page]]) -> None:
    """Ask for pages until there are enough rows, and print each as it comes.

    ``page`` returns the rows of one page and the ``before`` of the next one.
    """
    query, missing, first = search.query, search.rows, True
    while True:
        rows, before = await page(query)
        print_rows(rows, search.format, header=first and bool(rows))
        first = first and not rows
        missing -= len(rows)
        if before is None or missing <= 0:
            break
        query = query.model_copy(update={"before": before, "limit": min(missing, MAX_PAGE)})
    if search.format == "table":
        if first:
            write_line("none")
        if before is not None:
            write_line(f"next page: --before {before}")


def print_rows(rows: Sequence[Mapping[str, Any]], form: Format, *, header: bool = False) -> None:
    """Print rows of a search."""
    if form == "json":
        for row in rows:
            write_json(row)
    elif form == "csv":
        write_document(csv_text(([row.get(name) for name in COLUMNS] for row in rows), header))
    elif rows:
        write_document(table(rows, header=header))


def csv_text(rows: Iterable[Sequence[Any]], header: bool, names: Sequence[str] = COLUMNS) -> str:
    """Return rows as CSV (RFC 4180, lines end with a line feed), with the names as first line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(names)
    writer.writerows([_field(value) for value in row] for row in rows)
    return text.getvalue()


def table(rows: Sequence[Mapping[str, Any]], *, header: bool = True) -> str:
    """Return rows as lines of aligned columns for people."""
    lines = [list(_TABLE)] if header else []
    lines += [_cells(row) for row in rows]
    widths = [max(len(line[n]) for line in lines) for n in range(len(_TABLE))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in lines
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    outcome = row["outcome"] if row["phase"] != "intent" else "intent"
    reason = row.get("reason_code")
    values = (
        row["log_index"],
        str(row["recorded_at"])[:19] + "Z",
        row["action"],
        f"{outcome} {reason}" if reason else outcome,
        row.get("principal"),
        row.get("owner"),
        row.get("serial"),
        row.get("subject") or ",".join(row.get("san") or ()),
    )
    return [_cell(value) for value in values]


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    text = _SPACES.sub(lambda run: " " + "\\u0020" * (len(run[0]) - 1), visible(str(value)))
    return text if len(text) <= _CELL else text[: _CELL - 1] + "…"


def _field(value: object) -> object:
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value))
    return spreadsheet_value(visible(value, keep="\n")) if isinstance(value, str) else value


def _option(name: str, text: str, **more: Any) -> click.Option:
    return click.Option([f"--{name}"], help=text, **more)
