"""The verbs ``est-audit retention …``: status, hold, release, archive, purge, restore.

They use the owner's access to the schema (``database.migration_url``), and are on record before
they act. A purge is also on record in the log that it shortens, with the range and the reason, so
that verification accepts it.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import click

from audit import checkpoint_key, purge_orders, retention, retention_store
from audit.command_context import audited, local_user, opened_database
from audit.purge_orders import Order
from audit.retention import Month
from audit.retention_store import Hold
from audit.settings import Settings
from estcore.clock import SystemClock
from estcore.errors import ConfigurationError, Conflict
from estcore.runtime.command_line import PATH, Converted
from estcore.runtime.database import Connection
from estcore.runtime.log_search import MOMENT
from estcore.runtime.log_verification import open_lines
from estcore.runtime.service import ServiceCommand
from estcore.runtime.terminal import write_fields, write_line
from estcore.tlog.purged import PURGE, RESTORE

MONTH = Converted("month", Month.parse)


def add(command: ServiceCommand[Settings]) -> None:
    """Add the group to the command line of est-audit."""
    group = command.verbs("retention", "Archive, hold and purge months of the log.")
    command.verb("status", "List months, holds and what was purged.", under=group)(status)
    command.verb("hold", "Place a legal hold on a period.", under=group)(hold)
    command.verb("release", "Release a legal hold.", under=group)(release)
    command.verb("archive", "Write a month to a file that verifies alone.", under=group)(archive)
    command.verb("purge", "Drop a month; the hashes of its records stay.", under=group)(purge)
    command.verb("restore", "Insert the records of an archive again.", under=group)(restore)


async def status(settings: Settings) -> None:
    """Print one line for each month, hold and purge."""
    await audited(settings, "audit.read", wanted="retention")
    now = SystemClock().now()
    async with opened_database(settings) as database, database.connection() as connection:
        for digits in await retention_store.months(connection):
            month = Month.parse(f"{digits[:4]}-{digits[4:]}")
            _, _, count = await retention_store.extent(connection, month.start, month.end)
            held = await retention_store.held_by(connection, month.start, month.end)
            allowed = retention.purgeable_at(month, settings.retention)
            state = f"held by {', '.join(held)}" if held else f"kept until {allowed.date()}"
            if not held and now >= allowed:
                state = "may be purged"
            write_fields(month, f"{count} records", state)
        for done in await retention_store.purged(connection):
            text = f"records {done.first_index} to {done.end_index - 1}"
            write_fields(f"{done.month[:4]}-{done.month[4:]}", text, f"purged {done.purged_at}")
        for each in await retention_store.holds(connection):
            state = "in force" if each.released_at is None else f"released {each.released_at}"
            write_fields(f"hold {each.name}", each.since, each.until, state, each.reason)


@click.option("--name", required=True, help="Name of the hold, as a case number.")
@click.option("--from", "since", type=MOMENT, required=True, help="Recorded from then, ISO 8601.")
@click.option("--to", "until", type=MOMENT, required=True, help="Recorded before, ISO 8601.")
@click.option("--reason", required=True, help="Why; goes on record.")
async def hold(
    settings: Settings, name: str, since: dt.datetime, until: dt.datetime, reason: str
) -> None:
    """Place a hold: nothing of the period is purged until it is released.

    Raises:
        Conflict: there is a hold of this name.
    """
    if since >= until:
        raise ConfigurationError("--from is not before --to")
    await audited(
        settings,
        "audit.hold",
        name=name,
        since=since.isoformat(),
        until=until.isoformat(),
        reason=reason,
    )
    placed = Hold(name, since, until, reason, SystemClock().now(), local_user())
    async with _owner(settings) as connection:
        if not await retention_store.place_hold(connection, placed):
            raise Conflict(f"there is a hold called {name}", code="retention.hold_exists")
    write_line(f"hold {name} is in force")


@click.option("--name", required=True, help="Name of the hold.")
@click.option("--reason", required=True, help="Why; goes on record.")
async def release(settings: Settings, name: str, reason: str) -> None:
    """Release a hold.

    Raises:
        Conflict: no hold of this name is in force.
    """
    await audited(settings, "audit.hold_released", name=name, reason=reason)
    async with _owner(settings) as connection:
        now = SystemClock().now()
        if not await retention_store.release_hold(connection, name, now, local_user()):
            raise Conflict(f"no hold called {name} is in force", code="retention.no_hold")
    write_line(f"hold {name} is released")


@click.option("--month", type=MONTH, required=True, help="Month, YYYY-MM, by UTC.")
@click.option("--out", type=PATH, required=True, help="File to create.")
async def archive(settings: Settings, month: Month, out: Path) -> None:
    """Write a month to a file that verifies alone.

    Raises:
        Conflict: it has no records, or is not sealed yet.
    """
    key = checkpoint_key.verifier_key(settings.checkpoint)
    await audited(settings, "audit.archive", month=str(month), file=out.name)
    count = 0
    async with opened_database(settings) as database, database.connection() as connection:
        try:
            descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                origin = settings.checkpoint.origin
                async for line in retention.archive(connection, month, origin, key):
                    file.write(line + b"\n")
                    count += 1
                file.flush()
                os.fsync(file.fileno())
        except OSError as exc:
            raise ConfigurationError(f"cannot write {out}: {exc.strerror}") from exc
        except Conflict:
            out.unlink()
            raise
    write_line(f"{count} lines in {out}; verify it: estctl audit verify --export {out}")


@click.option("--month", type=MONTH, required=True, help="Month, YYYY-MM, by UTC.")
@click.option("--archive", "file", type=PATH, help="Its archive, which is verified first.")
@click.option("--without-archive", is_flag=True, help="Destroy the records for good.")
@click.option("--order", required=True, help="Id of the order that two operators gave.")
async def purge(
    settings: Settings, month: Month, file: Path | None, without_archive: bool, order: str
) -> None:
    """Drop a month's records.

    Raises:
        Conflict: it is too young, under a legal hold, not ordered by two operators, or no
            checkpoint covers the order yet.
        AuditChainBroken: archive or database have something else than was signed.
    """
    if (file is None) != without_archive:
        raise ConfigurationError("give exactly one of --archive, --without-archive")
    now = SystemClock().now()
    key = checkpoint_key.verifier_key(settings.checkpoint)
    async with opened_database(settings) as database, database.connection() as connection:
        given = await purge_orders.confirmed(connection, order, str(month), now, key)
    await purge_month(settings, month, file, now, given)
    write_line(f"{month} is purged; the hashes of its records are kept")


async def purge_month(
    settings: Settings, month: Month, file: Path | None, now: dt.datetime, order: Order
) -> None:
    """Purge a month as of ``now``, as it was ordered."""
    key = checkpoint_key.verifier_key(settings.checkpoint)
    archived: str | None = None
    async with _owner(settings) as connection:
        first, end = await retention.check_purge(connection, month, settings.retention, now)
    if end - first != order.records:
        raise Conflict(f"{month} has {end - first} records", code="retention.count")
    if file is not None:
        with open_lines(file) as lines:
            archived, _ = retention.check_archive(lines, month, (first, end), key)
    await audited(
        settings,
        PURGE,
        month=str(month),
        first_index=first,
        end_index=end,
        archive_sha256=archived or "none",
        order=order.id,
        proposed_by=order.proposed_by,
        confirmed_by=order.confirmed_by,
        keep_years=settings.retention.keep_years,
        legal_basis=settings.retention.legal_basis or "",
    )
    async with _owner(settings) as connection, connection.transaction():
        await retention.purge(
            connection, month, settings.retention, key=key, now=now, archived=archived
        )


@click.option("--archive", "file", type=PATH, required=True, help="Archive of a purged month.")
async def restore(settings: Settings, file: Path) -> None:
    """Insert the records of a purged month again; they may be purged again at once.

    Raises:
        Conflict: the month is not purged.
        AuditChainBroken: the archive does not have the records that were purged.
    """
    key = checkpoint_key.verifier_key(settings.checkpoint)
    with open_lines(file) as content:
        lines = [line.removesuffix(b"\n") for line in content]
    await audited(settings, RESTORE, file=file.name)
    async with _owner(settings) as connection, connection.transaction():
        done = await retention.restore(connection, lines, key)
    write_line(f"records {done.first_index} to {done.end_index - 1} are in the log again")


@asynccontextmanager
async def _owner(settings: Settings) -> AsyncIterator[Connection]:
    """Connect as the owner of the schema.

    Raises:
        ConfigurationError: the settings have no access of the owner.
    """
    if settings.database.migration_url is None:
        raise ConfigurationError("database.migration_url is needed: the owner of the schema")
    access = {
        "url": settings.database.migration_url,
        "password_file": settings.database.migration_password_file,
        "statement_timeout_s": 600,
    }
    as_owner = settings.model_copy(update={"database": settings.database.model_copy(update=access)})
    async with opened_database(as_owner) as database, database.connection() as connection:
        yield connection
