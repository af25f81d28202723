"""Joins ca-signer by hand and gives it a command line."""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ca_signer import connections, export, metrics, reconcile_command, store_command
from ca_signer.announcing import SERVICE, Announcer
from ca_signer.approvals import Tickets
from ca_signer.batch import Batch
from ca_signer.commands import enrolling
from ca_signer.commands.assembly import assemble
from ca_signer.completeness import Completeness
from ca_signer.cycle import Cycle
from ca_signer.gauges import Gauges
from ca_signer.generations import read_generations
from ca_signer.keystore import Issuer, SigningAuthority, load_issuers, tokens_of
from ca_signer.ledger import Ledger
from ca_signer.ocsp import Responder
from ca_signer.publishing import StatePublisher
from ca_signer.repeats import Repeats
from ca_signer.rotations import Replaced
from ca_signer.rules import read_rules
from ca_signer.secret_store import SecretStore
from ca_signer.settings import SignerSettings
from ca_signer.sweeper import Sweeper
from ca_signer.token.store import opened
from ca_signer.trust import check_cross
from ca_signer.windows import Windows
from ca_signer.worker import Worker
from estcore.clock import SystemClock
from estcore.errors import ConfigurationError
from estcore.messages import topics
from estcore.pki.durations import parse_duration
from estcore.pki.profile import ProfileSet
from estcore.policy.document import PolicyDocument
from estcore.runtime.admin import AdminServer
from estcore.runtime.bus import Bus
from estcore.runtime.database import Database
from estcore.runtime.reload import Reloader, Watched
from estcore.runtime.service import ServiceCommand, run_jobs, stop_on_signals
from estcore.runtime.tracing import Tracing

CLOCK = SystemClock()


def authority(settings: SignerSettings) -> SigningAuthority:
    """Read everything the signer decides and signs with.

    Raises:
        ConfigurationError: anything unreadable, inconsistent or not allowed.
    """
    if settings.software_keys != "allow" and any(i.key_file for i in settings.issuers):
        raise ConfigurationError(
            "keys in files are refused; set software_keys: allow to accept the risk",
            code="keystore.software_refused",
        )
    issuers = load_issuers(settings.issuers)
    check_cross(issuers)
    policy, profiles = rules(settings, issuers)
    return SigningAuthority(
        policy=policy,
        profiles=profiles,
        issuers=issuers,
        groups=settings.groups,
        clock=CLOCK,
        sign_within=dt.timedelta(seconds=settings.sign_within_s),
    )


def rules(
    settings: SignerSettings, issuers: Mapping[str, Issuer]
) -> tuple[PolicyDocument, ProfileSet]:
    """Read policy and profiles, which must fit together and to the issuers.

    Raises:
        ConfigurationError: anything unreadable or inconsistent.
    """
    families = {issuer.family for issuer in issuers.values()}
    return read_rules(
        settings.policy_file,
        settings.profiles_file,
        issuers=[*families, *settings.issuers_elsewhere],
        groups=settings.groups,
        unparted=[i.issuer_id for i in settings.issuers if not i.crl_partitions],
    )


def tickets(settings: SignerSettings) -> Tickets:
    """Return how long requests wait for operators."""
    return Tickets(
        lifetime=dt.timedelta(seconds=settings.approval_lifetime_s),
        retry_after_s=settings.approval_retry_after_s,
        max_waiting=settings.approval_max_waiting,
    )


def check(settings: SignerSettings) -> None:
    """Read what the settings name, as ``run`` would."""
    authority(settings)


async def run(settings: SignerSettings) -> None:
    """Serve until SIGTERM."""
    stop = stop_on_signals()
    deciding = authority(settings)
    tracing = Tracing(settings.telemetry, SERVICE, settings.instance)
    checks: dict[str, Callable[[], bool]] = {"started": lambda: False}
    # Alive before the bus and the database are: liveness never depends on them.
    admin = AdminServer(settings.admin, checks)
    await admin.start()
    try:
        async with opened(tokens_of(deciding.issuers)), connected(settings) as (bus, database):
            await _serve(settings, deciding, tracing, bus, database, admin, checks, stop)
    finally:
        await admin.stop()
        await asyncio.to_thread(tracing.close)


