"""``ca-signer check-store``: options and exit code.

It needs no CA key, only certificates; a database role that reads and an NKey for one topic.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import click
from cryptography import x509

from ca_signer import connections, main
from ca_signer.issuers.issuer import read_certificates
from ca_signer.publishing.publisher import EventPublisher
from ca_signer.settings import SignerSettings
from ca_signer.store_lint.run import Scope, StoredCertificateLint, record
from estcore.errors import BusUnavailable, ConfigurationError, InvariantBroken
from estcore.ids import is_token
from estcore.pki.durations import parse_duration
from estcore.runtime.command_line import Converted
from estcore.runtime.terminal import write_json, write_line


@click.option(
    "--since",
    type=Converted("duration", parse_duration),
    help="Only what was issued in the last 36h, 7d and the like.",
)
@click.option(
    "--percent",
    type=click.FloatRange(0, 100, min_open=True),
    default=100,
    help="Share of the certificates; the same ones every time.",
)
@click.option("--issuer", help="Issuer id; default: all.")
@click.option(
    "--severity",
    type=click.Choice(["notice", "warning", "error"]),
    default="warning",
    help="Lowest severity to report.",
)
@click.option("--no-pkilint", is_flag=True, help="Run our own lint only.")
@click.option(
    "--other",
    multiple=True,
    metavar="ID=FILE",
    help="Certificate of an issuer that is not configured here, PEM; repeatable.",
)
async def check_store(
    settings: SignerSettings,
    since: dt.timedelta | None,
    no_pkilint: bool,
    other: tuple[str, ...],
    **choices: Any,
) -> None:
    """Lint every stored certificate and list, and record the result.

    Raises:
        InvariantBroken: there are findings.
    """
    clock = main.CLOCK
    moment = None if since is None else clock.now() - since
    scope = Scope(since=moment, pkilint=not no_pkilint, **choices)
    issuers = {
        issuer.issuer_id: read_certificates(issuer.certificate_file)[0]
        for issuer in settings.issuers
    }
    issuers.update(_other(text) for text in other)
    async with connections.connected_to_read(
        settings.instance, database=settings.database, bus=settings.bus
    ) as (bus, database):
        done = await StoredCertificateLint(database, issuers, clock, write_json).run(scope)
        publisher = EventPublisher(bus, clock, settings.instance)
        try:
            await record(publisher, scope, done, clock.now())
        except BusUnavailable as exc:
            write_line(f"the check is not on record: {exc.reason}", error=True)
    if done.findings:
        raise InvariantBroken(
            f"{done.findings} findings in {done.certificates} certificates and {done.lists} lists",
            code="store.findings",
        )


def _other(text: str) -> tuple[str, x509.Certificate]:
    issuer_id, separator, file = text.partition("=")
    if not separator or not is_token(issuer_id):
        raise ConfigurationError(f"--other {text}: ID=FILE is meant")
    return issuer_id, read_certificates(Path(file))[0]
