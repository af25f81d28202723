"""Composition root of ca-signer: join the parts, serve until SIGTERM."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from ca_signer import connections, metrics
from ca_signer.campaigns.gauges import CampaignGauges
from ca_signer.frontend_state import FrontendStatePublisher
from ca_signer.issuance.approvals import ApprovalStore
from ca_signer.issuance.consumer import RequestConsumer
from ca_signer.issuance.idempotency import IntendedIssuances, RequestResolver
from ca_signer.issuance.policy_files import Rules, read_groups, read_rules, rules_files
from ca_signer.issuance.request_handler import RequestHandler
from ca_signer.issuers.cacerts import check_cross
from ca_signer.ledger.inventory_metrics import InventoryMetrics
from ca_signer.ledger.issuances import IssuanceStore
from ca_signer.ledger.refusals import RefusalStore
from ca_signer.managed.fetches import RenewedCertificates
from ca_signer.managed.handler import ManagedRenewals
from ca_signer.managed.key_generator import KeyGenerator
from ca_signer.managed.store import ManagedStore
from ca_signer.model import IssuanceIntent
from ca_signer.operators.assembly import Operations, assemble
from ca_signer.publishing.publisher import EventPublisher
from ca_signer.publishing.reconciliation_windows import ReconciliationWindows
from ca_signer.recovery.ledger_check import StaleLedgerCheck
from ca_signer.revocation.after_rotation import RevokeAfterRotation
from ca_signer.revocation.ocsp_responder import OCSPResponder
from ca_signer.settings import PREFIX, SERVICE, SignerSettings
from ca_signer.signing.batch_handler import BatchHandler
from ca_signer.signing.cycle import IssuanceCycle
from ca_signer.signing.hsm.token import opened
from ca_signer.signing.issuers import SigningContext, SigningIssuer, load_issuers, tokens_of
from ca_signer.signing.sweeper import Sweeper
from estcore.clock import SystemClock
from estcore.errors import ConfigurationError
from estcore.messages import topics
from estcore.policy.groups import Groups
from estcore.runtime.admin import AdminServer
from estcore.runtime.boot import Boot
from estcore.runtime.bus import Bus
from estcore.runtime.certificate_expiry import CertificateExpiry
from estcore.runtime.database import Database
from estcore.runtime.message_keys import message_keys
from estcore.runtime.notices import Notices
from estcore.runtime.reload import Reloader, Stamps, Watched, file_stamps
from estcore.runtime.service import Job, done_or_stop, run_jobs, stop_on_signals
from estcore.runtime.stream_lengths import StreamLengths
from estcore.runtime.stream_probe import StreamProbe
from estcore.runtime.tracing import Tracing

CLOCK = SystemClock()


def load_signing_context(settings: SignerSettings) -> SigningContext:
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
    policy, profiles, groups = rules(settings, issuers, settings.groups)
    return SigningContext(
        policy=policy,
        profiles=profiles,
        issuers=issuers,
        groups=groups,
        clock=CLOCK,
        sign_within=dt.timedelta(seconds=settings.sign_within_s),
    )


def rules(settings: SignerSettings, issuers: Mapping[str, SigningIssuer], groups: Groups) -> Rules:
    """Read policy and profiles, which must fit together, to the issuers and to the groups.

    Raises:
        ConfigurationError: anything unreadable or inconsistent.
    """
    families = {issuer.family for issuer in issuers.values()}
    return read_rules(
        settings,
        issuers=[*families, *settings.remote_issuers],
        groups=groups,
        unparted=[i.issuer_id for i in settings.issuers if not i.crl_partitions],
    )


def check(settings: SignerSettings) -> None:
    """Read what the settings name, as ``run`` would."""
    load_signing_context(settings)


@dataclass(frozen=True)
class SharedParts:
    """What every other part uses."""

    settings: SignerSettings
    decision_context: SigningContext
    tracing: Tracing
    bus: Bus
    database: Database
    publisher: EventPublisher
    notices: Notices
    rules_stamps: Stamps = ()


@dataclass(frozen=True)
class IssuingParts:
    """What issues certificates."""

    ledger: IssuanceStore
    resolver: RequestResolver[IssuanceIntent]
    cycle: IssuanceCycle
    worker: RequestConsumer
    sweeper: Sweeper
    managed: ManagedRenewals
    renewed: RenewedCertificates


async def run(settings: SignerSettings) -> None:
    """Serve until SIGTERM."""
    stop = stop_on_signals()
    # Before they are read: a change while this signer waits for its ledger is not missed.
    stamps = file_stamps(rules_files(settings))
    decision_context = load_signing_context(settings)
    tracing = Tracing(settings.telemetry, SERVICE, settings.instance)
    checks: dict[str, Callable[[], bool]] = {"started": lambda: False}
    # Alive before the bus and the database are: liveness never depends on them.
    admin = AdminServer(settings.admin, checks)
    await admin.start()
    boot = Boot.begin(settings.state_folder)
    try:
        async with (
            opened(tokens_of(decision_context.issuers)),
            connected(settings) as (bus, database),
        ):
            publisher = EventPublisher(bus, CLOCK, settings.instance, boot)
            await publisher.own.begin()
            notices = Notices(settings.database, SERVICE, connections.SCHEMA)
            shared = SharedParts(
                settings, decision_context, tracing, bus, database, publisher, notices, stamps
            )
            await _serve(shared, admin, checks, stop)
    finally:
        await admin.stop()
        boot.close()
        await asyncio.to_thread(tracing.close)


async def _serve(
    shared: SharedParts,
    admin: AdminServer,
    checks: dict[str, Callable[[], bool]],
    stop: asyncio.Event,
) -> None:
    """Sign once the ledger is known to be complete and front ends know this signer's state."""
    issuing = _issuing_parts(shared)
    operations = assemble(
        shared.bus,
        shared.database,
        shared.publisher,
        shared.decision_context,
        every_s=shared.settings.sweep_every_s,
        crl_lifetime_s=shared.settings.crl_lifetime_s,
        notices=shared.notices,
    )
    frontend_state = FrontendStatePublisher(
        shared.bus,
        shared.database,
        shared.decision_context,
        look_every_s=shared.settings.reload_every_s,
        notice=shared.notices.of("generation", "rollover"),
    )
    completeness = StaleLedgerCheck(shared.bus, shared.database, shared.decision_context.issuers)
    checks["ledger_complete"] = lambda: completeness.complete
    if not await completeness.hold(shared.publisher, stop):
        return
    if not await done_or_stop(stop, frontend_state.publish, "publish state"):
        return
    checks.pop("started")
    streams = StreamProbe(shared.bus, SERVICE)
    checks.update(_ready_checks(shared, issuing.worker, streams))

    admin.before_metrics(_stream_lengths(shared).refresh)

    async def fail_readiness(stopping: asyncio.Event) -> None:
        await stopping.wait()
        admin.stopping = True

    await run_jobs(
        [
            fail_readiness,
            shared.publisher.own.run,
            completeness.watch,
            streams.run,
            CertificateExpiry(shared.settings).run,
            shared.database.watch,
            shared.notices.run,
            frontend_state.run,
            _reloader(shared, frontend_state).run,
            *_issuing_jobs(shared, issuing),
            *_operations_jobs(shared, operations),
            *_ocsp_jobs(shared, issuing),
        ],
        stop=stop,
        stop_timeout_s=shared.settings.stop_timeout_s,
    )
    await issuing.cycle.flush_unpublished()
    await issuing.cycle.flush_published_marks()


