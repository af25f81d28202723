"""The verbs besides run and migrate: keygen, export, verify, show, replay.

What reads or moves audit data is itself audited: these verbs send a record over the bus to the
writer, before they act. ``keygen``, and ``verify`` of an export, need no configuration, no
database and no bus.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from audit import checkpoint_key, store
from audit.self_records import Detail, SelfRecords
from audit.settings import SCHEMA, SERVICE, Settings
from estcore.clock import SystemClock
from estcore.errors import (
    AuditChainBroken,
    BusUnavailable,
    ConfigurationError,
    LedgerUnavailable,
    MalformedRequest,
)
from estcore.messages.audit import AuditBatch, Phase
from estcore.messages.envelope import encode
from estcore.messages.topics import audit_issue_topic
from estcore.runtime import log_verification
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.database import Database
from estcore.tlog.checkpoint import check_name
from estcore.tlog.findings import Report

_DEADLINE_S = 15


def arguments_of_keygen(parser: argparse.ArgumentParser) -> None:
    """``keygen`` has the file and the name of the log."""
    parser.add_argument("--out", type=Path, required=True, help="file to create, mode 0600")
    parser.add_argument(
        "--origin", default="estsuite/audit", help="checkpoint.origin, the name in the vkey"
    )


def arguments_of_verify(parser: argparse.ArgumentParser) -> None:
    """``verify`` reads the database, or with --export nothing but files."""
    parser.add_argument("--export", type=Path, help="verify this file instead of the database")
    log_verification.add_arguments(parser)


def keygen(parsed: argparse.Namespace) -> None:
    """Create a signing key and print its verifier key.

    Raises:
        ConfigurationError: the file exists, or the origin cannot be a key's name.
    """
    try:
        origin = check_name(parsed.origin)
    except MalformedRequest as exc:
        raise ConfigurationError(exc.reason) from exc
    sys.stdout.write(f"{checkpoint_key.create_key(parsed.out, origin)}\n")


def verify_offline(parsed: argparse.Namespace) -> None:
    """Verify an export file.

    Raises:
        AuditChainBroken: there are findings.
    """
    with log_verification.open_lines(parsed.export) as lines:
        _finish(log_verification.verify_log(lines, parsed), parsed)


async def verify_online(settings: Settings, parsed: argparse.Namespace) -> None:
    """Verify the database's log, or an export with the configured key.

    Raises:
        AuditChainBroken: there are findings; they are on record too.
    """
    from audit import export  # SQLAlchemy, for this verb only

    key = checkpoint_key.verifier_key(settings.checkpoint)
    if parsed.export is not None:
        with log_verification.open_lines(parsed.export) as lines:
            _finish(log_verification.verify_log(lines, parsed, key=key), parsed)
        return
    async with _database(settings) as database:
        origin = settings.checkpoint.origin
        lines_ = [line async for line in export.lines(database, origin, str(key))]
    report = await asyncio.to_thread(
        log_verification.verify_log, lines_, parsed, key=key, live=True
    )
    if not report.ok:
        first = report.findings[0]
        await _audited(
            settings, "audit.verify", phase="error", findings=len(report.findings), first=str(first)
        )
    _finish(report, parsed)


async def export_log(settings: Settings, parsed: argparse.Namespace) -> None:
    """Write an export to a file that does not exist yet."""
    from audit import export  # SQLAlchemy, for this verb only

    key = checkpoint_key.verifier_key(settings.checkpoint)
    await _audited(
        settings, "audit.export", wanted=parsed.correlation_id or "all", file=parsed.out.name
    )
    count = 0
    async with _database(settings) as database:
        try:
            with parsed.out.open("xb") as file:
                async for line in export.lines(
                    database, settings.checkpoint.origin, str(key), parsed.correlation_id
                ):
                    file.write(line + b"\n")
                    count += 1
        except OSError as exc:
            raise ConfigurationError(f"cannot write {parsed.out}: {exc.strerror}") from exc
    sys.stdout.write(f"{count} lines, verifier key {key}\n")


async def show(settings: Settings, parsed: argparse.Namespace) -> None:
    """Print one line for each record of a correlation id."""
    from audit import export  # SQLAlchemy, for this verb only

    await _audited(settings, "audit.read", wanted=parsed.correlation_id)
    async with _database(settings) as database:
        for line in await export.summary(database, parsed.correlation_id):
            sys.stdout.write(f"{line}\n")


async def replay(settings: Settings, parsed: argparse.Namespace) -> None:
    """Move a sink's cursor back, so that it gets everything from there again.

    Raises:
        ConfigurationError: no such sink, or its cursor is not beyond that place.
    """
    if parsed.sink not in {sink.name for sink in settings.sinks}:
        raise ConfigurationError(f"no sink has the name {parsed.sink}")
    await _audited(settings, "audit.replay", sink=parsed.sink, start=parsed.start)
    async with _database(settings) as database, database.connection() as connection:
        before = await store.replay_from(connection, parsed.sink, parsed.start)
    if before is None:
        raise ConfigurationError(f"the cursor of {parsed.sink} is not beyond {parsed.start}")
    sys.stdout.write(f"{parsed.sink}: cursor moved from {before} to {parsed.start}\n")


def _finish(report: Report, parsed: argparse.Namespace) -> None:
    log_verification.print_report(report, as_json=parsed.json)
    if not report.ok:
        raise AuditChainBroken(f"verification has {len(report.findings)} findings")


async def _audited(
    settings: Settings, action: str, *, phase: Phase = "outcome", **details: Detail
) -> None:
    """Have the writer put on record what is about to be done.

    Raises:
        BusUnavailable: it cannot be put on record, so it is not done.
    """
    own = SelfRecords(settings.instance, SystemClock())
    record = own.record(action, details, phase=phase, severity="notice")
    message = Outgoing(
        audit_issue_topic(SERVICE), encode(AuditBatch(records=(record,))), record.record_id
    )
    try:
        async with asyncio.timeout(_DEADLINE_S):
            bus = await Bus.connect(settings.bus, SERVICE, settings.instance)
            try:
                await bus.publish_confirmed([message])
            finally:
                await bus.close()
    except TimeoutError as exc:
        raise BusUnavailable("the bus is unavailable, so this command cannot be audited") from exc


@asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[Database]:
    try:
        async with asyncio.timeout(_DEADLINE_S):
            database = await Database.connect(settings.database, SERVICE, SCHEMA)
    except TimeoutError as exc:
        raise LedgerUnavailable("PostgreSQL does not answer") from exc
    try:
        yield database
    finally:
        await database.close()
