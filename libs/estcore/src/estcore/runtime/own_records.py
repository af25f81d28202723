"""Numbered audit records of a service about itself; they wait here until the bus has them.

The other records of these services follow from rows and can be made again, so they need no numbers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from estcore import ids
from estcore.clock import Clock
from estcore.errors import BusUnavailable
from estcore.messages.audit import Actor, AuditRecord, AuditRecordBuilder
from estcore.messages.audit_batches import MAX_RECORDS, encode_records, fitting
from estcore.messages.envelope import encode
from estcore.runtime.boot import Boot
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.logs import fields
from estcore.runtime.sent_batches import SentBatches
from estcore.runtime.service import sleep_or_stop
from estcore.tlog.sequences import PREVIOUS_BOOT

log = logging.getLogger(__name__)

_MEMORY = 1000
_RETRY_S = 5
_TIMEOUT_S = 2


class OwnRecords:
    """The queue of one process; ``topic`` is where its records go."""

    def __init__(self, bus: Bus, topic: str, instance: str, clock: Clock, boot: Boot) -> None:
        self._sent = SentBatches(bus)
        self._topic, self._clock, self._boot = topic, clock, boot
        self._service = topic.split(".")[2]
        self._build = AuditRecordBuilder(self._service, instance, boot.id)
        self._waiting: list[AuditRecord] = []
        self._lock = asyncio.Lock()

    async def begin(self) -> None:
        """Record what is known of earlier boots, then the start of this one."""
        for statement in self._boot.statements:
            self._add(PREVIOUS_BOOT, statement)
        await self.report("service.start", {})

    async def report(self, action: str, details: Mapping[str, JsonValue]) -> None:
        """Record something the service did by itself; without the bus it waits."""
        self._add(action, details)
        await self.flush()

    async def run(self, stop: asyncio.Event) -> None:
        """Publish what waits until ``stop``, and record that."""
        while not await sleep_or_stop(stop, _RETRY_S):
            await self.flush()
        await self.report("service.stop", {})

    async def flush(self) -> None:
        """Publish what waits; it goes on waiting while the bus is unavailable."""
        async with self._lock:
            while self._waiting:
                encoded = [encode(record) for record in self._waiting[:MAX_RECORDS]]
                count = fitting(encoded)
                message = Outgoing(self._topic, encode_records(encoded[:count]))
                try:
                    await self._sent.publish(message, timeout_s=_TIMEOUT_S)
                except BusUnavailable as exc:
                    log.warning(
                        "audit record not published",
                        extra=fields(waiting=len(self._waiting), code=exc.code),
                    )
                    return
                del self._waiting[:count]
            self._boot.forget_earlier()

    def _add(self, action: str, details: Mapping[str, JsonValue]) -> None:
        number = self._boot.next()
        if len(self._waiting) >= _MEMORY:
            # Its number is missing from now on, which verification finds.
            log.error("audit record lost", extra=fields(action=action))
            return
        identity = ids.uuid7()
        record: dict[str, Any] = {
            "record_id": identity,
            "at": self._clock.now(),
            "correlation_id": identity,
            "actor": Actor(type="system", subject=self._service),
            "severity": "notice",
            "producer_seq": number,
            "details": dict(details) or None,
        }
        if action.endswith("refused"):
            self._waiting.append(self._build.failure(action, phase="outcome", **record))
        else:
            self._waiting.append(self._build.success(action, **record))
