"""The front end's audit trail: every answered enrollment and every refusal, off the hot path.

- Records are numbered without gaps per boot, sent in batches with their PubAcks awaited, and kept
  in the spool while the bus is unavailable. The first say how far earlier boots had come.
- A record is encoded when it is added. One that has no JSON form, or is too large, is replaced by
  a record that says so: no record in the queue can hold up those behind it.
- What was sent a moment ago is sent again when the stream has lost it (``SentBatches``).
- Refusals of one source above a rate are counted in one record, so a flood can neither fill the
  stream nor hide among itself.
- Memory, spool and disk are bounded. Refusals have a part of each; beyond it they are counted, by
  code (``refusal_counts``). The rest is for enrollments: no flood of refusals makes it unready.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from est_frontend import metrics
from est_frontend.audit_trail.refusal_counts import WINDOW_S, RefusalCounts
from est_frontend.audit_trail.spool import Spool
from est_frontend.settings import TrailSettings
from estcore import ids
from estcore.clock import Clock, monotonic_s
from estcore.errors import AuditUnavailable, BusUnavailable, InvariantBroken
from estcore.messages import topics
from estcore.messages.audit_batches import encode_records, fitting
from estcore.messages.envelope import encode_mapping, without_none
from estcore.runtime.boot import Boot
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.logs import fields
from estcore.runtime.sent_batches import SentBatches
from estcore.runtime.service import event_or_stop, sleep_or_stop
from estcore.tlog.sequences import PREVIOUS_BOOT

log = logging.getLogger(__name__)

SERVICE = "est-frontend"
_RECORD_BYTES = 64 * 1024
_MEMORY = 20_000
_MEMORY_BYTES = 64 * 1024 * 1024
_REFUSALS = 4
"""Refusals may take a quarter of the memory, and half of the spool."""
_TRACES = 1000
_IDLE_S = 1.0
"""Seconds between two looks at windows that end, while no record comes."""


class AuditTrail:
    """Collects, numbers, sends, spools."""

    def __init__(
        self,
        bus: Bus,
        settings: TrailSettings,
        clock: Clock,
        *,
        group: str,
        instance: str,
        boot: Boot | None = None,
    ) -> None:
        self._bus = bus
        self._settings = settings
        self._clock = clock
        self._spool = Spool(settings.spool_file, settings.max_spooled)
        self._topic = topics.audit_refusal_topic(SERVICE, group)
        self._boot = boot or Boot()
        self._producer = {"service": SERVICE, "instance": instance, "boot_id": self._boot.id}
        self._pending: list[bytes] = []
        self._traced: list[str] = []
        self._pending_bytes = 0
        self._refusals = RefusalCounts(settings.refusals_per_source)
        self._window_until = 0.0
        self._broken = False
        self._collected = asyncio.Event()
        """Something is to be sent, or could not be sent."""
        self._sent = SentBatches(bus)

    @property
    def ready(self) -> bool:
        """Another record can be made durable."""
        return not (self._broken or self._spool.full or self._holds(1))

    @property
    def _room_for_refusals(self) -> bool:
        return not (self._broken or self._spool.scarce or self._holds(_REFUSALS))

    def _holds(self, part: int) -> bool:
        """Return whether the memory is used up, or a part of it."""
        records, octets = len(self._pending), self._pending_bytes
        return records >= _MEMORY // part or octets >= _MEMORY_BYTES // part

    async def open(self) -> None:
        """Open the spool, and begin the numbers with what is known of earlier boots.

        Raises:
            ConfigurationError: the spool cannot be used.
        """
        await self._spool.open()
        for statement in self._boot.statements:
            self.event(PREVIOUS_BOOT, **statement)

    def refused(self, peer: str, code: str, **parts: Any) -> None:
        """Record a refusal; above the rate per source, or without room, it is only counted."""
        if monotonic_s() >= self._window_until:
            self._summarize()
        if self._refusals.records(peer, code, room=self._room_for_refusals):
            self.add(
                phase="denied", outcome="failure", reason_code=code, severity="notice", **parts
            )

    def add(self, *, traceparent: str | None = None, **parts: Any) -> None:
        """Record one fact; the keyword arguments are those of AuditRecord, parts as mappings."""
        severity = parts.pop("severity", "info")
        number = self._boot.next()
        try:
            record = self._encoded(number, severity=severity, **parts)
        except InvariantBroken as exc:
            log.error("audit record replaced", extra=fields(code=exc.code))
            record = self._encoded(
                number,
                correlation_id=ids.uuid7(),
                action="audit.record_replaced",
                phase="error",
                outcome="unknown",
                reason_code=exc.code,
                reason=exc.reason,
                severity="error",
                actor={"type": "system", "subject": SERVICE},
            )
        self._pending.append(record)
        self._collected.set()
        self._pending_bytes += len(record)
        if traceparent is not None and len(self._traced) < _TRACES:
            self._traced.append(traceparent)

    def _encoded(self, number: int, **parts: Any) -> bytes:
        record = encode_mapping(
            without_none(
                record_id=ids.uuid7(),
                schema_version=1,
                producer=self._producer,
                producer_seq=number,
                occurred_at=self._clock.now(),
                **parts,
            )
        )
        if len(record) > _RECORD_BYTES:
            raise InvariantBroken("an audit record is too large", code="message.too_large")
        return record

    def event(self, action: str, **details: Any) -> None:
        """Record something the service did by itself (start, stop)."""
        self.add(
            correlation_id=ids.uuid7(),
            action=action,
            phase="outcome",
            outcome="success",
            actor={"type": "system", "subject": SERVICE},
            details=details or None,
        )

    def _summarize(self, *, always: bool = False) -> None:
        """End the window of refusals; without room it goes on, and the counts with it."""
        self._window_until = monotonic_s() + WINDOW_S
        if not (always or self._room_for_refusals):
            self._refusals.widen()
            return
        for item in self._refusals.end_window():
            self.add(
                correlation_id=ids.uuid7(),
                action="est.refusals",
                phase="denied",
                outcome="failure",
                reason_code=item.code,
                severity="warning",
                actor={"type": "service"},
                origin=None if item.source is None else {"peer": item.source},
                details=item.details,
            )

    async def run(self, stop: asyncio.Event) -> None:
        """Send what is collected until ``stop``; the last of it is sent by ``close``."""
        every_s = self._settings.flush_every_s
        while not await event_or_stop(stop, self._collected, _IDLE_S):
            # What comes within a moment travels together.
            if await sleep_or_stop(stop, every_s):
                return
            if monotonic_s() >= self._window_until and self._refusals:
                self._summarize()
            await self.flush()
            if self._pending or self._spool.count or self._broken:
                self._collected.set()
            else:
                self._collected.clear()

    async def flush(self) -> None:
        """Make everything collected durable: on the stream, else in the spool.

        Never raises: what could not be made durable stays in memory for the next call.
        """
        try:
            await self._drain()
            while self._pending:
                records = self._pending[: fitting(self._pending)]
                traced, self._traced = self._traced, []
                await self._keep(len(records), encode_records(records, traced))
                del self._pending[: len(records)]
                self._pending_bytes -= sum(map(len, records))
            await self._spool.tidy()
        except AuditUnavailable as exc:
            self._fail(code=exc.code, reason=exc.reason)
        except Exception as exc:  # noqa: BLE001 - Bulkhead: a fault must not end the front end.
            self._fail(exc_info=exc)
        else:
            if self._broken:
                log.info("audit records can be stored again")
            self._broken = False
            self._boot.forget_earlier()
        metrics.SPOOLED.set(self._spool.count)

    def _fail(self, exc_info: Exception | None = None, **more: str) -> None:
        """Become unready; the next calls of ``flush`` try again, and only the first is logged."""
        if not self._broken:
            log.error("audit records cannot be stored", exc_info=exc_info, extra=fields(**more))
        self._broken = True

    async def _keep(self, count: int, body: bytes) -> None:
        if self._spool.count == 0 and await self._published(body):
            return
        log.warning("audit records written to the spool", extra=fields(records=count))
        await self._spool.put(count, body)

    async def _published(self, body: bytes) -> bool:
        try:
            await self._sent.publish(Outgoing(self._topic, body))
        except BusUnavailable:
            return False
        except Exception:  # Bulkhead: for any error of the bus client the spool keeps the records.
            log.exception("audit records not published")
            return False
        return True

    async def _drain(self) -> None:
        while self._spool.count and self._bus.connected:
            first = await self._spool.first()
            if first is None:
                return
            batch_id, count, body = first
            if not await self._published(body):
                return
            await self._spool.drop(batch_id, count)

    async def close(self) -> None:
        """Make the rest durable and close the spool."""
        try:
            # Now or never: what was only counted is recorded whatever the room.
            self._summarize(always=True)
            await self.flush()
        finally:
            if self._pending:
                log.error("audit records lost", extra=fields(records=len(self._pending)))
            await self._spool.close()
            self._boot.close()
