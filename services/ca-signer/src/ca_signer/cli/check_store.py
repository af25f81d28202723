"""``ca-signer check-store``: arguments and exit code. It needs no CA key, only certificates."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from cryptography import x509

from ca_signer.issuers.issuer import read_certificates
from ca_signer.publishing.publisher import EventPublisher
from ca_signer.settings import SignerSettings
from ca_signer.store_lint.run import Scope, StoredCertificateLint, record
from estcore.clock import Clock
from estcore.errors import BusUnavailable, ConfigurationError, InvariantBroken
from estcore.ids import is_token
from estcore.pki.durations import parse_duration
from estcore.runtime.bus import Bus
from estcore.runtime.database import Database
from estcore.runtime.service import ServiceCommand

Connected = Callable[[SignerSettings], AbstractAsyncContextManager[tuple[Bus, Database]]]


def add(command: ServiceCommand[SignerSettings], connected: Connected, clock: Clock) -> None:
    """Add the verb to the command line."""

    async def action(settings: SignerSettings, arguments: argparse.Namespace) -> None:
        scope = _scope(arguments, clock)
        issuers = {
            one.issuer_id: read_certificates(one.certificate_file)[0] for one in settings.issuers
        }
        issuers.update(_other(text) for text in arguments.other)
        async with connected(settings) as (bus, database):
            done = await StoredCertificateLint(database, issuers, clock, sys.stdout).run(scope)
            publisher = EventPublisher(bus, clock, settings.instance)
            try:
                await record(publisher, scope, done, clock.now())
            except BusUnavailable as exc:
                sys.stderr.write(f"the check is not on record: {exc.reason}\n")
        if done.findings:
            raise InvariantBroken(
                f"{done.findings} findings in {done.certificates} certificates and "
                f"{done.lists} lists",
                code="store.findings",
            )

    parser = command.verb("check-store", "lint every certificate and list in the ledger", action)
    parser.add_argument("--since", help="only what was issued in the last 36h, 7d, …")
    parser.add_argument("--percent", type=float, default=100, help="of the certificates, the same")
    parser.add_argument("--issuer", help="issuer id; default: all")
    parser.add_argument("--severity", choices=("notice", "warning", "error"), default="warning")
    parser.add_argument("--no-pkilint", action="store_true", help="our own lint only")
    parser.add_argument(
        "--other",
        action="append",
        default=[],
        metavar="ID=FILE",
        help="certificate of an issuer that is not configured here, PEM",
    )


def _scope(arguments: argparse.Namespace, clock: Clock) -> Scope:
    since = None
    if arguments.since is not None:
        try:
            since = clock.now() - parse_duration(arguments.since)
        except ValueError as exc:
            raise ConfigurationError(f"--since: {exc}") from exc
    if not 0 < arguments.percent <= 100:  # noqa: PLR2004 - percent
        raise ConfigurationError("--percent is more than 0 and at most 100")
    return Scope(
        since=since,
        issuer=arguments.issuer,
        percent=arguments.percent,
        severity=arguments.severity,
        pkilint=not arguments.no_pkilint,
    )


def _other(text: str) -> tuple[str, x509.Certificate]:
    issuer_id, found, file = text.partition("=")
    if not found or not is_token(issuer_id):
        raise ConfigurationError(f"--other {text}: ID=FILE is meant")
    return issuer_id, read_certificates(Path(file))[0]
