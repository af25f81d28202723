"""Verbs of ca-signer that need its settings: run, migrate, export, secret, reconcile and more."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ca_signer import connections, main
from ca_signer.cli import check_store, operator, reconcile
from ca_signer.ledger.enrollment_secrets import SecretStore
from ca_signer.publishing.publisher import EventPublisher
from ca_signer.settings import SERVICE, SignerSettings
from estcore.errors import ConfigurationError
from estcore.pki.durations import parse_duration
from estcore.runtime.database import Database
from estcore.runtime.service import ServiceCommand


async def _export(settings: SignerSettings, arguments: argparse.Namespace) -> None:
    from ca_signer.ledger import export  # SQLAlchemy, for this verb only

    database = await Database.connect(settings.database, SERVICE, connections.SCHEMA)
    try:
        count = await export.export(database, arguments.out)
    finally:
        await database.close()
    sys.stdout.write(f"{count} issuances in {arguments.out}\n")


async def _secret(settings: SignerSettings, arguments: argparse.Namespace) -> None:
    async with main.connected(settings) as (bus, database):
        store = SecretStore(database, bus, main.CLOCK)
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


async def _reconcile(settings: SignerSettings, arguments: argparse.Namespace) -> None:
    decision_context = main.load_signing_context(settings)
    async with main.connected(settings) as (bus, database):
        publisher = EventPublisher(bus, main.CLOCK, settings.instance)
        sources = reconcile.Sources(
            arguments.export, arguments.vkey, arguments.issuer, arguments.events
        )
        await reconcile.reconcile(bus, database, decision_context, publisher, sources)


def run() -> None:
    """Run a verb of the service: everything but ``ca`` and ``token``."""
    command = ServiceCommand(
        SERVICE,
        prefix="CA_SIGNER",
        settings=SignerSettings,
        run=main.run,
        migrate=main.migrate,
        check=main.check,
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
        help="also use the event stream, where the audit log was lost as well",
    )
    check_store.add(command, main.connected, main.CLOCK)
    operator.add(command)
    sys.exit(command.main())
