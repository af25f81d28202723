"""The one writer of the audit log: take records, append, seal, then acknowledge.

The replica that holds the advisory lock writes, on the connection that holds it; the others are
on standby. A replica that loses the connection loses the role: it returns what it has in hand, and
the next holder of the lock loads the log anew. A message is acknowledged after the commit, so
it is delivered again after any crash, and the log keeps each record id once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import asyncpg
from opentelemetry.trace import SpanKind

from audit import metrics, record_decoder, store
from audit.chain import Chain
from audit.checkpoints import Sealer
from audit.self_records import SelfRecords
from audit.settings import SERVICE, AppendSettings
from estcore import ids
from estcore.clock import Clock, monotonic_s
from estcore.errors import BusUnavailable, LedgerUnavailable, Unavailable
from estcore.messages.audit_batches import MAX_RECORDS, batch_id, encode_records, fitting
from estcore.messages.envelope import encode
from estcore.messages.topics import AUDIT_CONSUMER, AUDIT_ISSUE, AUDIT_REFUSAL, audit_issue_topic
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.consume import PullConsumer
from estcore.runtime.database import UNAVAILABLE, Connection, Database
from estcore.runtime.delivery import Delivery
from estcore.runtime.faults import hit
from estcore.runtime.logs import fields
from estcore.runtime.sent_batches import SentBatches
from estcore.runtime.service import sleep_or_stop, wake_at
from estcore.runtime.tracing import Tracing
from estcore.runtime.worker import publish_dead_letter
from estcore.tlog.verify import CLOCK_SKEW, RECORD_AHEAD

log = logging.getLogger(__name__)

Role = Literal["starting", "writer", "standby", "down"]
_TICK_S = 1.0
_PROBE_S = 5.0
_MONTHS_S = 3600.0
_SPANS = 32


@dataclass(frozen=True)
class _Received:
    """A delivery with what was read from it; a faulty one is ended, not acknowledged."""

    delivery: Delivery
    read: record_decoder.Intake


class Writer:
    """The job that writes the log, or waits to."""

    def __init__(
        self,
        settings: AppendSettings,
        *,
        bus: Bus,
        database: Database,
        clock: Clock,
        own: SelfRecords,
        sealer: Sealer,
        tracing: Tracing,
    ) -> None:
        self._settings, self._bus, self._database = settings, bus, database
        self._sent = SentBatches(bus)
        self._clock, self._own, self._sealer, self._tracing = clock, own, sealer, tracing
        self._consumers = [
            PullConsumer(bus, stream, AUDIT_CONSUMER, credit=settings.credit, wake=own.wake)
            for stream in (AUDIT_ISSUE, AUDIT_REFUSAL)
        ]
        self._started = False
        self._checked = 0.0
        self._partitioned = 0.0
        self._outage = ""
        self.role: Role = "starting"
        self.size = 0

    @property
    def leading(self) -> bool:
        """This process is the writer."""
        return self.role == "writer"

    @property
    def sealed(self) -> int:
        """Size of the newest checkpoint."""
        return self._sealer.size

    @property
    def consuming(self) -> bool:
        """The consumers receive something, or this process is not the writer."""
        return not self.leading or all(consumer.ready for consumer in self._consumers)

    async def run(self, stop: asyncio.Event) -> None:
        """Write whenever the lock is free, until ``stop``."""
        while not stop.is_set():
            try:
                async with self._database.connection() as connection:
                    if await store.become_writer(connection):
                        try:
                            await self._lead(connection, stop)
                        finally:
                            # The lock belongs to the session, not to a transaction.
                            connection.terminate()
                        return
                self._become("standby")
            except Unavailable as exc:
                self._down(exc.reason)
            except asyncpg.PostgresError as exc:
                self._down(f"PostgreSQL: {type(exc).__name__}")
            await self._hand_over_own()
            await sleep_or_stop(stop, _TICK_S)
        self._own.note("audit.stop", role=self.role)
        await self._hand_over_own()

    def _down(self, reason: str) -> None:
        if self.role != "down" or reason != self._outage:
            metrics.OUTAGES.inc()
            log.warning("audit log not writable", extra=fields(error=reason))
        self._outage = reason
        self._become("down")

    def _become(self, role: Role) -> None:
        if role != self.role:
            log.info("audit writer role changed", extra=fields(role=role))
        self.role = role
        metrics.WRITER.set(self.leading)

    async def _hand_over_own(self) -> None:
        """A process that does not write sends its records to the one that does."""
        waiting = self._own.waiting()
        if not waiting or self.role == "down":
            return
        encoded = [encode(entry.record) for entry in waiting[:MAX_RECORDS]]
        count = fitting(encoded)
        name = batch_id(entry.record.record_id for entry in waiting[:count])
        message = Outgoing(audit_issue_topic(SERVICE), encode_records(encoded[:count]), name)
        with contextlib.suppress(BusUnavailable):
            await self._sent.publish(message)
            self._own.committed(count)

    async def _lead(self, connection: Connection, stop: asyncio.Event) -> None:
        if not await self._database.alive():
            self._database.clock.require()
            raise LedgerUnavailable("PostgreSQL stores nothing")
        chain = await Chain.load(connection, self._clock)
        await self._sealer.load(connection)
        self.size = chain.size
        self._partitioned = 0.0
        await self._open()
        self._become("writer")
        try:
            while not stop.is_set():
                busy = await self._round(connection, chain)
                if not busy:
                    await self._idle(stop)
            await self._close(0)
            self._own.note("audit.stop", role=self.role)
            await self._commit(connection, chain, [])
            await self._sealer.seal(connection, chain)
        finally:
            self._become("down" if not stop.is_set() else "standby")
            await self._close(self._settings.retry_s)

    async def _open(self) -> None:
        for consumer in self._consumers:
            await (consumer.resume() if self._started else consumer.start())
        self._started = True

    async def _close(self, delay_s: float) -> None:
        for consumer in self._consumers:
            for delivery in await consumer.pause():
                await delivery.nak(delay_s)

    async def _idle(self, stop: asyncio.Event) -> None:
        wake = self._own.wake
        wake.clear()
        if not self._own.waiting() and not any(c.waiting for c in self._consumers):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(wake_at(_TICK_S)):
                    await wake.wait()
        if wake.is_set() and self._settings.linger_ms:
            await sleep_or_stop(stop, self._settings.linger_ms / 1000)

    async def _round(self, connection: Connection, chain: Chain) -> bool:
        """Append what is here, seal if it is time; returns whether there was something."""
        self._database.clock.require()
        await self._tend(connection)
        batch = self._take()
        busy = bool(batch) or bool(self._own.waiting())
        if busy:
            try:
                await self._commit(connection, chain, batch)
            except BaseException:  # Cleanup, then raised again: the batch goes back to the bus.
                for received in batch:
                    await received.delivery.nak(self._settings.retry_s)
                raise
        if self._sealer.due(chain.size):
            await self._sealer.seal(connection, chain)
        return busy

    async def _tend(self, connection: Connection) -> None:
        for consumer in self._consumers:
            await consumer.maintain()
        now = monotonic_s()
        if now - self._checked > _PROBE_S:
            await connection.fetchval("select 1")
            self._checked = now
        if not self._partitioned or now - self._partitioned > _MONTHS_S:
            await store.ensure_months(connection, self._clock.now())
            self._partitioned = now

    def _take(self) -> list[_Received]:
        batch: list[_Received] = []
        count = 0
        for consumer in self._consumers:
            while count < self._settings.max_records and consumer.waiting:
                delivery = consumer.take(1)[0]
                read = record_decoder.read_signed(delivery.data, delivery.topic, delivery.sender)
                count += max(1, len(read.entries))
                batch.append(_Received(delivery, read))
        return batch

    async def _commit(self, connection: Connection, chain: Chain, batch: list[_Received]) -> None:
        batch = [
            received
            for received in batch
            if not received.read.fault or await self._dead_letter(received)
        ]
        try:
            await self._append(connection, chain, batch)
        except UNAVAILABLE:
            raise
        except asyncpg.PostgresError as exc:
            await self._require_log(connection, chain, exc)
            await self._one_by_one(connection, chain, batch)
            return
        await _end(batch)

    async def _append(
        self, connection: Connection, chain: Chain, batch: Sequence[_Received]
    ) -> None:
        for received in batch:
            self._note_ahead(received.read.entries)
        own = self._own.waiting()
        entries = [*own, *(entry for received in batch for entry in received.read.entries)]
        started = monotonic_s()
        with contextlib.ExitStack() as spans:
            parents = [parent for received in batch for parent in received.read.traceparents]
            for parent in parents[:_SPANS]:
                spans.enter_context(
                    self._tracing.span(
                        "audit append", parent, kind=SpanKind.CONSUMER, records=len(entries)
                    )
                )
            hit("audit.append")
            done = await chain.append(connection, entries)
            hit("audit.committed")
        self._own.committed(len(own))
        if done.conflicts:
            await self._record_conflicts(connection, chain, done.conflicts)
        self._measure(chain, done.entries, done.duplicates, monotonic_s() - started)

    def _note_ahead(self, entries: Sequence[record_decoder.Entry]) -> None:
        """Note records of the future when they are taken: their producer's clock is wrong."""
        latest = self._clock.now() + CLOCK_SKEW
        for entry in entries:
            if entry.occurred_at <= latest:
                continue
            record, ahead = entry.record, entry.occurred_at - latest + CLOCK_SKEW
            self._own.note(
                RECORD_AHEAD,
                phase="error",
                severity="warning",
                reason=("record.ahead", "its producer's clock is ahead"),
                record_id=ids.record_id(RECORD_AHEAD, entry.record_id),
                id=entry.record_id,
                service=record.producer.service,
                instance=record.producer.instance,
                ahead_s=int(ahead.total_seconds()),
            )

    async def _record_conflicts(
        self, connection: Connection, chain: Chain, conflicts: Sequence[record_decoder.Entry]
    ) -> None:
        """Log what came under an id in use, before its message is acknowledged."""
        records = []
        for entry in conflicts:
            digest = ids.digest([entry.text.encode()]).hex()
            record = self._own.record(
                "audit.conflict",
                {"id": entry.record_id, "sha256": digest, "record": entry.text},
                phase="error",
                severity="critical",
                reason=("record.conflict", "a different record is logged under this id"),
                record_id=ids.record_id("audit.conflict", entry.record_id, digest),
            )
            records.append(record_decoder.entry_of(record))
            log.error(
                "audit record id in use",
                extra=fields(record_id=entry.record_id, service=entry.record.producer.service),
            )
        await chain.append(connection, records)
        self.size = chain.size

    def _measure(
        self, chain: Chain, entries: Sequence[record_decoder.Entry], duplicates: int, seconds: float
    ) -> None:
        self.size = chain.size
        metrics.LOG_SIZE.set(chain.size)
        metrics.DUPLICATES.inc(duplicates)
        if not entries:
            return
        metrics.BATCHES.inc()
        metrics.BATCH_SECONDS.observe(seconds)
        phases: dict[str, int] = {}
        for entry in entries:
            phases[entry.record.phase] = phases.get(entry.record.phase, 0) + 1
        for phase, count in phases.items():
            metrics.RECORDS.labels(phase).inc(count)
        oldest = min(entry.occurred_at for entry in entries)
        metrics.DELAY_SECONDS.observe(max(0.0, (self._clock.now() - oldest).total_seconds()))
        log.debug("records appended", extra=fields(records=len(entries), size=chain.size))

    async def _require_log(
        self, connection: Connection, chain: Chain, error: asyncpg.PostgresError
    ) -> None:
        """Raise unless the log takes a record of its own: then the message is at fault.

        Raises:
            LedgerUnavailable: PostgreSQL refuses every record, so none is put aside.
        """
        probe = self._own.record("audit.append", {}, record_id=ids.uuid7())
        if not await chain.takes(connection, record_decoder.entry_of(probe)):
            raise LedgerUnavailable(
                f"PostgreSQL refuses every record: {type(error).__name__}"
            ) from error

    async def _one_by_one(
        self, connection: Connection, chain: Chain, batch: Sequence[_Received]
    ) -> None:
        """Append message by message, so that one that cannot be stored holds up no other."""
        for received in batch:
            try:
                await self._append(connection, chain, [received])
            except UNAVAILABLE:
                raise
            except asyncpg.PostgresError as exc:
                await self._require_log(connection, chain, exc)
                refused = record_decoder.Intake((), fault="refused", reason=type(exc).__name__)
                if not await self._dead_letter(_Received(received.delivery, refused)):
                    continue
                await received.delivery.term()
            else:
                await _end([received])

    async def _dead_letter(self, received: _Received) -> bool:
        """Put the message aside; False if that failed, and it will be delivered again."""
        delivery, fault = received.delivery, str(received.read.fault)
        place = f"{delivery.topic}/{delivery.sequence}"
        identity = ids.record_id("audit.dead_letter", place, ids.digest([delivery.data]).hex())
        try:
            await publish_dead_letter(
                self._bus, SERVICE, delivery, reason=fault, message_id=identity
            )
        except BusUnavailable as exc:
            log.warning("dead letter not published", extra=fields(error=exc.reason))
            await delivery.nak(self._settings.retry_s)
            return False
        metrics.DEAD_LETTERS.labels(fault).inc()
        log.error(
            "audit message unreadable", extra=fields(place=place, reason=received.read.reason)
        )
        self._own.note(
            "audit.dead_letter",
            phase="error",
            severity="error",
            reason=(fault, received.read.reason),
            record_id=identity,
            topic=delivery.topic,
            sequence=delivery.sequence,
            octets=len(delivery.data),
            kept=len(received.read.entries),
        )
        return True


async def _end(batch: Sequence[_Received]) -> None:
    for received in batch:
        await (received.delivery.term() if received.read.fault else received.delivery.ack())
