"""Joins what serves operators: the verbs, the listener, the outbox."""

from __future__ import annotations

from dataclasses import dataclass

from ca_signer.campaigns.job import CampaignJob
from ca_signer.campaigns.publication import campaign_sources
from ca_signer.issuance.approvals import approval_records
from ca_signer.issuers.trust_adoption import TrustAdoptionTracker
from ca_signer.operators.executor import CommandExecutor
from ca_signer.operators.listener import CommandListener
from ca_signer.operators.verb import table
from ca_signer.operators.verbs import (
    approvals,
    audit_log,
    bulk_revocation,
    campaigns,
    certificates,
    revocation,
    secrets,
)
from ca_signer.operators.verbs.rollover import Rolling
from ca_signer.publishing.outbox import Outbox, command_records
from ca_signer.publishing.publisher import EventPublisher
from ca_signer.publishing.secret_verifiers import SecretPublisher
from ca_signer.revocation.bulk import BulkRevocationJob, bulk_revocation_records
from ca_signer.revocation.crl import CRLPublisher
from ca_signer.revocation.publisher import RevocationPublisher
from ca_signer.signing.issuers import SigningContext
from estcore.runtime.bus import Bus
from estcore.runtime.database import Database
from estcore.runtime.notices import Notices


@dataclass(frozen=True)
class Operations:
    """The jobs that serve operators, and what they share."""

    executor: CommandExecutor
    listener: CommandListener
    audit_listener: CommandListener
    outbox: Outbox
    revocations: RevocationPublisher
    lists: CRLPublisher
    bulk_revocations: BulkRevocationJob
    campaigns: CampaignJob
    fetches: TrustAdoptionTracker


def assemble(
    bus: Bus,
    database: Database,
    publisher: EventPublisher,
    decision_context: SigningContext,
    *,
    every_s: float,
    crl_lifetime_s: int,
    notices: Notices | None = None,
) -> Operations:
    """Join the parts; the result's ``listener``, ``outbox`` and ``lists`` have jobs.

    Without ``notices``, campaigns and bulk revocations are looked for every second.
    """
    lists = CRLPublisher(
        database,
        bus,
        decision_context.issuers,
        lifetime_s=crl_lifetime_s,
        urls=decision_context.crl_urls,
    )
    revocations = RevocationPublisher(
        database, bus, publisher.audit_records.source, changed=lists.changed
    )
    # Revocations first: they depend on no other source.
    sources = [
        revocations.source(),
        SecretPublisher(database, bus, decision_context.clock).source(),
        command_records(publisher),
        approval_records(publisher),
        *bulk_revocation_records(publisher),
        *campaign_sources(publisher),
    ]
    outbox = Outbox(database, sources, every_s=every_s)
    looking = table(certificates.SHOW, certificates.LIST)
    rolling = Rolling(decision_context).verbs()
    verbs = {
        **looking,
        **approvals.verbs(),
        **revocation.verbs(),
        **bulk_revocation.verbs(),
        **campaigns.CampaignVerbs(decision_context).verbs(),
        **secrets.verbs(),
        **rolling,
    }
    executor = CommandExecutor(
        database=database,
        publisher=publisher,
        decision_context=decision_context,
        verbs=verbs,
        changed=outbox.changed,
    )
    reading = CommandExecutor(
        database=database,
        publisher=publisher,
        decision_context=decision_context,
        verbs=audit_log.verbs(),
        service=audit_log.SERVICE,
        changed=outbox.changed,
    )
    fetches = TrustAdoptionTracker(bus, database)
    return Operations(
        executor=executor,
        listener=CommandListener(bus, executor),
        audit_listener=CommandListener(bus, reading, of_anyone=False),
        outbox=outbox,
        revocations=revocations,
        lists=lists,
        fetches=fetches,
        bulk_revocations=BulkRevocationJob(
            database,
            changed=outbox.changed,
            notice=notices.of("bulk_revocation") if notices else None,
        ),
        campaigns=CampaignJob(
            database, changed=outbox.changed, notice=notices.of("campaign") if notices else None
        ),
    )