async def _serve(  # noqa: PLR0913, PLR0917 - wiring, told once
    settings: SignerSettings,
    deciding: SigningAuthority,
    tracing: Tracing,
    bus: Bus,
    database: Database,
    admin: AdminServer,
    checks: dict[str, Callable[[], bool]],
    stop: asyncio.Event,
) -> None:
    ledger = Ledger(database, lease_s=settings.lease_s)
    repeats = Repeats(ledger, tickets(settings))
    announcer = Announcer(bus, CLOCK, settings.instance)
    cycle = Cycle(ledger, announcer, deciding.issuers)
    batch = Batch(
        bus=bus,
        ledger=ledger,
        repeats=repeats,
        cycle=cycle,
        announcer=announcer,
        authority=deciding,
        tracing=tracing,
        max_attempts=settings.max_attempts,
    )
    worker = Worker(
        bus,
        database,
        batch,
        issuers=deciding.families,
        batch_size=settings.batch_size,
        in_flight=settings.batches_in_flight,
        linger_s=settings.linger_ms / 1000,
        usable=deciding.can_sign,
    )
    sweeper = Sweeper(ledger, repeats, cycle, announcer, deciding, every_s=settings.sweep_every_s)
    windows = Windows(
        bus,
        ledger,
        announcer,
        CLOCK,
        window_s=settings.window_s,
        settle_s=settings.window_settle_s,
    )
    operations = assemble(
        bus,
        database,
        announcer,
        deciding,
        every_s=settings.sweep_every_s,
        crl_lifetime_s=settings.crl_lifetime_s,
    )
    answering = settings.ocsp and Responder(
        bus, database, deciding, repeats=repeats, cycle=cycle, settings=settings.ocsp
    )
    state = StatePublisher(bus, database, deciding, look_every_s=settings.reload_every_s)
    completeness = Completeness(bus, database)
    checks["ledger_complete"] = lambda: completeness.complete
    if not await completeness.hold(announcer, stop):
        return
    await state.publish()
    checks.pop("started")
    checks.update(
        bus=lambda: bus.ready,
        ledger=lambda: database.ready,
        consumers=lambda: worker.ready,
        generations=lambda: not deciding.lacking,
        keystores=lambda: all(i.keystore.ready for i in deciding.issuers.values()),
    )

    def take_rules() -> None:
        deciding.take(*rules(settings, deciding.issuers))
        state.changed()

    reloader = Reloader(
        [Watched("rules", (settings.policy_file, settings.profiles_file), take_rules)],
        announcer.event,
        metrics.RELOADS,
        every_s=settings.reload_every_s,
    )

    async def fail_readiness(stopping: asyncio.Event) -> None:
        await stopping.wait()
        admin.stopping = True

    await run_jobs(
        [
            fail_readiness,
            completeness.watch,
            state.run,
            reloader.run,
            worker.run,
            sweeper.run,
            windows.run,
            Gauges(database, every_s=settings.count_every_s).run,
            operations.listener.run,
            operations.outbox.run,
            operations.lists.run,
            operations.incidents.run,
            Replaced(bus, database, announcer, deciding, changed=operations.outbox.changed).run,
            operations.fetches.run,
            *([answering.run] if answering else []),
            cycle.keep_leases,
            cycle.keep_marking,
            *(token.watch for token in tokens_of(deciding.issuers)),
        ],
        stop=stop,
        stop_timeout_s=settings.stop_timeout_s,
    )
    await cycle.mark()


def connected(settings: SignerSettings) -> AbstractAsyncContextManager[tuple[Bus, Database]]:
    """Bus and database for as long as the context lasts."""
    return connections.connected(
        SERVICE,
        settings.instance,
        database=settings.database,
        bus=settings.bus,
        issuers=[issuer.issuer_id for issuer in settings.issuers],
    )


async def migrate(settings: SignerSettings) -> None:
    """Bring the ledger's schema and the streams this service owns to this version."""
    families = dict.fromkeys(i.generation_of or i.issuer_id for i in settings.issuers)
    await connections.prepare(
        settings.instance,
        database=settings.database,
        bus=settings.bus,
        issuers=families,
        consumers=topics.SIGNER_CONSUMERS,
    )


