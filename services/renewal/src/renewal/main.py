"""``est-renewal``: joins the parts by hand and runs them."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from estcore.clock import SystemClock
from estcore.errors import ConfigurationError
from estcore.messages.topics import (
    PROOF_REFUSALS_TOPIC,
    RENEWAL_CONSUMERS,
    RENEWAL_INFO_COMPLETE_TOPIC,
    audit_issue_topic,
    owned_by,
    rotation_topic,
)
from estcore.runtime import migrations, topology
from estcore.runtime.admin import AdminServer
from estcore.runtime.boot import Boot
from estcore.runtime.bus import Bus
from estcore.runtime.certificate_expiry import CertificateExpiry
from estcore.runtime.command_line import PATH
from estcore.runtime.console import console_script
from estcore.runtime.database import Database
from estcore.runtime.logs import fields
from estcore.runtime.message_keys import message_keys
from estcore.runtime.own_records import OwnRecords
from estcore.runtime.reload import Reloader
from estcore.runtime.service import Job, ServiceCommand, run_jobs, stop_on_signals
from estcore.runtime.settings import read_secret
from estcore.runtime.stream_lengths import StreamLengths
from estcore.runtime.stream_probe import StreamProbe
from estcore.runtime.terminal import STANDARD_OUTPUT, write_line
from estcore.runtime.tracing import Tracing
from renewal import metrics
from renewal.dispatch.scheduler import Scheduler
from renewal.events.consumer import EventConsumer
from renewal.events.reconciliation import ledger_comparison
from renewal.info_stream import FORGET_EPOCH, InfoStreamWatch
from renewal.proof_handler import AckListener
from renewal.publishing.messages import MessageBuilder
from renewal.publishing.publisher import RotationPublisher
from renewal.publishing.renewal_info import RenewalInfoPublisher
from renewal.settings import SERVICE, RenewalSettings
from renewal.slot_metrics import run_gauges

log = logging.getLogger(__name__)

T = TypeVar("T")
SCHEMA = "renewal"
MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATE_S = 60


async def run(settings: RenewalSettings) -> None:
    """Serve until SIGTERM."""
    await serve(settings, stop_on_signals())


async def serve(settings: RenewalSettings, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set; a job that crashes surfaces.

    Raises:
        ConfigurationError: the admin port is taken, a secret cannot be read.
    """
    tracing = Tracing(settings.telemetry, SERVICE, settings.instance)
    bus: Bus | None = None
    database: Database | None = None
    admin = AdminServer(
        settings.admin,
        {
            "bus": lambda: bus is not None and bus.ready,
            "streams": lambda: streams is not None and streams.ready,
            "database": lambda: database is not None and database.available,
            "clock": lambda: database is not None and database.clock.right,
            "consumer": lambda: event_consumer is not None and event_consumer.consumer.ready,
        },
    )
    event_consumer: EventConsumer | None = None
    streams: StreamProbe | None = None
    port = await admin.start()
    boot = Boot.begin(settings.state_folder)
    log.info("admin port is open", extra=fields(admin_port=port))
    try:
        database = await _unless(stop, Database.connect(settings.database, SERVICE, SCHEMA))
        rights = [
            audit_issue_topic(SERVICE),
            PROOF_REFUSALS_TOPIC,
            rotation_topic("due", "any", "any"),
            RENEWAL_INFO_COMPLETE_TOPIC,
        ]
        connecting = Bus.connect(settings.bus, SERVICE, settings.instance, rights=rights)
        bus = await _unless(stop, connecting)
        if database is None or bus is None:
            return
        streams = StreamProbe(bus, SERVICE)
        admin.before_metrics(StreamLengths(bus, owned_by(SERVICE), RENEWAL_CONSUMERS).refresh)
        builder = MessageBuilder(settings.instance, SystemClock(), boot.id)
        topic = audit_issue_topic(SERVICE)
        own = OwnRecords(bus, topic, settings.instance, SystemClock(), boot)
        await own.begin()
        info = RenewalInfoPublisher(database, bus, SystemClock(), settings.renewal_info)
        publisher = RotationPublisher(database, bus, builder, settings.rotation, info)
        event_consumer = EventConsumer(settings, database, bus, builder, publisher, tracing)
        jobs = _jobs(settings, database, bus, builder, publisher, tracing, event_consumer)
        await run_jobs(
            [
                *jobs,
                own.run,
                _reloader(settings, bus, own).run,
                streams.run,
                CertificateExpiry(settings).run,
                database.watch,
                _fail_readiness(admin),
            ],
            stop=stop,
            stop_timeout_s=settings.stop_timeout_s,
        )
    finally:
        if bus is not None:
            await bus.close()
        if database is not None:
            await database.close()
        await admin.stop()
        boot.close()
        await asyncio.to_thread(tracing.close)


