"""est-audit: join the parts, run them, stop them in order."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from audit import commands, metrics, read_commands, retention_commands, sink_commands
from audit.auditor_commands import AuditorCommands
from audit.checkpoint_key import load_key
from audit.checkpoints import Sealer
from audit.forwarder import Forwarder
from audit.indexer import Indexer
from audit.reconciliation import Reconciliation
from audit.self_records import SelfRecords
from audit.settings import SCHEMA, SERVICE, Settings
from audit.transports.assembly import check_sink, transport_for
from audit.writer import Writer
from estcore.clock import Clock, SystemClock
from estcore.messages.topics import AUDIT_CONSUMERS, audit_issue_topic, owned_by
from estcore.runtime.admin import AdminServer
from estcore.runtime.boot import Boot
from estcore.runtime.bus import Bus
from estcore.runtime.certificate_expiry import CertificateExpiry
from estcore.runtime.console import console_script
from estcore.runtime.database import Database
from estcore.runtime.message_keys import message_keys
from estcore.runtime.migrations import migrate as migrate_schema
from estcore.runtime.reload import Reloader
from estcore.runtime.service import ServiceCommand, run_jobs, stop_on_signals
from estcore.runtime.settings import read_secret
from estcore.runtime.stream_lengths import StreamLengths
from estcore.runtime.stream_probe import StreamProbe
from estcore.runtime.topology import declare
from estcore.runtime.tracing import Tracing

MIGRATIONS = Path(__file__).parent / "migrations"
T = TypeVar("T")


async def run(
    settings: Settings,
    *,
    stop: asyncio.Event | None = None,
    started: Callable[[int], None] | None = None,
) -> None:
    """Run the service until ``stop`` (SIGTERM); ``started`` receives the admin port."""
    stop = stop or stop_on_signals()
    clock = SystemClock()
    key = load_key(settings.checkpoint)
    sealer = Sealer(settings.checkpoint, key, clock)
    boot = Boot.begin(settings.state_folder)
    own = SelfRecords(settings.instance, clock, boot)
    own.note("audit.start", config_sha256=config_digest(settings))
    checks: dict[str, Callable[[], bool]] = {"starting": lambda: False}
    admin = AdminServer(settings.admin, checks)
    port = await admin.start()
    if started is not None:
        started(port)
    tracing = Tracing(settings.telemetry, SERVICE, settings.instance)
    try:
        bus = await _or_stop(_connect(settings), stop)
        if bus is None:
            return
        database = await _or_stop(Database.connect(settings.database, SERVICE, SCHEMA), stop)
        if database is None:
            await bus.close()
            return
        writer = Writer(
            settings.append,
            bus=bus,
            database=database,
            clock=clock,
            own=own,
            sealer=sealer,
            tracing=tracing,
        )
        windows = Reconciliation(
            settings.windows,
            bus=bus,
            database=database,
            own=own,
            clock=clock,
            leading=lambda: writer.leading,
        )
        forwarders = [
            Forwarder(
                sink,
                instance=settings.instance,
                database=database,
                own=own,
                clock=clock,
                writer=writer,
                connect=lambda chosen: transport_for(chosen, clock),
                tracing=tracing,
            )
            for sink in settings.sinks
        ]
        streams = StreamProbe(bus, SERVICE)
        del checks["starting"]
        checks.update(_ready_checks(bus, streams, database, writer))
        admin.before_metrics(StreamLengths(bus, owned_by(SERVICE), AUDIT_CONSUMERS).refresh)
        jobs = [
            *(streams.run, database.watch),
            CertificateExpiry(settings).run,
            *(writer.run, windows.run, windows.run_ledger),
            _reloader(settings, bus, own).run,
            *(
                Indexer(database, writer).run,
                AuditorCommands(bus, database, settings, clock, key).run,
            ),
            *(forwarder.run for forwarder in forwarders),
            *_witnessing(settings, database, own, writer),
            *_timestamping(settings, database, own, writer, clock),
        ]
        try:
            await run_jobs(jobs, stop=stop, stop_timeout_s=settings.stop_timeout_s)
        finally:
            admin.stopping = True
            await bus.close()
            await database.close()
    finally:
        await asyncio.to_thread(tracing.close)
        await admin.stop()
        boot.close()


def _ready_checks(
    bus: Bus, streams: StreamProbe, database: Database, writer: Writer
) -> dict[str, Callable[[], bool]]:
    return {
        "bus": lambda: bus.ready,
        "streams": lambda: streams.ready,
        "database": lambda: database.available and writer.role != "down",
        "clock": lambda: database.clock.right,
        "writer": lambda: writer.role in {"writer", "standby"},
        "consumers": lambda: writer.consuming,
    }


async def _connect(settings: Settings) -> Bus:
    rights = [audit_issue_topic(SERVICE)]
    return await Bus.connect(settings.bus, SERVICE, settings.instance, rights=rights)


def _reloader(settings: Settings, bus: Bus, own: SelfRecords) -> Reloader:
    async def report(action: str, details: dict[str, str]) -> None:
        own.note_fact(action, details)

    return Reloader(
        [message_keys(bus, settings.bus)],
        report,
        metrics.RELOADS,
        every_s=settings.reload_every_s,
    )


async def migrate(settings: Settings) -> None:
    """Bring the schema to this version, then declare the streams and the consumers.

    The consumer of events needs ca-signer's stream: migrate ca-signer first.
    """
    await migrate_schema(settings.database, schema=SCHEMA, scripts=MIGRATIONS)
    seed_file = settings.bus.migration_nkey_seed_file or settings.bus.nkey_seed_file
    seed = read_secret(seed_file, "the NKey seed for migrations")
    bus = await Bus.connect(settings.bus, "migrate", settings.instance, seed=seed)
    try:
        await declare(bus, owned_by(SERVICE), AUDIT_CONSUMERS, replicas=settings.bus.replicas)
    finally:
        await bus.close()


def check(settings: Settings) -> None:
    """Read everything the settings name.

    Raises:
        ConfigurationError: the first thing that is not as it must be.
    """
    load_key(settings.checkpoint)
    read_secret(settings.bus.nkey_seed_file, "the NKey seed")
    for sink in settings.sinks:
        check_sink(sink, SystemClock())
    from audit.witnesses import check_witness  # aiohttp, when needed

    for witness in settings.witnesses:
        check_witness(witness)
    from audit.timestamps import authority_of  # aiohttp, when needed

    for authority in settings.timestamps:
        authority_of(authority)


def _witnessing(
    settings: Settings, database: Database, own: SelfRecords, writer: Writer
) -> list[Callable[[asyncio.Event], Coroutine[Any, Any, None]]]:
    from audit.witnesses import Witnessing  # aiohttp, when needed

    return [
        Witnessing(one, database=database, own=own, leading=lambda: writer.leading).run
        for one in settings.witnesses
    ]


def _timestamping(
    settings: Settings, database: Database, own: SelfRecords, writer: Writer, clock: Clock
) -> list[Callable[[asyncio.Event], Coroutine[Any, Any, None]]]:
    from audit.timestamps import Timestamping  # aiohttp, when needed

    return [
        Timestamping(
            one, database=database, own=own, leading=lambda: writer.leading, clock=clock
        ).run
        for one in settings.timestamps
    ]


def config_digest(settings: Settings) -> str:
    """Return SHA-256 of the settings as JSON: which configuration a start ran with."""
    return hashlib.sha256(settings.model_dump_json().encode()).hexdigest()


async def _or_stop(work: Coroutine[Any, Any, T], stop: asyncio.Event) -> T | None:
    """Return what ``work`` returns, or None if the stop comes first."""
    task = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        stopping.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


COMMAND = ServiceCommand(
    "est-audit",
    about="Keeps the tamper-evident audit log and forwards it to SIEMs.",
    distribution="estsuite-audit",
    prefix="EST_AUDIT",
    settings=Settings,
    run=run,
    migrate=migrate,
    check=check,
)
commands.add(COMMAND)
read_commands.add(COMMAND)
retention_commands.add(COMMAND)
sink_commands.add(COMMAND)


@console_script
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``est-audit``."""
    return COMMAND.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
