"""The verbs besides run and migrate: keygen, export, verify, show.

What reads or moves audit data is itself audited: these verbs send a record over the bus to the
writer, before they act. ``keygen``, and ``verify`` of an export, need no configuration, no
database and no bus.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import click

from audit import checkpoint_key, store
from audit.command_context import audited, opened_database
from audit.settings import Settings
from estcore.errors import (
    AuditChainBroken,
    ConfigurationError,
    LedgerUnavailable,
    MalformedRequest,
)
from estcore.runtime import log_verification
from estcore.runtime.command_line import PATH
from estcore.runtime.database import Database
from estcore.runtime.log_verification import Choices
from estcore.runtime.service import ServiceCommand
from estcore.runtime.terminal import STANDARD_OUTPUT, export_file, write_line
from estcore.tlog.checkpoint import check_name
from estcore.tlog.findings import Report

_DEADLINE_S = 15


def add(command: ServiceCommand[Settings]) -> None:
    """Add the verbs to the command line of est-audit."""
    command.verb("export", "Write the audit log, or one correlation id, to a file.")(export_log)
    command.verb("show", "Print one line for each record of a correlation id.")(show)
    command.group.command("keygen", help="Generate a checkpoint key.")(keygen)

    @command.group.command("verify", help="Verify the audit log, or an export of it.")
    @command.config_option
    @click.option("--export", "file", type=PATH, help="File to verify instead of the database.")
    @log_verification.choices_options
    def _verify(config: Path | None, file: Path | None, choices: Choices) -> int:
        if file is not None and config is None:
            verify_offline(file, choices)
            return 0
        return command.execute(config, lambda settings: verify_online(settings, file, choices))


@click.option("--out", type=PATH, required=True, help="File to create, mode 0600.")
@click.option(
    "--origin", default="estsuite/audit", help="The setting checkpoint.origin: name in the vkey."
)
def keygen(out: Path, origin: str) -> None:
    """Create a signing key and print its verifier key.

    Raises:
        ConfigurationError: the file exists, or the origin cannot be a key's name.
    """
    try:
        name = check_name(origin)
    except MalformedRequest as exc:
        raise ConfigurationError(exc.reason) from exc
    write_line(str(checkpoint_key.create_key(out, name)))


def verify_offline(file: Path, choices: Choices) -> None:
    """Verify an export file.

    Raises:
        AuditChainBroken: there are findings.
    """
    with log_verification.open_lines(file) as lines:
        _finish(log_verification.verify_log(lines, choices), choices)


async def verify_online(settings: Settings, file: Path | None, choices: Choices) -> None:
    """Verify the database's log, or an export with the configured key.

    Raises:
        AuditChainBroken: there are findings; they are on record too.
    """
    from audit import export  # SQLAlchemy, for this verb only

    key = checkpoint_key.verifier_key(settings.checkpoint)
    if file is not None:
        with log_verification.open_lines(file) as lines:
            _finish(log_verification.verify_log(lines, choices, key=key), choices)
        return
    async with opened_database(settings) as database:
        origin = settings.checkpoint.origin
        lines_ = [line async for line in export.lines(database, origin, str(key))]
    report = await asyncio.to_thread(
        log_verification.verify_log, lines_, choices, key=key, live=True
    )
    if not report.ok:
        first = report.findings[0]
        await audited(
            settings, "audit.verify", phase="error", findings=len(report.findings), first=str(first)
        )
    _finish(report, choices)


@click.option("--out", type=PATH, required=True, help="File to create; - is standard output.")
@click.option("--correlation-id", help="Export its records only, with proofs of inclusion.")
@click.option(
    "--sealed",
    is_flag=True,
    help="Wait for the next checkpoint, and end with it: every record is under a signature.",
)
async def export_log(
    settings: Settings, out: Path, correlation_id: str | None, sealed: bool
) -> None:
    """Write an export to a file that does not exist yet.

    Raises:
        ConfigurationError: the file cannot be written, or ``sealed`` is not for a part.
        LedgerUnavailable: no checkpoint was signed in time.
    """
    if sealed and correlation_id is not None:
        raise ConfigurationError("--sealed is for a whole export")
    from audit import export  # SQLAlchemy, for this verb only

    key = checkpoint_key.verifier_key(settings.checkpoint)
    await audited(settings, "audit.export", wanted=correlation_id or "all", file=out.name)
    async with opened_database(settings) as database:
        if sealed:
            await _until_sealed(database, settings.checkpoint.interval_s)
        lines = export.lines(
            database, settings.checkpoint.origin, str(key), correlation_id, sealed=sealed
        )
        count = await _written(lines, out)
    write_line(f"{count} lines, verifier key {key}", error=out == STANDARD_OUTPUT)


async def _written(lines: AsyncIterator[bytes], out: Path) -> int:
    """Write lines to a new file or to standard output; returns how many."""
    count = 0
    with export_file(out, new=True) as file:
        async for line in lines:
            file.write(line + b"\n")
            count += 1
    return count


async def _until_sealed(database: Database, interval_s: float) -> None:
    """Wait until a checkpoint covers everything that is in the log now."""
    async with database.connection() as connection:
        size = (await store.load_head(connection)).size
    try:
        async with asyncio.timeout(interval_s + _DEADLINE_S):
            while True:
                async with database.connection() as connection:
                    if await store.last_checkpoint(connection) >= size:
                        return
                await asyncio.sleep(0.5)
    except TimeoutError as exc:
        raise LedgerUnavailable(
            "no checkpoint was signed in time: is there a writer?", code="checkpoint.overdue"
        ) from exc


@click.option("--correlation-id", required=True, help="Correlation id of the records.")
async def show(settings: Settings, correlation_id: str) -> None:
    """Print one line for each record of a correlation id."""
    from audit import export  # SQLAlchemy, for this verb only

    await audited(settings, "audit.read", wanted=correlation_id)
    async with opened_database(settings) as database:
        for line in await export.summary(database, correlation_id):
            write_line(line)


def _finish(report: Report, choices: Choices) -> None:
    log_verification.print_report(report, as_json=choices.json)
    if not report.ok:
        raise AuditChainBroken(f"verification has {len(report.findings)} findings")
