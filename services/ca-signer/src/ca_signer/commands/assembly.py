"""Joins what serves operators: the verbs, the listener, the outbox."""

from __future__ import annotations

from dataclasses import dataclass

from ca_signer.announcing import Announcer
from ca_signer.approvals import approval_records
from ca_signer.commands import certificates, incidents, requests, revoking
from ca_signer.commands.executor import Executor
from ca_signer.commands.listener import Listener
from ca_signer.commands.rolling import Rolling
from ca_signer.commands.verbs import table
from ca_signer.crl import RevocationLists
from ca_signer.fetched import FetchCounter
from ca_signer.incidents import Incidents, incident_records
from ca_signer.keystore import SigningAuthority
from ca_signer.outbox import Outbox, command_records
from ca_signer.revocation import Revocations
from estcore.runtime.bus import Bus
from estcore.runtime.database import Database


@dataclass(frozen=True)
class Operations:
    """The jobs that serve operators, and what they share."""

    executor: Executor
    listener: Listener
    outbox: Outbox
    revocations: Revocations
    lists: RevocationLists
    incidents: Incidents
    fetches: FetchCounter


def assemble(
    bus: Bus,
    database: Database,
    announcer: Announcer,
    authority: SigningAuthority,
    *,
    every_s: float,
    crl_lifetime_s: int,
) -> Operations:
    """Join the parts; the result's ``listener``, ``outbox`` and ``lists`` have jobs."""
    lists = RevocationLists(
        database, bus, authority.issuers, lifetime_s=crl_lifetime_s, urls=authority.crl_urls
    )
    revocations = Revocations(database, bus, announcer.source, changed=lists.changed)
    # Revocations first: they wait for nobody.
    parts = [
        revocations.announce,
        command_records(database, announcer),
        approval_records(database, announcer),
        incident_records(database, announcer),
    ]
    outbox = Outbox(parts, every_s=every_s)
    looking = table(certificates.SHOW, certificates.LIST)
    rolling = Rolling(authority).verbs()
    verbs = {
        **looking,
        **requests.verbs(),
        **revoking.verbs(),
        **incidents.verbs(),
        **rolling,
    }
    executor = Executor(database, announcer, authority, verbs, changed=outbox.changed)
    fetches = FetchCounter(bus, database)
    return Operations(
        executor=executor,
        listener=Listener(bus, executor),
        outbox=outbox,
        revocations=revocations,
        lists=lists,
        fetches=fetches,
        incidents=Incidents(database, changed=outbox.changed),
    )
