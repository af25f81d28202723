"""Verbs of ca-signer that need its settings: run, migrate, export, secret, reconcile and more."""

from __future__ import annotations

from pathlib import Path

import click

from ca_signer import connections, main
from ca_signer.cli import check_store, expired_issuer, operator, reconcile, secret
from ca_signer.publishing.publisher import EventPublisher
from ca_signer.settings import PREFIX, SERVICE, SignerSettings
from estcore.runtime.command_line import PATH
from estcore.runtime.database import Database
from estcore.runtime.service import ServiceCommand
from estcore.runtime.terminal import STANDARD_OUTPUT, write_line

COMMAND = ServiceCommand(
    SERVICE,
    about="Verbs of ca-signer that need its settings.",
    distribution="estsuite-signer",
    prefix=PREFIX,
    settings=SignerSettings,
    run=main.run,
    migrate=main.migrate,
    check=main.check,
)
_SECRET = COMMAND.verbs("secret", "Create, list or revoke enrollment secrets, beside the ledger.")
_OPERATOR = COMMAND.verbs("operator", "Issue certificates of operators, beside the ledger.")


@COMMAND.verb("export", "Write the ledger as JSON lines.")
@click.option("--out", type=PATH, required=True, help="File to write; - is standard output.")
async def _export(settings: SignerSettings, out: Path) -> None:
    from ca_signer.ledger import export  # SQLAlchemy, for this verb only

    database = await Database.connect(settings.database, SERVICE, connections.SCHEMA)
    try:
        count = await export.export(database, out)
    finally:
        await database.close()
    write_line(f"{count} issuances in {out}", error=out == STANDARD_OUTPUT)


@COMMAND.verb("reconcile", "Complete a restored ledger from an export of the audit log.")
@click.option("--export", "export_file", type=PATH, required=True, help="From est-audit export.")
@click.option("--vkey", required=True, help="Verifier key of the log, or a file with it.")
@click.option(
    "--issuer",
    multiple=True,
    metavar="ID=FILE",
    help="Certificate of an issuer that is not configured here, PEM; repeatable.",
)
@click.option(
    "--events", is_flag=True, help="Trust the events on the bus where the audit log was lost too."
)
async def _reconcile(
    settings: SignerSettings, export_file: Path, vkey: str, issuer: tuple[str, ...], events: bool
) -> None:
    decision_context = main.load_signing_context(settings)
    async with main.connected(settings) as (bus, database):
        publisher = EventPublisher(bus, main.CLOCK, settings.instance)
        sources = reconcile.Sources(export_file, vkey, issuer, events)
        await reconcile.reconcile(bus, database, decision_context, publisher, sources)


COMMAND.verb("check-store", "Lint every stored certificate and list.")(check_store.check_store)
COMMAND.verb("enroll", "Issue the certificate of an operator.", under=_OPERATOR)(operator.enroll)
COMMAND.verb("replace-expired", "Let the next generation sign after a CA has expired.")(
    expired_issuer.replace_expired
)
COMMAND.verb("create", "Create an enrollment secret and print it once.", under=_SECRET)(
    secret.create
)
COMMAND.verb("list", "List enrollment secrets.", under=_SECRET)(secret.show)
COMMAND.verb("revoke", "Revoke an enrollment secret.", under=_SECRET)(secret.revoke)
