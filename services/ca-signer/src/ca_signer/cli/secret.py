"""``ca-signer secret``: enrollment secrets beside the ledger, without an operator's certificate.

Each command is on record as one of an operator at the console.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click

from ca_signer import main
from ca_signer.ledger import enrollment_secrets
from ca_signer.operators.console import Console
from ca_signer.publishing.outbox import Outbox, command_records
from ca_signer.publishing.publisher import EventPublisher
from ca_signer.publishing.secret_verifiers import SecretPublisher
from ca_signer.settings import SignerSettings
from estcore.pki.durations import parse_duration
from estcore.runtime.command_line import Converted
from estcore.runtime.database import Connection
from estcore.runtime.terminal import write_fields, write_line

T = TypeVar("T")
_PAGE = 500
_id = click.option("--id", "secret_id", required=True, help="Id of the enrollment secret.")


@_id
@click.option(
    "--lifetime", type=Converted("duration", parse_duration), default="30d", help="As 36h or 30d."
)
@click.option("--one-time", is_flag=True, help="The secret serves one enrollment.")
async def create(
    settings: SignerSettings, secret_id: str, lifetime: dt.timedelta, one_time: bool
) -> None:
    """Make a secret and print it: the only copy."""

    async def work(connection: Connection, console: Console) -> enrollment_secrets.Created:
        created = await enrollment_secrets.create(
            connection, secret_id, lifetime=lifetime, one_time=one_time
        )
        details: dict[str, str | bool] = {
            "id": secret_id,
            "one_time": one_time,
            "not_after": str(created.not_after),
        }
        await console.record(connection, "secret-create", details=details)
        return created

    write_line((await _carried_out(settings, work)).secret)


@_id
async def revoke(settings: SignerSettings, secret_id: str) -> None:
    """End a secret now."""

    async def work(connection: Connection, console: Console) -> None:
        await enrollment_secrets.revoke(connection, secret_id)
        await console.record(connection, "secret-revoke", details={"id": secret_id})

    await _carried_out(settings, work)
    write_line(f"{secret_id} is revoked")


async def show(settings: SignerSettings) -> None:
    """List every secret: id, kind, and its state or end."""
    after: str | None = None
    async with main.connected(settings) as (_, database):
        while True:
            async with database.connection() as connection:
                page = await enrollment_secrets.listed(connection, after=after, limit=_PAGE)
            for one in page:
                kind = "one-time" if one.one_time else "reusable"
                live = one.state == "live"
                state = f"until {one.not_after.isoformat()}" if live else one.state
                write_fields(one.secret_id, kind, state)
            if len(page) < _PAGE:
                return
            after = page[-1].secret_id


async def _carried_out(
    settings: SignerSettings, work: Callable[[Connection, Console], Awaitable[T]]
) -> T:
    """Do it in one transaction, then publish verifier and record; a signer does what fails here."""
    async with main.connected(settings) as (bus, database):
        publisher = EventPublisher(bus, main.CLOCK, settings.instance)
        console = Console(publisher, main.CLOCK)
        done = await database.run(lambda connection: work(connection, console))
        sources = [
            SecretPublisher(database, bus, main.CLOCK).source(),
            command_records(publisher),
        ]
        await Outbox(database, sources, every_s=1).flush()
    return done
