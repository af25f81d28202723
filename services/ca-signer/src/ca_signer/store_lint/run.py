"""``ca-signer check-store``: lint every certificate and CRL in the ledger.

Certificates are read in pages by their key, not with one long cursor: a check of millions must not
hold a transaction open, which would keep PostgreSQL from vacuuming. Issuance ids sort by time, so
a page begins where the last one ended. Two linters run: our own (row against certificate), and
pkilint where the extra ``lint`` is installed. OCSP responses are not stored; the certificates of
their signers are linted like any other.
"""

from __future__ import annotations

import datetime as dt
import importlib.util
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import asyncpg
from cryptography import x509

from ca_signer.publishing.publisher import EventPublisher
from ca_signer.settings import SERVICE
from ca_signer.store_lint import checks
from ca_signer.store_lint.checks import StoredCertificate
from estcore import ids
from estcore.clock import Clock
from estcore.errors import ConfigurationError
from estcore.messages.audit import Actor
from estcore.runtime.database import Database

PAGE = 500
_SLACK = dt.timedelta(days=8)
"""How long before its certificate an issuance may be recorded (approvals, upstream CAs)."""
_SHARE = 10_000
_PAGE = """select issuance_id, issuer_id, certificate, certificate_sha256, serial_number, subject,
  san, spki_sha256, not_before, not_after from issuance
where issuance_id > $1 and certificate is not null
  and ($2::timestamptz is null or issued_at >= $2)
  and ($3::text is null or issuer_id = $3)
  and abs(hashtext(issuance_id::text) % 10000) < $4
order by issuance_id limit $5"""
Linter = Callable[[bytes], list[tuple[str, str, str]]]
Severity = Literal["notice", "warning", "error"]


@dataclass(frozen=True)
class Scope:
    """What to look at: since when, of which issuer, which share, from which severity up."""

    since: dt.datetime | None = None
    issuer: str | None = None
    percent: float = 100
    severity: Severity = "warning"
    pkilint: bool = True


@dataclass
class Checked:
    """What was looked at and found."""

    certificates: int = 0
    lists: int = 0
    findings: int = 0
    unsigned: int = field(default=0)
    """Certificates whose issuer's certificate is not here, so their signature was not verified."""


