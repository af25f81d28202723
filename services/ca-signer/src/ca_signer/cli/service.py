"""Verbs of ca-signer that need its settings: run, migrate, export, secret, reconcile and more."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import click

from ca_signer import connections, main
from ca_signer.cli import check_store, expired_issuer, operator, reconcile
from ca_signer.ledger.enrollment_secrets import SecretStore
from ca_signer.publishing.publisher import EventPublisher
from ca_signer.settings import PREFIX, SERVICE, SignerSettings
from estcore.pki.durations import parse_duration
from estcore.runtime.command_line import PATH, Converted
from estcore.runtime.database import Database
from estcore.runtime.service import ServiceCommand
from estcore.runtime.terminal import write_fields, write_line

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
_SECRET = COMMAND.verbs("secret", "Create, list or revoke enrollment secrets.")
_OPERATOR = COMMAND.verbs("operator", "Issue certificates of operators, beside the ledger.")
_id = click.option("--id", "secret_id", required=True, help="Id of the enrollment secret.")


@COMMAND.verb("export", "Write the ledger as JSON lines.")
@click.option("--out", type=PATH, required=True, help="File to write.")
async def _export(settings: SignerSettings, out: Path) -> None:
    from ca_signer.ledger import export  # SQLAlchemy, for this verb only

    database = await Database.connect(settings.database, SERVICE, connections.SCHEMA)
    try:
        count = await export.export(database, out)
    finally:
        await database.close()
    write_line(f"{count} issuances in {out}")


@COMMAND.verb("list", "List enrollment secrets.", under=_SECRET)
async def _list_secrets(settings: SignerSettings) -> None:
    async with main.connected(settings) as (bus, database):
        store = SecretStore(database, bus, main.CLOCK)
        for secret_id, not_after, one_time, revoked in await store.listed():
            kind = "one-time" if one_time else "reusable"
            state = "revoked" if revoked else f"until {not_after.isoformat()}"
            write_fields(secret_id, kind, state)


@COMMAND.verb("create", "Create an enrollment secret and print it once.", under=_SECRET)
@_id
@click.option(
    "--lifetime", type=Converted("duration", parse_duration), default="30d", help="As 36h or 30d."
)
@click.option("--one-time", is_flag=True, help="The secret serves one enrollment.")
async def _create_secret(
    settings: SignerSettings, secret_id: str, lifetime: dt.timedelta, one_time: bool
) -> None:
    async with main.connected(settings) as (bus, database):
        store = SecretStore(database, bus, main.CLOCK)
        secret = await store.create(secret_id, lifetime=lifetime, one_time=one_time)
    write_line(secret)


@COMMAND.verb("revoke", "Revoke an enrollment secret.", under=_SECRET)
@_id
async def _revoke_secret(settings: SignerSettings, secret_id: str) -> None:
    async with main.connected(settings) as (bus, database):
        await SecretStore(database, bus, main.CLOCK).revoke(secret_id)
    write_line(f"{secret_id} is revoked")


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
