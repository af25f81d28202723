"""The front end's audit trail: every answered enrollment and every refusal, off the hot path.

Records are numbered without gaps per boot, sent in batches with their PubAcks awaited, and kept
in the spool while the bus is away. Refusals of one source above a rate are counted in one
record, so a flood can neither fill the stream nor hide among itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any

from est_frontend import metrics
from est_frontend.audit_trail.spool import Spool
from est_frontend.settings import TrailSettings
from estcore import ids
from estcore.clock import Clock, monotonic_s
from estcore.errors import AuditUnavailable, BusUnavailable
from estcore.messages import topics
from estcore.messages.envelope import encode_mapping, without_none
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop

log = logging.getLogger(__name__)

SERVICE = "est-frontend"
_BATCH = 256
_MEMORY = 20_000
_RATE_WINDOW_S = 10


class AuditTrail:
    """Collects, numbers, sends, spools."""

    def __init__(self, bus: Bus, settings: TrailSettings, clock: Clock, instance: str) -> None:
        self._bus = bus
        self._settings = settings
        self._clock = clock
        self._spool = Spool(settings.spool_file, settings.max_spooled)
        self._topic = topics.audit_refusal_topic(SERVICE, instance)
        self._producer = {"service": SERVICE, "instance": instance, "boot_id": ids.uuid7()}
        self._sequence = 0
        self._pending: list[dict[str, Any]] = []
        self._traced: list[str] = []
        self._refusals: Counter[tuple[str, str]] = Counter()
        self._window_until = 0.0
        self._broken = False

    @property
    def ready(self) -> bool:
        """Another record can be made durable."""
        return not (self._broken or self._spool.full or len(self._pending) >= _MEMORY)

    async def open(self) -> None:
        """Open the spool.

        Raises:
            ConfigurationError: the spool cannot be used.
        """
        await self._spool.open()

    def refused(self, peer: str, code: str, **parts: Any) -> None:
        """Record a refusal; above the rate per source it is only counted."""
        now = monotonic_s()
        if now >= self._window_until:
            self._summarize()
            self._window_until = now + _RATE_WINDOW_S
        self._refusals[peer, code] += 1
        if self._refusals[peer, code] <= self._settings.refusals_per_source:
            self.add(
                phase="denied", outcome="failure", reason_code=code, severity="notice", **parts
            )

    def add(self, *, traceparent: str | None = None, **parts: Any) -> None:
        """Record one fact; the keyword arguments are those of AuditRecord, parts as mappings."""
        self._sequence += 1
        self._pending.append(
            without_none(
                record_id=ids.uuid7(),
                schema_version=1,
                producer=self._producer,
                producer_seq=self._sequence,
                occurred_at=self._clock.now(),
                severity=parts.pop("severity", "info"),
                **parts,
            )
        )
        if traceparent is not None:
            self._traced.append(traceparent)

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

    def _summarize(self) -> None:
        limit = self._settings.refusals_per_source
        for (peer, code), count in self._refusals.items():
            if count > limit:
                self.add(
                    correlation_id=ids.uuid7(),
                    action="est.refusals",
                    phase="denied",
                    outcome="failure",
                    reason_code=code,
                    severity="warning",
                    actor={"type": "service"},
                    origin={"peer": peer},
                    details={"aggregated": count - limit, "window_s": _RATE_WINDOW_S},
                )
        self._refusals.clear()

    async def run(self, stop: asyncio.Event) -> None:
        """Send what is collected until ``stop``; the last of it is sent by ``close``."""
        while not await sleep_or_stop(stop, self._settings.flush_every_s):
            if monotonic_s() >= self._window_until and self._refusals:
                self._summarize()
            await self.flush()

    async def flush(self) -> None:
        """Make everything collected durable: on the stream, else in the spool."""
        await self._drain()
        while self._pending:
            records = self._pending[:_BATCH]
            traced, self._traced = self._traced, []
            body = encode_mapping({"records": records, "traceparents": traced})
            try:
                await self._keep(len(records), body)
            except AuditUnavailable as exc:
                self._broken = True
                log.error("audit records cannot be stored", extra=fields(code=exc.code))
                return
            del self._pending[: len(records)]
            self._broken = False
        metrics.SPOOLED.set(self._spool.count)

    async def _keep(self, count: int, body: bytes) -> None:
        if self._spool.count == 0:
            try:
                await self._bus.publish_confirmed([Outgoing(self._topic, body)])
            except BusUnavailable:
                log.warning("audit records written to the spool")
            else:
                return
        await self._spool.put(count, body)

    async def _drain(self) -> None:
        while self._spool.count and self._bus.connected:
            first = await self._spool.first()
            if first is None:
                return
            batch_id, count, body = first
            try:
                await self._bus.publish_confirmed([Outgoing(self._topic, body)])
            except BusUnavailable:
                return
            await self._spool.drop(batch_id, count)

    async def close(self) -> None:
        """Make the rest durable and close the spool."""
        self._summarize()
        await self.flush()
        await self._spool.close()
