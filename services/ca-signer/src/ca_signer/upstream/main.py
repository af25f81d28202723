"""Composition root and command line of ca-signer-upstream.

It uses the ledger of ca-signer and runs as a process of its own: it speaks HTTP to upstream CAs,
so it may load no CA key. A ca-signer always runs beside it for everything that is not specific to
upstream issuers: secrets, profiles, reconciliation windows, approvals, publishing revocations.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial

from cryptography.hazmat.primitives.serialization import Encoding

from ca_signer import connections, metrics
from ca_signer.issuance.decision_context import DecisionContext
from ca_signer.issuance.policy_files import Rules, read_groups, read_rules, rules_files
from ca_signer.operators.listener import CommandListener
from ca_signer.recovery.ledger_check import StaleLedgerCheck
from ca_signer.revocation.publisher import RevocationPublisher
from ca_signer.settings import SERVICE
from ca_signer.upstream.assembly import Issuers, Parts, assemble
from ca_signer.upstream.issuer import UpstreamIssuer, load_upstreams, opened
from ca_signer.upstream.plugin import Retryable, Unknown
from ca_signer.upstream.settings import UpstreamSettings
from estcore.clock import SystemClock
from estcore.errors import ConfigurationError, IssuerUnavailable, Unavailable
from estcore.messages import topics
from estcore.messages.envelope import encode
from estcore.messages.state import CACertificates
from estcore.messages.topics import Consumer, signer_consumers
from estcore.policy.groups import Groups
from estcore.runtime.admin import AdminServer
from estcore.runtime.boot import Boot
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.certificate_expiry import CertificateExpiry
from estcore.runtime.console import console_script
from estcore.runtime.database import Database
from estcore.runtime.logs import fields
from estcore.runtime.message_keys import message_keys
from estcore.runtime.reload import Reloader, Stamps, Watched, file_stamps
from estcore.runtime.service import (
    Job,
    ServiceCommand,
    done_or_stop,
    run_jobs,
    sleep_or_stop,
    stop_on_signals,
)
from estcore.runtime.stream_lengths import StreamLengths
from estcore.runtime.stream_probe import StreamProbe
from estcore.runtime.terminal import write_line
from estcore.runtime.tracing import Tracing

COMMAND = "ca-signer-upstream"
_PREFIX = "CA_SIGNER_UPSTREAM"
CLOCK = SystemClock()
_STATE_EVERY_S = 300

log = logging.getLogger(__name__)


def load_decision_context(settings: UpstreamSettings, issuers: Issuers) -> DecisionContext:
    """Read everything requests are decided with.

    Raises:
        ConfigurationError: anything unreadable, inconsistent or not allowed.
    """
    policy, profiles, groups = _rules(settings, issuers, settings.groups)
    return DecisionContext(
        policy=policy,
        profiles=profiles,
        issuers=issuers,
        groups=groups,
        clock=CLOCK,
        sign_within=dt.timedelta(seconds=settings.sign_within_s),
    )


def _rules(settings: UpstreamSettings, issuers: Issuers, groups: Groups) -> Rules:
    return read_rules(settings, issuers=[*issuers, *settings.remote_issuers], groups=groups)


def check(settings: UpstreamSettings) -> None:
    """Read what the settings name, as ``run`` would; no upstream CA is called."""
    load_decision_context(settings, load_upstreams(settings.issuers))


async def run(settings: UpstreamSettings) -> None:
    """Serve until SIGTERM."""
    stop = stop_on_signals()
    # Before they are read: a change while this process waits for its ledger is not missed.
    stamps = file_stamps(rules_files(settings))
    issuers = load_upstreams(settings.issuers)
    decision_context = load_decision_context(settings, issuers)
    tracing = Tracing(settings.telemetry, SERVICE, settings.instance)
    checks: dict[str, Callable[[], bool]] = {"started": lambda: False}
    admin = AdminServer(settings.admin, checks)
    await admin.start()
    boot = Boot.begin(settings.state_folder)
    try:
        async with opened(issuers), connected(settings) as (bus, database):
            parts = assemble(settings, bus, database, issuers, decision_context, boot)
            await parts.publisher.own.begin()
            completeness = StaleLedgerCheck(
                bus, database, issuers, services=(SERVICE, f"{SERVICE}-upstream")
            )
            checks["ledger_complete"] = lambda: completeness.complete
            if not await completeness.hold(parts.publisher, stop):
                return
            publish = partial(publish_state, bus, database, issuers)
            if not await done_or_stop(stop, publish, "publish state"):
                return
            streams = StreamProbe(bus, f"{SERVICE}-upstream")
            checks.pop("started")
            checks.update(
                bus=lambda: bus.ready,
                streams=lambda: streams.ready,
                ledger=lambda: database.available,
                clock=lambda: database.clock.right,
                consumers=lambda: parts.worker.ready,
                upstreams=lambda: all(issuer.usable for issuer in issuers.values()),
            )
            admin.before_metrics(StreamLengths(bus, (), _consumers(issuers)).refresh)
            jobs = [
                completeness.watch,
                streams.run,
                CertificateExpiry(settings).run,
                database.watch,
                *_state_jobs(settings, parts, bus, database, stamps),
            ]
            await _serve(settings, parts, bus, admin, stop, jobs)
    finally:
        await admin.stop()
        boot.close()
        await asyncio.to_thread(tracing.close)


def _consumers(issuers: Iterable[str]) -> list[Consumer]:
    return [consumer for issuer in issuers for consumer in signer_consumers(issuer)]


async def _serve(
    settings: UpstreamSettings,
    parts: Parts,
    bus: Bus,
    admin: AdminServer,
    stop: asyncio.Event,
    jobs: Sequence[Job],
) -> None:
    async def fail_readiness(stopping: asyncio.Event) -> None:
        await stopping.wait()
        admin.stopping = True

    await run_jobs(
        [
            fail_readiness,
            parts.publisher.own.run,
            *jobs,
            parts.worker.run,
            parts.handler.attend,
            parts.sweeper.run,
            parts.sweeper.watch,
            parts.revocations.run,
            parts.outbox.run,
            CommandListener(bus, parts.executor).run,
        ],
        stop=stop,
        stop_timeout_s=settings.stop_timeout_s,
    )


def _state_jobs(
    settings: UpstreamSettings, parts: Parts, bus: Bus, database: Database, stamps: Stamps
) -> list[Job]:
    """Reload changed files, and keep what front ends need published."""
    changed = asyncio.Event()
    reloader = Reloader(
        [
            *_watched(settings, parts, changed, stamps),
            message_keys(bus, settings.bus, changed=changed.set),
        ],
        parts.publisher.own.report,
        metrics.RELOADS,
        every_s=settings.reload_every_s,
    )

    async def keep_published(stopping: asyncio.Event) -> None:
        # The stream may have been lost or restored; front ends ignore what they know already.
        waited = 0.0
        while not await sleep_or_stop(stopping, settings.reload_every_s):
            waited += settings.reload_every_s
            if not changed.is_set() and waited < _STATE_EVERY_S:
                continue
            changed.clear()
            waited = 0.0
            try:
                await publish_state(bus, database, parts.issuers)
            except Unavailable as exc:
                log.warning("state not published", extra=fields(code=exc.code))

    return [keep_published, reloader.run]


def _watched(
    settings: UpstreamSettings, parts: Parts, changed: asyncio.Event, stamps: Stamps
) -> list[Watched]:
    """What may change while running: rules, the upstream CAs' certificates, files of plug-ins."""

    def take_rules() -> None:
        groups = read_groups(settings, _PREFIX)
        parts.decision_context.replace_rules(*_rules(settings, parts.issuers, groups))

    watched = [Watched("rules", rules_files(settings), take_rules, stamps)]
    for issuer in parts.issuers.values():
        own = issuer.settings

        def take(issuer: UpstreamIssuer = issuer) -> None:
            issuer.take_certificates()
            parts.decision_context.templates.clear()
            changed.set()

        watched.append(
            Watched(f"issuer {own.issuer_id}", (own.certificate_file, own.chain_file), take)
        )
        if issuer.plugin.files:
            files = tuple(issuer.plugin.files)
            watched.append(Watched(f"TLS of {own.issuer_id}", files, issuer.plugin.reload))
    return watched