class StoredCertificateLint:
    """One run over one database."""

    def __init__(
        self,
        database: Database,
        issuers: Mapping[str, x509.Certificate],
        clock: Clock,
        out: Callable[[Mapping[str, object]], None],
    ) -> None:
        """``issuers`` are certificates by issuer id; ``out`` gets the findings and a summary."""
        self._database = database
        self._issuers = issuers
        self._clock = clock
        self._out = out

    async def run(self, scope: Scope) -> Checked:
        """Look at everything in the scope.

        Raises:
            ConfigurationError: pkilint is wanted and not installed.
            LedgerUnavailable: PostgreSQL is unavailable.
        """
        certificate, revocation_list = _pkilint(scope)
        done = Checked()
        async for row in self._rows(scope):
            done.certificates += 1
            done.unsigned += row["issuer_id"] not in self._issuers
            named = {
                "kind": "certificate",
                "issuance_id": str(row["issuance_id"]),
                "issuer": row["issuer_id"],
                "serial": ids.serial_hex(int.from_bytes(row["serial_number"], "big")),
            }
            for finding in self._certificate(row, certificate):
                self._tell(done, named | finding)
        for row in await self._lists(scope):
            done.lists += 1
            named = {
                "kind": "crl",
                "issuer": row["issuer_id"],
                "partition": row["partition"],
                "number": row["number"],
            }
            for finding in self._list(row, revocation_list):
                self._tell(done, named | finding)
        summary = {"kind": "summary", **vars(done)}
        self._out(summary)
        return done

    def _tell(self, done: Checked, finding: Mapping[str, object]) -> None:
        done.findings += 1
        self._out(finding)

    async def _rows(self, scope: Scope) -> AsyncIterator[asyncpg.Record]:
        after = first_id(scope.since)
        share = round(scope.percent * _SHARE / 100)
        while True:
            async with self._database.connection() as connection:
                page = await connection.fetch(_PAGE, after, scope.since, scope.issuer, share, PAGE)
            for row in page:
                yield row
            if len(page) < PAGE:
                return
            after = str(page[-1]["issuance_id"])

    async def _lists(self, scope: Scope) -> list[asyncpg.Record]:
        async with self._database.connection() as connection:
            return await connection.fetch(
                "select * from crl where crl is not null "
                "and ($1::text is null or issuer_id = $1) order by issuer_id, partition",
                scope.issuer,
            )

    def _certificate(self, row: asyncpg.Record, linter: Linter) -> Iterator[dict[str, str]]:
        stored = StoredCertificate(
            certificate=row["certificate"],
            sha256=row["certificate_sha256"],
            serial_number=int.from_bytes(row["serial_number"], "big"),
            subject=row["subject"],
            san=tuple(filter(None, row["san"].split("\n"))),
            spki_sha256=row["spki_sha256"],
            not_before=row["not_before"],
            not_after=row["not_after"],
        )
        yield from _ours(checks.lint_stored(stored, self._issuers.get(row["issuer_id"])))
        yield from _theirs(linter(row["certificate"]))

    def _list(self, row: asyncpg.Record, linter: Linter) -> Iterator[dict[str, str]]:
        issuer = self._issuers.get(row["issuer_id"])
        now = self._clock.now()
        yield from _ours(checks.lint_list(row["crl"], issuer, number=row["number"], now=now))
        yield from _theirs(linter(row["crl"]))


def _ours(faults: list[checks.Fault]) -> Iterator[dict[str, str]]:
    for check, message in faults:
        yield {"linter": "ledger", "severity": "error", "check": check, "message": message}


def _theirs(findings: list[tuple[str, str, str]]) -> Iterator[dict[str, str]]:
    for severity, check, message in findings:
        yield {
            "linter": "pkilint",
            "severity": severity.lower(),
            "check": check,
            "message": message,
        }


def _pkilint(scope: Scope) -> tuple[Linter, Linter]:
    if not scope.pkilint:
        return _silent, _silent
    if importlib.util.find_spec("pkilint") is None:
        raise ConfigurationError(
            "pkilint is not installed: install estsuite-signer[lint], or give --no-pkilint",
            code="store.extra",
        )
    # Only where it is wanted: a signer that serves neither has it nor needs it.
    from ca_signer.store_lint import pkilint

    return pkilint.linters(scope.severity)


def _silent(_: bytes) -> list[tuple[str, str, str]]:
    return []


def first_id(since: dt.datetime | None) -> str:
    """Return the least issuance id (UUIDv7) that a certificate issued since then may have."""
    if since is None:
        return "00000000-0000-0000-0000-000000000000"
    ms = max(0, int((since - _SLACK).timestamp() * 1000))
    return ids.uuid7(lambda n: bytes(n), now_ms=ms)


async def record(publisher: EventPublisher, scope: Scope, done: Checked, now: dt.datetime) -> None:
    """Put on record that the store was checked, and what came of it.

    Raises:
        BusUnavailable: not confirmed.
    """
    name = ids.uuid7()
    about: dict[str, Any] = {
        "record_id": name,
        "at": now,
        "correlation_id": name,
        "actor": Actor(type="system", subject=SERVICE),
        "details": {
            "certificates": done.certificates,
            "lists": done.lists,
            "findings": done.findings,
            "since": scope.since.isoformat() if scope.since else "the beginning",
            "percent": str(scope.percent),
        },
    }
    build = publisher.audit_records.build
    audit_record = (
        build.failure("certificates.checked", **about)
        if done.findings
        else build.success("certificates.checked", severity="info", **about)
    )
    await publisher.denials([audit_record])
