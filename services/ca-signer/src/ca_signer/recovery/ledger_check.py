"""Detect a stale ledger (restored backup, lagging replica) by the newest events on the bus.

A certificate is published only after its commit. An event that the ledger does not know means that
the ledger is older than the bus. Such a signer would certify again what it does not know, accept
revoked certificates and sign CRLs with entries missing. It signs nothing until ``ca-signer
reconcile`` has restored what is missing. Comparing the newest events is enough: a backup lacks the
newest rows.

An event counts when its certificate is signed by an issuer that is configured here; a revocation,
when ca-signer signed its message. Any other event that the ledger does not know is reported and
stops nothing: a process with the right to publish events cannot stop a signer by inventing one.

Where PostgreSQL and NATS were lost together there is nothing to compare with; see the runbook.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from uuid import UUID

from cryptography import x509
from pydantic_core import from_json

from ca_signer import metrics
from ca_signer.issuers.issuer import CACertificate
from ca_signer.publishing.publisher import EventPublisher
from ca_signer.settings import SERVICE
from estcore import ids
from estcore.clock import monotonic_s
from estcore.errors import InvariantBroken, LedgerUnavailable, MalformedRequest, Unavailable
from estcore.messages.envelope import decode
from estcore.messages.events import CertificateIssued
from estcore.messages.joined import split
from estcore.messages.topics import PKI_EVENTS
from estcore.pki.parsers import PARSER_ERRORS
from estcore.runtime.bus import Bus
from estcore.runtime.database import Database
from estcore.runtime.logs import Repetition, fields
from estcore.runtime.service import sleep_or_stop
from estcore.runtime.stored_messages import Stored, last_sequence, stored_from

log = logging.getLogger(__name__)

_NOT_COMPARED = "ledger not compared with the bus"

ISSUED, REVOKED = "pki.certificate.issued.>", "pki.certificate.revoked.>"
BEHIND = "ledger.stale"
_LOOKED_AT = 1000
_NEWEST = 100
"""Messages of the stream, once the ledger was compared with more of them at the start."""
_COMPARE_S = 60.0
"""Seconds between comparisons of a complete ledger while no event comes."""
_EVERY_S = 5.0
_SAY_EVERY_S = 300.0

_MISSING_ISSUED = """select id from unnest($1::uuid[]) id where not exists (
  select 1 from issuance where issuance_id = id and state = 'issued')"""
_MISSING_REVOKED = """select id from unnest($1::uuid[], $2::int[]) as t(id, seq) where not exists (
  select 1 from issuance where issuance_id = id and revocation_seq >= seq)"""


@dataclass(frozen=True)
class EventRef:
    """What an event says of a certificate; ``change`` counts its revocations and releases."""

    issuance_id: UUID
    change: int


def read_event_ref(payload: bytes) -> EventRef | None:
    """Return what an event of issuing or revoking says; None where it is none of ours."""
    try:
        name = str(from_json(payload)["id"])
        if not name.startswith("revoked-"):
            return EventRef(UUID(name), 0)
        issuance_id, _, change = name.removeprefix("revoked-").rpartition("-")
        return EventRef(UUID(issuance_id), int(change))
    except (ValueError, KeyError, TypeError):
        return None


def is_certified(payload: bytes, issuers: Mapping[str, CACertificate]) -> bool:
    """Return whether an event is about a certificate that one of the issuers signed.

    Events of issuers that are not configured here are compared by the processes that have them.

    Raises:
        MalformedRequest: the event names one of the issuers, which did not sign its certificate.
    """
    event = decode(CertificateIssued, payload)
    issuer = issuers.get(event.issuer_id)
    if issuer is None:
        return False
    try:
        certificate = x509.load_der_x509_certificate(event.certificate)
        certificate.verify_directly_issued_by(issuer.certificate.certificate)
        serial = ids.serial_hex(certificate.serial_number)
    except PARSER_ERRORS as exc:
        raise MalformedRequest(
            f"its certificate is not signed by {event.issuer_id}", code="event.certificate"
        ) from exc
    if serial != event.serial:
        raise MalformedRequest("its serial number is a different one", code="event.certificate")
    return True


class StaleLedgerCheck:
    """Compares the ledger with the newest events.

    ``issuers`` are those whose certificates count, ``services`` those whose revocations do.
    """

    def __init__(
        self,
        bus: Bus,
        database: Database,
        issuers: Mapping[str, CACertificate],
        services: Collection[str] = (SERVICE,),
    ) -> None:
        self._bus = bus
        self._database = database
        self._issuers = issuers
        self._services = frozenset(services)
        self.complete = False
        self._compared = 0.0
        self._next: dict[str, int] = {}
        self._issued: deque[tuple[EventRef, bytes]] = deque(maxlen=_LOOKED_AT)
        self._revoked: deque[EventRef] = deque(maxlen=_LOOKED_AT)
        self._false: OrderedDict[UUID, None] = OrderedDict()

    async def missing(self) -> list[UUID]:
        """Return the issuances among the newest events that the ledger does not know.

        Raises:
            Unavailable: bus or database is unavailable.
        """
        # The events first: what is announced meanwhile is committed already.
        events = await self._fetch(ISSUED)
        revocations = await self._fetch(REVOKED)
        for payload in (payload for message in events for payload in split(message.payload)):
            if (reference := read_event_ref(payload)) is not None:
                self._issued.append((reference, payload))
        for message in revocations:
            reference = read_event_ref(message.payload)
            if reference is not None and message.sender.service in self._services:
                self._revoked.append(reference)
        now = monotonic_s()
        if self.complete and not (events or revocations) and now - self._compared < _COMPARE_S:
            return []
        self._compared = now
        async with self._database.connection() as connection:
            issued = await connection.fetch(
                _MISSING_ISSUED, [reference.issuance_id for reference, _ in self._issued]
            )
            revoked = await connection.fetch(
                _MISSING_REVOKED,
                [reference.issuance_id for reference in self._revoked],
                [reference.change for reference in self._revoked],
            )
        missing = [*self._genuine({row["id"] for row in issued}), *(row["id"] for row in revoked)]
        self.complete = not missing
        return list(dict.fromkeys(missing))

    def _genuine(self, unknown: set[UUID]) -> list[UUID]:
        """Return those of the issuances whose certificates their issuers signed."""
        genuine = []
        for reference, payload in self._issued:
            issuance_id = reference.issuance_id
            if issuance_id not in unknown or issuance_id in self._false:
                continue
            try:
                if is_certified(payload, self._issuers):
                    genuine.append(issuance_id)
            except MalformedRequest as exc:
                self._report_false(issuance_id, exc)
        return genuine

    def _report_false(self, issuance_id: UUID, error: MalformedRequest) -> None:
        self._false[issuance_id] = None
        while len(self._false) > _LOOKED_AT:
            self._false.popitem(last=False)
        metrics.FALSE_EVENTS.inc()
        log.error(
            "event of a certificate that is none of ours",
            extra=fields(issuance=str(issuance_id), code=error.code, reason=error.reason),
        )

    async def _fetch(self, topics: str) -> list[Stored]:
        newest = await last_sequence(self._bus, PKI_EVENTS, topics)
        looked_at = _NEWEST if topics in self._next else _LOOKED_AT
        start = max(self._next.get(topics, 1), newest - looked_at + 1)
        if newest + 1 < start:
            # The stream is another one; what the old one said still holds.
            start = 1
        found: list[Stored] = []
        while 0 < start <= newest:
            messages, start = await stored_from(self._bus, PKI_EVENTS, topics, start)
            found += messages
        self._next[topics] = max(start, newest + 1)
        return found

    async def require(self) -> None:
        """Check once.

        Raises:
            LedgerUnavailable: the ledger is behind.
            Unavailable: bus or database is unavailable.
        """
        missing = await self.missing()
        if missing:
            raise LedgerUnavailable(_sentence(missing), code=BEHIND)

    async def hold(self, publisher: EventPublisher, stop: asyncio.Event) -> bool:
        """Wait until the ledger is complete; False when the process stops before."""
        said_at: float | None = None
        not_compared = Repetition(log, _NOT_COMPARED)
        while not stop.is_set():
            try:
                missing = await self.missing()
            except Unavailable as exc:
                not_compared.warn(code=exc.code, reason=exc.reason)
                await sleep_or_stop(stop, 1)
                continue
            if not missing:
                return True
            if said_at is None or monotonic_s() - said_at > _SAY_EVERY_S:
                said_at = monotonic_s()
                log.error(
                    "ledger is older than the bus, run ca-signer reconcile",
                    extra=fields(code=BEHIND, missing=len(missing)),
                )
                details = {"reason": BEHIND, "issuance": str(missing[0])}
                await publisher.own.report("signing.refused", details)
            await sleep_or_stop(stop, _EVERY_S)
        return False

    async def watch(self, stop: asyncio.Event) -> None:
        """Look again now and then: a database can be replaced while we run.

        Raises:
            InvariantBroken: the ledger is behind; the process ends, and its next start waits.
        """
        not_compared = Repetition(log, _NOT_COMPARED)
        while not await sleep_or_stop(stop, _EVERY_S):
            try:
                missing = await self.missing()
            except Unavailable as exc:
                not_compared.warn(code=exc.code, reason=exc.reason)
                continue
            not_compared.over()
            if missing:
                raise InvariantBroken(_sentence(missing), code=BEHIND)


def _sentence(missing: list[UUID]) -> str:
    return (
        f"the ledger lacks {len(missing)} of the newest certificates or revocations on the bus; "
        "run ca-signer reconcile"
    )