async def publish_state(bus: Bus, database: Database, issuers: Issuers) -> None:
    """Publish the CA certificates and revoked serial numbers of our issuers."""
    now = CLOCK.now()
    await bus.publish_confirmed(
        [
            Outgoing(
                topics.cacerts_topic(issuer.issuer_id),
                encode(
                    CACertificates(
                        issuer_id=issuer.issuer_id,
                        updated_at=now,
                        chain=tuple(
                            c.public_bytes(Encoding.DER)
                            for c in (issuer.certificate.certificate, *issuer.chain)
                        ),
                    )
                ),
            )
            for issuer in issuers.values()
        ]
    )
    revocations = RevocationPublisher(database, bus, SERVICE)
    for issuer_id in issuers:
        await revocations.publish(issuer_id)


def connected(settings: UpstreamSettings) -> AbstractAsyncContextManager[tuple[Bus, Database]]:
    """Bus and database for as long as the context lasts."""
    return connections.connected(
        COMMAND,
        settings.instance,
        database=settings.database,
        bus=settings.bus,
        issuers=[issuer.issuer_id for issuer in settings.issuers],
    )


async def migrate(settings: UpstreamSettings) -> None:
    """Bring the ledger's schema to this version, and make the consumers of our issuers."""
    await connections.prepare(
        settings.instance,
        database=settings.database,
        bus=settings.bus,
        issuers=[issuer.issuer_id for issuer in settings.issuers],
    )


_COMMAND = ServiceCommand(
    COMMAND,
    about="Issues certificates of upstream CAs, whose keys it does not hold.",
    distribution="estsuite-signer",
    prefix=_PREFIX,
    settings=UpstreamSettings,
    run=run,
    migrate=migrate,
    check=check,
)


@_COMMAND.verb("probe", "Compare each upstream CA's certificate with the settings; issue nothing.")
async def _probe(settings: UpstreamSettings) -> None:
    issuers = load_upstreams(settings.issuers)
    async with opened(issuers):
        for issuer in issuers.values():
            try:
                same = await issuer.shows_itself()
            except (Retryable, Unknown) as exc:
                raise IssuerUnavailable(f"{issuer.issuer_id}: {exc.reason}", code=exc.code) from exc
            verdict = "shows the issuer that is configured" if same else "shows ANOTHER issuer"
            write_line(f"{issuer.issuer_id}: {verdict}")
            if not same:
                raise ConfigurationError(
                    f"{issuer.issuer_id}: certificate_file is not the upstream CA's certificate",
                    code="upstream.issuer_differs",
                )


@console_script
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``ca-signer-upstream``."""
    return _COMMAND.main(arguments)
