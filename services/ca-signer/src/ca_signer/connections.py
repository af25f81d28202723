"""Bus and ledger, as ca-signer and ca-signer-upstream reach and prepare them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from ca_signer.settings import SERVICE
from estcore.errors import ConfigurationError
from estcore.messages import topics
from estcore.runtime.bus import Bus
from estcore.runtime.database import Database
from estcore.runtime.migrations import migrate as migrate_schema
from estcore.runtime.settings import BusSettings, DatabaseSettings, read_secret
from estcore.runtime.topology import declare

SCHEMA = "ca_signer"
SCRIPTS = Path(__file__).parent / "migrations"
READER_TABLES = ("issuance", "crl")
"""What ``check-store`` reads: no secrets' verifiers, no commands, no requests."""


@asynccontextmanager
async def connected(
    command: str,
    instance: str,
    *,
    database: DatabaseSettings,
    bus: BusSettings,
    issuers: Iterable[str],
) -> AsyncIterator[tuple[Bus, Database]]:
    """Bus and ledger for as long as the context lasts; the rights on the bus are tried.

    Raises:
        LedgerUnavailable, BusUnavailable: not reached.
        ConfigurationError: a right is missing, or a secret cannot be read.
    """
    ledger = await Database.connect(database, command, SCHEMA)
    rights = [
        topics.audit_issue_topic(SERVICE),
        topics.audit_refusal_topic(SERVICE, instance),
        topics.ISSUED_TOPIC,
        *map(topics.cacerts_topic, issuers),
    ]
    bus_client = await Bus.connect(bus, command, instance, rights=rights)
    try:
        yield bus_client, ledger
    finally:
        await bus_client.close()
        await ledger.close()


@asynccontextmanager
async def connected_to_read(
    instance: str, *, database: DatabaseSettings, bus: BusSettings
) -> AsyncIterator[tuple[Bus, Database]]:
    """Bus and ledger for a verb that reads the ledger and puts on record that it did.

    A database role that may read (``READER_TABLES``) and an NKey that may publish one topic are
    enough; those of ca-signer serve as well, as the inbox lies within ca-signer's.

    Raises:
        LedgerUnavailable, BusUnavailable: not reached.
        ConfigurationError: the right is missing, or a secret cannot be read.
    """
    ledger = await Database.connect(database, f"{SERVICE}-check-store", SCHEMA)
    try:
        rights = [topics.audit_refusal_topic(SERVICE, instance)]
        bus_client = await Bus.connect(bus, f"{SERVICE}.checkstore", instance, rights=rights)
        try:
            yield bus_client, ledger
        finally:
            await bus_client.close()
    finally:
        await ledger.close()


async def prepare(
    instance: str,
    *,
    database: DatabaseSettings,
    bus: BusSettings,
    issuers: Iterable[str],
    consumers: Sequence[topics.Consumer] = (),
) -> None:
    """Bring the ledger's schema, the streams, the issuers' and other consumers to this version.

    Raises:
        ConfigurationError: what is needed to migrate is not configured.
    """
    await migrate_schema(database, schema=SCHEMA, scripts=SCRIPTS, readable=READER_TABLES)
    if bus.migration_nkey_seed_file is None:
        raise ConfigurationError("bus.migration_nkey_seed_file is needed to migrate")
    seed = read_secret(bus.migration_nkey_seed_file, "the NKey seed for migrations")
    bus_client = await Bus.connect(bus, "migrate", instance, seed=seed)
    try:
        every = [*consumers, *(c for i in issuers for c in topics.signer_consumers(i))]
        await declare(bus_client, topics.owned_by(SERVICE), every, replicas=bus.replicas)
    finally:
        await bus_client.close()