def _issuing_parts(shared: SharedParts) -> IssuingParts:
    settings, decision_context = shared.settings, shared.decision_context
    ledger = IssuanceStore(shared.database, lease_s=settings.lease_s)
    refusals = RefusalStore(shared.database)
    resolver = RequestResolver(ledger, IntendedIssuances(ledger), ApprovalStore.of(settings))
    cycle = IssuanceCycle(ledger, shared.publisher, decision_context.issuers, shared.tracing)
    handler = RequestHandler(
        bus=shared.bus,
        ledger=ledger,
        refusals=refusals,
        resolver=resolver,
        source=cycle,
        publisher=shared.publisher,
        decision_context=decision_context,
        max_attempts=settings.max_attempts,
    )
    worker = RequestConsumer(
        shared.bus,
        shared.database,
        BatchHandler(handler, ledger, cycle, shared.tracing),
        issuers=decision_context.families,
        batch_size=settings.batch_size,
        in_flight=settings.batches_in_flight,
        linger_s=settings.linger_ms / 1000,
        usable=decision_context.can_sign,
    )
    sweeper = Sweeper(
        ledger=ledger,
        refusals=refusals,
        cycle=cycle,
        publisher=shared.publisher,
        decision_context=decision_context,
        every_s=settings.sweep_every_s,
    )
    store = ManagedStore(shared.database)
    managed = ManagedRenewals(
        bus=shared.bus,
        ledger=ledger,
        store=store,
        resolver=resolver,
        cycle=cycle,
        publisher=shared.publisher,
        key_generator=KeyGenerator(decision_context, resolver, cycle),
        decision_context=decision_context,
        max_attempts=settings.max_attempts,
    )
    renewed = RenewedCertificates(
        bus=shared.bus, ledger=ledger, store=store, decision_context=decision_context
    )
    return IssuingParts(ledger, resolver, cycle, worker, sweeper, managed, renewed)


