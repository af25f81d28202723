"""Consumer of ca-signer's events: apply a batch in one transaction, publish, acknowledge.

Steps of a batch:

1. Decode. What cannot be read is a dead letter at once.
2. Store certificates, revocations, requested and refused renewals in one transaction
   (``renewal.events.projection``, ``renewal.rotation.requested_renewal`` and ``refused_renewal``).
3. Publish the audit records of what was scheduled and the steps of rotations; await PubAcks.
4. Acknowledge. A crash before this delivers everything again, which changes nothing.

A batch that fails is processed message by message, so a poisoned message holds up no other; its
failures are counted in the database, and over the limit it is a dead letter. While the
database is unavailable nothing is fetched.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from estcore.clock import monotonic_s
from estcore.errors import LedgerUnavailable, MalformedRequest, Unavailable
from estcore.messages.envelope import decode
from estcore.messages.events import (
    CertificateIssued,
    CertificateRevoked,
    RenewalRefused,
    RenewalRequested,
    WindowClosed,
)
from estcore.messages.topics import PKI_EVENTS, RENEWAL_CONSUMER, WINDOW_TOPIC
from estcore.runtime import faults
from estcore.runtime.bus import Bus
from estcore.runtime.consume import PullConsumer
from estcore.runtime.database import Connection, Database
from estcore.runtime.delivery import Delivery
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop
from estcore.runtime.tracing import Tracing
from estcore.runtime.worker import MessageWorker, publish_dead_letter
from renewal.events.projection import Projected, project
from renewal.events.reconciliation import check_window, window_comparison
from renewal.metrics import BATCH_S, DEAD_LETTERS, PROJECTED
from renewal.publishing.messages import MessageBuilder
from renewal.publishing.publisher import RotationPublisher
from renewal.rotation.refused_renewal import fail_renewals
from renewal.rotation.requested_renewal import request_renewals
from renewal.settings import SERVICE, RenewalSettings

log = logging.getLogger(__name__)

_ALONE_FROM = 3
"""From this delivery on a message is processed alone and its failures are counted."""
# A certificate that is held may come back; until then the signer refuses its renewal.
_NOT_FOR_GOOD = {"certificateHold", "removeFromCRL"}
_KIND_AT = 2
_COUNT_FAILURE = """
insert into failed_delivery as f (message_sha256, attempts, error) values ($1, 1, $2)
on conflict (message_sha256) do update
    set attempts = f.attempts + 1, error = excluded.error, last_at = now()
