"""Wiring of ca-signer-upstream: its parts and how they are joined."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass

from cryptography import x509

from ca_signer.issuance.approvals import ApprovalStore
from ca_signer.issuance.consumer import RequestConsumer
from ca_signer.issuance.decision_context import DecisionContext
from ca_signer.issuance.idempotency import RequestResolver
from ca_signer.issuance.request_handler import RequestHandler
from ca_signer.ledger.issuances import IssuanceStore
from ca_signer.ledger.refusals import RefusalStore
from ca_signer.operators.executor import CommandExecutor
from ca_signer.publishing.outbox import Outbox, command_records
from ca_signer.publishing.publisher import EventPublisher
from ca_signer.upstream import operator_verbs
from ca_signer.upstream.audit_records import revocation_records, submission_records
from ca_signer.upstream.cycle import UpstreamCycle
from ca_signer.upstream.idempotency import OpenSubmissions
from ca_signer.upstream.issuer import UpstreamIssuer
from ca_signer.upstream.request_handler import UpstreamRequestHandler
from ca_signer.upstream.revocation import UpstreamRevocations
from ca_signer.upstream.settings import UpstreamSettings
from ca_signer.upstream.submissions import Submission, Submissions
from ca_signer.upstream.sweeper import UpstreamSweeper
from estcore.clock import Clock
from estcore.errors import Conflict
from estcore.runtime.boot import Boot
from estcore.runtime.bus import Bus
from estcore.runtime.database import Database

_BATCH = 16
Issuers = dict[str, UpstreamIssuer]


@dataclass(frozen=True)
class Parts:
    """What a process is made of."""

    issuers: Issuers
    decision_context: DecisionContext
    publisher: EventPublisher
    submissions: Submissions
    resolver: RequestResolver[Submission]
    cycle: UpstreamCycle
    handler: UpstreamRequestHandler
    worker: RequestConsumer
    outbox: Outbox
    executor: CommandExecutor
    revocations: UpstreamRevocations
    sweeper: UpstreamSweeper


def assemble(
    settings: UpstreamSettings,
    bus: Bus,
    database: Database,
    issuers: Issuers,
    decision_context: DecisionContext,
    boot: Boot | None = None,
) -> Parts:
    """Join the parts."""
    ledger = IssuanceStore(database, lease_s=settings.lease_s)
    submissions = Submissions(database, lease_s=settings.lease_s)
    publisher = EventPublisher(bus, decision_context.clock, settings.instance, boot)
    outbox = _outbox(settings, database, publisher)
    pending_for = dt.timedelta(seconds=settings.pending_lifetime_s)
    resolver = _resolver(settings, ledger, issuers, decision_context.clock)
    cycle = UpstreamCycle(
        submissions=submissions,
        ledger=ledger,
        publisher=publisher,
        issuers=issuers,
        clock=decision_context.clock,
        unknown_retry_after_s=settings.unknown_retry_after_s,
        changed=outbox.changed,
    )
    handler = UpstreamRequestHandler(
        RequestHandler(
            bus=bus,
            ledger=ledger,
            refusals=RefusalStore(database),
            resolver=resolver,
            source=cycle,
            publisher=publisher,
            decision_context=decision_context,
            max_attempts=settings.max_attempts,
        ),
        cycle,
    )
    worker = _worker(bus, database, handler, issuers)
    revocations = UpstreamRevocations(
        database,
        issuers,
        lease_s=settings.lease_s,
        every_s=settings.sweep_every_s,
        changed=outbox.changed,
    )
    sweeper = UpstreamSweeper(
        submissions,
        cycle,
        issuers,
        pending_for=pending_for,
        every_s=settings.sweep_every_s,
        changed=outbox.changed,
    )
    verbs = operator_verbs.verbs(_response_check(issuers, cycle), retry_within=pending_for)
    executor = CommandExecutor(
        database=database,
        publisher=publisher,
        decision_context=decision_context,
        verbs=verbs,
        changed=outbox.changed,
    )
    return Parts(
        issuers,
        decision_context,
        publisher,
        submissions,
        resolver,
        cycle,
        handler,
        worker,
        outbox,
        executor,
        revocations,
        sweeper,
    )


def _outbox(settings: UpstreamSettings, database: Database, publisher: EventPublisher) -> Outbox:
    return Outbox(
        database,
        [
            command_records(publisher),
            submission_records(publisher),
            revocation_records(publisher),
        ],
        every_s=settings.sweep_every_s,
    )


def _resolver(
    settings: UpstreamSettings, ledger: IssuanceStore, issuers: Issuers, clock: Clock
) -> RequestResolver[Submission]:
    open_submissions = OpenSubmissions(
        clock,
        lease=ledger.lease,
        repeatable_s=lambda issuer: issuers[issuer].plugin.repeatable_s,
        unknown_retry_after_s=settings.unknown_retry_after_s,
    )
    return RequestResolver(ledger, open_submissions, ApprovalStore.of(settings))


def _worker(
    bus: Bus, database: Database, handler: UpstreamRequestHandler, issuers: Issuers
) -> RequestConsumer:
    places = sum(issuer.settings.concurrency for issuer in issuers.values())
    return RequestConsumer(
        bus,
        database,
        handler,
        issuers=list(issuers),
        batch_size=_BATCH,
        in_flight=max(4, -(-2 * places // _BATCH)),
        usable=lambda issuer: issuers[issuer].usable,
    )


def _response_check(
    issuers: Issuers, cycle: UpstreamCycle
) -> Callable[[Submission, bytes], x509.Certificate]:
    """Return the check of a certificate that an operator enters for a submission."""

    def check_response(submission: Submission, der: bytes) -> x509.Certificate:
        issuer = issuers.get(submission.issuer_id)
        if issuer is None:
            raise Conflict("another process serves its issuer", code="submission.other_process")
        return cycle.checked(issuer, submission, der)

    return check_response