async def _export(settings: SignerSettings, arguments: argparse.Namespace) -> None:
    database = await Database.connect(settings.database, SERVICE, connections.SCHEMA)
    try:
        count = await export.export(database, arguments.out)
    finally:
        await database.close()
    sys.stdout.write(f"{count} issuances in {arguments.out}\n")


async def _secret(settings: SignerSettings, arguments: argparse.Namespace) -> None:
    async with connected(settings) as (bus, database):
        store = SecretStore(database, bus, CLOCK)
        if arguments.action == "list":
            for secret_id, not_after, one_time, revoked in await store.listed():
                kind = "one-time" if one_time else "reusable"
                state = "revoked" if revoked else f"until {not_after.isoformat()}"
                sys.stdout.write(f"{secret_id}\t{kind}\t{state}\n")
            return
        if not arguments.id:
            raise ConfigurationError("give --id")
        if arguments.action == "revoke":
            await store.revoke(arguments.id)
            sys.stdout.write(f"{arguments.id} is revoked\n")
            return
        try:
            lifetime = parse_duration(arguments.lifetime)
        except ValueError as exc:
            raise ConfigurationError(f"--lifetime: {exc}") from exc
        secret = await store.create(arguments.id, lifetime=lifetime, one_time=arguments.one_time)
        sys.stdout.write(secret + "\n")


async def _operator(settings: SignerSettings, arguments: argparse.Namespace) -> None:
    deciding = authority(settings)
    csr = enrolling.read_request(arguments.csr)
    async with opened(tokens_of(deciding.issuers)), connected(settings) as (bus, database):
        await Completeness(bus, database).require()
        deciding.generations = await read_generations(database)
        found = enrolling.decide_operator(csr, arguments.issuer or deciding.families[0], deciding)
        ledger = Ledger(database, lease_s=settings.lease_s)
        cycle = Cycle(ledger, Announcer(bus, CLOCK, settings.instance), deciding.issuers)
        certificate = await enrolling.enroll(found, Repeats(ledger), cycle)
    pem = x509.load_der_x509_certificate(certificate).public_bytes(Encoding.PEM)
    arguments.out.write_bytes(pem)
    sys.stdout.write(f"{arguments.out}: certificate of operator {found.intent.service}\n")


async def _reconcile(settings: SignerSettings, arguments: argparse.Namespace) -> None:
    deciding = authority(settings)
    async with connected(settings) as (bus, database):
        announcer = Announcer(bus, CLOCK, settings.instance)
        sources = reconcile_command.Sources(
            arguments.export, arguments.vkey, arguments.issuer, arguments.events
        )
        await reconcile_command.reconcile(bus, database, deciding, announcer, sources)


def main() -> None:
    """Everything but ``ca-signer ca …``."""
    command = ServiceCommand(
        SERVICE, prefix="CA_SIGNER", settings=SignerSettings, run=run, migrate=migrate, check=check
    )
    out = command.verb("export", "write the ledger as JSON lines", _export)
    out.add_argument("--out", type=Path, required=True)
    secret = command.verb("secret", "make, list or revoke enrollment secrets", _secret)
    secret.add_argument("action", choices=["create", "list", "revoke"])
    secret.add_argument("--id")
    secret.add_argument("--lifetime", default="30d")
    secret.add_argument("--one-time", action="store_true")
    lost = command.verb("reconcile", "complete a restored ledger from the audit log", _reconcile)
    lost.add_argument("--export", type=Path, required=True, help="from est-audit export")
    lost.add_argument("--vkey", required=True, help="verifier key of the log, or a file with it")
    lost.add_argument(
        "--issuer",
        action="append",
        default=[],
        metavar="ID=FILE",
        help="certificate of an issuer that is not configured here, PEM",
    )
    lost.add_argument(
        "--events",
        action="store_true",
        help="believe the events on the bus where the log was lost too",
    )
    store_command.add(command, connected, CLOCK)
    operator = command.verb("operator", "issue the certificate of an operator", _operator)
    operator.add_argument("action", choices=["enroll"])
    operator.add_argument("--csr", type=Path, required=True, help="PKCS#10, PEM or DER")
    operator.add_argument("--out", type=Path, required=True, help="where the certificate goes")
    operator.add_argument("--issuer", help="issuer id; default: the first of the settings")
    sys.exit(command.main())