returning attempts
"""
_FORGET_FAILURES = "delete from failed_delivery where message_sha256 = any($1::bytea[])"
_PURGE_FAILURES = "delete from failed_delivery where last_at < now() - interval '1 day'"
_PURGE_EVERY_S = 3600
_ALIKE = 3
"""So many different messages that fail alike, and none that works, are not at fault."""


@dataclass
class _Batch:
    """Messages of one transaction."""

    issued: list[tuple[Delivery, CertificateIssued]] = field(default_factory=list)
    revoked: list[tuple[Delivery, CertificateRevoked]] = field(default_factory=list)
    requested: list[tuple[Delivery, RenewalRequested]] = field(default_factory=list)
    refused: list[tuple[Delivery, RenewalRefused]] = field(default_factory=list)
    windows: list[tuple[Delivery, WindowClosed]] = field(default_factory=list)
    other: list[Delivery] = field(default_factory=list)

    def deliveries(self) -> list[Delivery]:
        named = (self.issued, self.revoked, self.requested, self.refused)
        return [*(d for items in named for d, _ in items), *self.other]


class EventConsumer:
    """Applies events to the tables."""

    def __init__(
        self,
        settings: RenewalSettings,
        database: Database,
        bus: Bus,
        builder: MessageBuilder,
        publisher: RotationPublisher,
        tracing: Tracing,
    ) -> None:
        self._settings = settings.event_consumer
        self._rotation = settings.rotation
        self._recheck_s = settings.windows.recheck_s
        self._database, self._bus, self._builder = database, bus, builder
        self._publisher, self._tracing = publisher, tracing
        self._purged = 0.0
        self._failing: dict[str, set[bytes]] = {}
        self.changed = asyncio.Event()
        """Set when slots were changed, and may be due."""
        self._windows = window_comparison(settings.windows, database, bus)
        self.consumer = PullConsumer(
            bus, PKI_EVENTS, RENEWAL_CONSUMER, credit=self._settings.credit, joined=True
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Apply events until stopped; what was fetched and not applied goes back."""

        async def handle(deliveries: Sequence[Delivery], stopping: asyncio.Event) -> None:
            if not await self.handle(deliveries):
                await self._wait_for_database(stopping)

        await MessageWorker(
            self.consumer,
            handle,
            batch_size=self._settings.batch_size,
            linger_s=self._settings.linger_ms / 1000,
        ).run(stop)

    async def handle(self, deliveries: Sequence[Delivery]) -> bool:
        """Apply deliveries and answer each; False when the surroundings are unavailable."""
        started = monotonic_s()
        alone = [d for d in deliveries if d.attempt >= _ALONE_FROM and d.topic != WINDOW_TOPIC]
        batch = await self._read([d for d in deliveries if d not in alone])
        try:
            if batch.deliveries():
                await self._apply(batch)
            good = True
        except Unavailable as exc:
            await self._later(batch.deliveries(), exc)
            good = False
        except Exception as exc:  # noqa: BLE001 - Bulkhead: each message is tried alone instead.
            log.warning(
                "batch failed, processing its messages one by one", extra=fields(error=_line(exc))
            )
            good = await self._one_by_one(batch.deliveries())
        good = await self._one_by_one(alone) and good if alone else good
        good = await self._check_windows(batch.windows) and good
        BATCH_S.observe(monotonic_s() - started)
        return good

    async def _read(self, deliveries: Sequence[Delivery]) -> _Batch:
        batch = _Batch()
        for delivery in deliveries:
            try:
                self._classify(delivery, batch)
            except MalformedRequest as exc:
                await self._dead_letter(delivery, "malformed", exc.reason)
        return batch

    def _classify(self, delivery: Delivery, batch: _Batch) -> None:
        kind = delivery.topic.split(".")[_KIND_AT]
        if delivery.topic == WINDOW_TOPIC:
            batch.windows.append((delivery, decode(WindowClosed, delivery.payload())))
        elif kind == "issued":
            batch.issued.append((delivery, decode(CertificateIssued, delivery.payload())))
        elif kind == "revoked":
            event = decode(CertificateRevoked, delivery.payload())
            if event.reason in _NOT_FOR_GOOD:
                batch.other.append(delivery)
            else:
                batch.revoked.append((delivery, event))
        elif kind == "renewal-requested":
            batch.requested.append((delivery, decode(RenewalRequested, delivery.payload())))
        elif kind == "renewal-refused":
            batch.refused.append((delivery, decode(RenewalRefused, delivery.payload())))
        else:
            batch.other.append(delivery)

    async def _apply(self, batch: _Batch) -> None:
        issued = [event for _, event in batch.issued]
        revoked = [event for _, event in batch.revoked]
        requested = [event for _, event in batch.requested]
        refused = [event for _, event in batch.refused]
        if issued or revoked or requested or refused:
            links = [e.traceparent for e in issued if e.traceparent]
            first = links[0] if links else None
            with self._tracing.span("renewal.project", first, links=links, events=len(issued)):

                async def work(connection: Connection) -> tuple[Projected, list[str]]:
                    done = await project(connection, issued, revoked, rotation=self._rotation)
                    moved = await request_renewals(connection, requested)
                    return done, [*moved, *await fail_renewals(connection, refused)]

                projected, moved = await self._database.run(work)
                self.changed.set()
                faults.hit("renewal.projected")
                self._failing.clear()
                await self._publish(projected, moved)
                await self._publisher.refusals(refused)
                faults.hit("renewal.projection_published")
        for delivery in batch.deliveries():
            await delivery.ack()
        PROJECTED.labels("issued").inc(len(issued))
        PROJECTED.labels("revoked").inc(len(revoked))
        PROJECTED.labels("renewal_requested").inc(len(requested))
        PROJECTED.labels("renewal_refused").inc(len(refused))

    async def _publish(self, projected: Projected, moved: Sequence[str]) -> None:
        first = self._publisher.info.first(projected.scheduled, projected.repeated)
        messages = self._builder.scheduled(projected.scheduled)
        if first or messages:
            await self._publisher.info.confirm(first, messages)
        slots = list(dict.fromkeys([*projected.updated, *moved]))
        await self._publisher.rotations(slots, projected.repeated)

    async def _one_by_one(self, deliveries: Sequence[Delivery]) -> bool:
        for at, delivery in enumerate(deliveries):
            try:
                await self._alone(delivery)
            except Unavailable as exc:
                await self._later(deliveries[at:], exc)
                return False
        return True

    async def _alone(self, delivery: Delivery) -> None:
        # Counted before it is read: a message that kills the process is counted as well.
        attempts = await self._count(delivery, "not finished")
        if attempts > self._settings.max_attempts:
            await self._dead_letter(delivery, "poison", "too many failures")
            return
        batch = await self._read([delivery])
        try:
            if batch.deliveries():
                await self._apply(batch)
        except Unavailable:
            await self._forget(_key(delivery))
            raise
        except Exception as exc:  # noqa: BLE001 - Bulkhead: tried again later, then buried.
            await self._failed(delivery, exc)
            return
        self._failing.clear()
        await self._forget(_key(delivery))

    async def _failed(self, delivery: Delivery, exc: Exception) -> None:
        """Defer a message that failed.

        Raises:
            LedgerUnavailable: others failed alike and none worked since, so the database is at
                fault; their failures are forgotten.
        """
        error = _line(exc)
        alike = self._failing.setdefault(type(exc).__name__, set())
        if len(alike) < _ALIKE:
            alike.add(_key(delivery))
        if len(alike) >= _ALIKE:
            await self._forget(_key(delivery), *alike)
            raise LedgerUnavailable(f"every message fails: {error}") from exc
        log.warning("message failed", extra=fields(sequence=delivery.sequence, error=error))
        await delivery.nak(self._settings.retry_s)

    async def _check_windows(self, windows: Sequence[tuple[Delivery, WindowClosed]]) -> bool:
        for at, (delivery, window) in enumerate(windows):
            try:
                done = await check_window(self._windows, window)
            except Unavailable as exc:
                await self._later([d for d, _ in windows[at:]], exc, self._recheck_s)
                return exc.code != "ledger.unavailable"
            if done:
                await delivery.ack()
            else:
                await delivery.nak(self._recheck_s)
        return True

    async def _count(self, delivery: Delivery, error: str) -> int:
        async with self._database.connection() as connection:
            if monotonic_s() - self._purged > _PURGE_EVERY_S:
                self._purged = monotonic_s()
                await connection.execute(_PURGE_FAILURES)
            return int(await connection.fetchval(_COUNT_FAILURE, _key(delivery), error))

    async def _forget(self, *messages: bytes) -> None:
        async with self._database.connection() as connection:
            await connection.execute(_FORGET_FAILURES, messages)

    async def _dead_letter(self, delivery: Delivery, reason: str, text: str) -> None:
        log.error(
            "message dead-lettered",
            extra=fields(topic=delivery.topic, sequence=delivery.sequence, error=text),
        )
        message_id = f"{PKI_EVENTS}-{delivery.place}"
        try:
            await publish_dead_letter(
                self._bus, SERVICE, delivery, reason=reason, message_id=message_id
            )
        except Unavailable as exc:
            await self._later([delivery], exc)
            return
        DEAD_LETTERS.labels(reason).inc()
        await delivery.term()

    async def _later(
        self, deliveries: Sequence[Delivery], error: Unavailable, delay_s: float | None = None
    ) -> None:
        log.warning("events deferred", extra=fields(count=len(deliveries), error=error.reason))
        for delivery in deliveries:
            await delivery.nak(delay_s or self._settings.retry_s)

    async def _wait_for_database(self, stop: asyncio.Event) -> None:
        """Fetch nothing until PostgreSQL answers; what still arrives goes back."""
        while not stop.is_set() and not await self._database.alive():
            for delivery in self.consumer.take(self._settings.credit):
                await delivery.nak(self._settings.retry_s)
            await sleep_or_stop(stop, 0.5)


def _key(delivery: Delivery) -> bytes:
    """Return what deliveries of one message have in common, also after its stream was lost."""
    return sha256(delivery.data).digest()


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