async def _unless(stop: asyncio.Event, connecting: Coroutine[Any, Any, T]) -> T | None:
    """Return the connection, or None when the process stops before it is established."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(connecting)
        stopped = group.create_task(stop.wait())
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not task.done():
            task.cancel()
    return None if task.cancelled() else task.result()


def _jobs(
    settings: RenewalSettings,
    database: Database,
    bus: Bus,
    builder: MessageBuilder,
    publisher: RotationPublisher,
    tracing: Tracing,
    event_consumer: EventConsumer,
) -> list[Job]:
    changed = event_consumer.changed
    scheduler = Scheduler(settings, database, bus, publisher, tracing, changed)
    listener = AckListener(
        rotation=settings.rotation,
        database=database,
        bus=bus,
        builder=builder,
        publisher=publisher,
        tracing=tracing,
    )

    async def gauges(stop: asyncio.Event) -> None:
        await run_gauges(database, settings.metrics_every_s, stop)

    return [
        *(event_consumer.run, scheduler.run_due, scheduler.run_upkeep),
        *(listener.run, gauges),
        ledger_comparison(settings.windows, database, bus).run,
        InfoStreamWatch(settings.renewal_info, database, bus, SystemClock(), publisher.info).run,
    ]


def _reloader(settings: RenewalSettings, bus: Bus, own: OwnRecords) -> Reloader:
    return Reloader(
        [message_keys(bus, settings.bus)],
        own.report,
        metrics.RELOADS,
        every_s=settings.reload_every_s,
    )


def _fail_readiness(admin: AdminServer) -> Job:
    async def wait(stop: asyncio.Event) -> None:
        await stop.wait()
        admin.stopping = True

    return wait


async def migrate(settings: RenewalSettings) -> None:
    """Bring the schema to this version and declare the service's consumers.

    Raises:
        ConfigurationError: no seed that may declare, or JetStream refuses.
        Unavailable: database or bus do not answer.
    """
    await migrations.migrate(settings.database, schema=SCHEMA, scripts=MIGRATIONS)
    if settings.bus.migration_nkey_seed_file is None:
        raise ConfigurationError("bus.migration_nkey_seed_file is needed to migrate")
    seed = read_secret(settings.bus.migration_nkey_seed_file, "the NKey seed to migrate")
    async with asyncio.timeout(_MIGRATE_S):
        bus = await Bus.connect(settings.bus, "migrate", settings.instance, seed=seed)
    try:
        await topology.declare(
            bus, owned_by(SERVICE), RENEWAL_CONSUMERS, replicas=settings.bus.replicas
        )
    finally:
        await bus.close()


async def _connect(settings: RenewalSettings) -> Database:
    try:
        async with asyncio.timeout(_MIGRATE_S):
            return await Database.connect(settings.database, SERVICE, SCHEMA)
    except TimeoutError as exc:
        raise ConfigurationError("PostgreSQL does not answer") from exc


def check(settings: RenewalSettings) -> None:
    """Read what the settings name.

    Raises:
        ConfigurationError: a secret cannot be read.
    """
    read_secret(settings.bus.nkey_seed_file, "the NKey seed")
    if settings.database.password_file is not None:
        read_secret(settings.database.password_file, "the database password")


COMMAND = ServiceCommand(
    "est-renewal",
    about="Computes when certificates are due and rotates them.",
    distribution="estsuite-renewal",
    prefix="EST_RENEWAL",
    settings=RenewalSettings,
    run=run,
    migrate=migrate,
    check=check,
)


@COMMAND.verb("export", "Write every certificate as JSON lines.")
@click.option("--out", type=PATH, required=True, help="File to write; - is standard output.")
async def _export(settings: RenewalSettings, out: Path) -> None:
    from renewal.export import export_certificates  # SQLAlchemy, for this verb only

    database = await _connect(settings)
    try:
        written = await export_certificates(database, out)
    finally:
        await database.close()
    write_line(f"{written} certificates", error=out == STANDARD_OUTPUT)


@COMMAND.verb("slots", "List every slot as JSON lines.")
async def _slots(settings: RenewalSettings) -> None:
    from renewal.export import list_slots  # SQLAlchemy, for this verb only

    database = await _connect(settings)
    try:
        await list_slots(database)
    finally:
        await database.close()


@COMMAND.verb("republish-info", "Publish the renewal information of every certificate again.")
async def _republish_info(settings: RenewalSettings) -> None:
    database = await _connect(settings)
    try:
        async with database.connection() as connection:
            await connection.execute(FORGET_EPOCH)
    finally:
        await database.close()
    write_line("est-renewal publishes all renewal information at its next comparison")


@console_script
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``est-renewal``."""
    return COMMAND.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
