"""The verbs of est-audit that read the log for people, besides export and verify.

They are for who has the service's settings on its host; auditors use ``estctl audit``. Each is
on record before it reads.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from pathlib import Path
from typing import Any

from audit.checkpoint_key import load_key
from audit.command_context import audited, opened_database
from audit.settings import Settings
from estcore.clock import SystemClock
from estcore.messages.audit_queries import AuditSearch, AuditTail
from estcore.runtime.command_line import Command
from estcore.runtime.log_proof import check_choice, old_size, proof_options, write_proof
from estcore.runtime.log_report import period_of, report_options, write_report
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
from estcore.runtime.service import ServiceCommand
from estcore.tlog.activity import Period
from estcore.tlog.checkpoint import sign_text

_POLL_S = 1.0


def add(command: ServiceCommand[Settings]) -> None:
    """Add the verbs to the command line of est-audit."""

    @command.config_option
    def search(config: Path | None, **values: Any) -> int:
        wanted = read_search(values)
        return command.execute(config, lambda settings: search_log(settings, wanted))

    verb = Command("search", help="Search the audit log.", callback=search)
    verb.params = [*search_options(), *search.__click_params__]  # type: ignore[attr-defined]
    command.group.add_command(verb)

    @command.config_option
    def prove(config: Path | None, index: int | None, checkpoint: Path | None, out: Path) -> int:
        check_choice(index, checkpoint)
        return command.execute(
            config, lambda settings: write_proof_of(settings, index, checkpoint, out)
        )

    verb = Command("prove", help="Prove a record, or an older checkpoint.", callback=prove)
    verb.params = [*proof_options(), *prove.__click_params__]  # type: ignore[attr-defined]
    command.group.add_command(verb)

    @command.config_option
    def report(config: Path | None, since: dt.datetime, until: dt.datetime, out: Path) -> int:
        period = period_of(since, until)
        return command.execute(config, lambda settings: report_on(settings, period, out))

    verb = Command("report", help="Write the signed report of a period.", callback=report)
    verb.params = [*report_options(), *report.__click_params__]  # type: ignore[attr-defined]
    command.group.add_command(verb)

    @command.config_option
    def tail(config: Path | None, format: Format, **values: Any) -> int:
        wanted = read_tail(values)
        return command.execute(config, lambda settings: follow_log(settings, wanted, format))

    verb = Command("tail", help="Print new records as they come, until Ctrl-C.", callback=tail)
    verb.params = [
        *condition_options(),
        format_option(),
        *tail.__click_params__,  # type: ignore[attr-defined]
    ]
    command.group.add_command(verb)


async def report_on(settings: Settings, period: Period, out: Path) -> None:
    """Write the report of a period, its manifest signed with the checkpoint key.

    Raises:
        Unavailable: it cannot be put on record, or the database does not answer.
        Conflict: the period is not over, or not under a checkpoint yet.
    """
    from audit import report

    origin, key = settings.checkpoint.origin, load_key(settings.checkpoint)
    await audited(
        settings,
        "audit.report",
        since=period.since.isoformat(),
        until=period.until.isoformat(),
        folder=out.name,
    )
    async with opened_database(settings) as database, database.connection() as connection:
        files, text = await report.build(connection, origin, period, SystemClock().now())
    write_report(out, files, sign_text(text, origin, key))


async def follow_log(settings: Settings, wanted: AuditTail, form: Format) -> None:
    """Print new records as they come.

    Raises:
        Unavailable: it cannot be put on record, or the database does not answer.
    """
    from audit.search import follow

    conditions = wanted.model_dump(mode="json", exclude_none=True)
    await audited(settings, "audit.tail", wanted=json.dumps(conditions))
    async with opened_database(settings) as database, database.connection() as connection:
        while True:
            rows, following = await follow(connection, wanted)
            print_rows(rows, form)
            if following == wanted.after:
                await asyncio.sleep(_POLL_S)
            wanted = wanted.model_copy(update={"after": following})


async def write_proof_of(
    settings: Settings, index: int | None, checkpoint: Path | None, out: Path
) -> None:
    """Write a proof under the newest checkpoint to a file.

    Raises:
        Unavailable: it cannot be put on record, or the database does not answer.
        Conflict: there is no such proof.
    """
    from audit import proofs

    size = 0 if checkpoint is None else old_size(checkpoint)
    wanted = f"record {index}" if checkpoint is None else f"checkpoint {size}"
    await audited(settings, "audit.prove", wanted=wanted, file=out.name)
    async with opened_database(settings) as database, database.connection() as connection:
        if index is not None:
            octets = (await proofs.inclusion(connection, index)).encode()
        else:
            octets = (await proofs.consistency(connection, size)).encode()
    write_proof(out, octets)


async def search_log(settings: Settings, wanted: Search) -> None:
    """Print what a search finds.

    Raises:
        Unavailable: the search cannot be put on record, or the database does not answer.
    """
    from audit.search import search

    conditions = wanted.query.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    await audited(settings, "audit.search", wanted=json.dumps(conditions), rows=wanted.rows)
    async with opened_database(settings) as database, database.connection() as connection:

        async def page(query: AuditSearch) -> Page:
            found = await search(connection, query)
            return found.rows, found.next

        await print_search(wanted, page)