def _ready_checks(
    shared: SharedParts, worker: RequestConsumer, streams: StreamProbe
) -> dict[str, Callable[[], bool]]:
    context = shared.decision_context
    return {
        "bus": lambda: shared.bus.ready,
        "streams": lambda: streams.ready,
        "ledger": lambda: shared.database.available,
        "clock": lambda: shared.database.clock.right,
        "consumers": lambda: worker.ready,
        "generations": lambda: not context.missing_issuers,
        "keystores": lambda: all(i.keystore.ready for i in context.issuers.values()),
    }


def _stream_lengths(shared: SharedParts) -> StreamLengths:
    families = shared.decision_context.families
    consumers = [c for family in families for c in topics.signer_consumers(family)]
    return StreamLengths(
        shared.bus, topics.owned_by(SERVICE), [*consumers, *topics.SIGNER_CONSUMERS]
    )


def _reloader(shared: SharedParts, frontend_state: FrontendStatePublisher) -> Reloader:
    settings, decision_context = shared.settings, shared.decision_context

    def replace_rules() -> None:
        groups = read_groups(settings, PREFIX)
        decision_context.replace_rules(*rules(settings, decision_context.issuers, groups))
        frontend_state.changed()

    return Reloader(
        [
            Watched("rules", rules_files(settings), replace_rules, shared.rules_stamps),
            message_keys(shared.bus, settings.bus, changed=frontend_state.changed),
        ],
        shared.publisher.own.report,
        metrics.RELOADS,
        every_s=settings.reload_every_s,
    )


def _issuing_jobs(shared: SharedParts, issuing: IssuingParts) -> list[Job]:
    settings = shared.settings
    windows = ReconciliationWindows(
        bus=shared.bus,
        ledger=issuing.ledger,
        publisher=shared.publisher,
        clock=CLOCK,
        length=dt.timedelta(seconds=settings.window_s),
        grace=dt.timedelta(seconds=settings.window_settle_s),
    )
    return [
        issuing.worker.run,
        issuing.sweeper.run,
        issuing.managed.run,
        issuing.renewed.run,
        windows.run,
        InventoryMetrics(shared.database, every_s=settings.count_every_s).run,
        issuing.cycle.keep_leases,
        issuing.cycle.keep_marking,
        *(token.watch for token in tokens_of(shared.decision_context.issuers)),
    ]


def _operations_jobs(shared: SharedParts, operations: Operations) -> list[Job]:
    after_rotation = RevokeAfterRotation(
        shared.bus,
        shared.database,
        shared.publisher,
        shared.decision_context,
        changed=operations.outbox.changed,
    )
    return [
        operations.listener.run,
        operations.audit_listener.run,
        operations.outbox.run,
        operations.lists.run,
        operations.bulk_revocations.run,
        operations.campaigns.run,
        CampaignGauges(shared.database, every_s=shared.settings.count_every_s).run,
        operations.fetches.run,
        after_rotation.run,
    ]


def _ocsp_jobs(shared: SharedParts, issuing: IssuingParts) -> list[Job]:
    if shared.settings.ocsp is None:
        return []
    responder = OCSPResponder(
        shared.bus,
        shared.database,
        shared.decision_context,
        resolver=issuing.resolver,
        cycle=issuing.cycle,
        settings=shared.settings.ocsp,
        issuing_waits=lambda: issuing.worker.busy,
    )
    return [responder.run]


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
