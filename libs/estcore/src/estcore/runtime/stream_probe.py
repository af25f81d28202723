"""Probe of the streams: is each stream that a service publishes to there, and does it store?

A connection to NATS says nothing about JetStream: a stream can be missing, without a leader, or on
a full disk. Each process asks every stream with a message that expects a different stream,
which the stream's leader refuses without storing it, and stores a message of its own in ``CANARY``.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence

from prometheus_client import Gauge

from estcore.clock import monotonic_s
from estcore.errors import BusUnavailable
from estcore.messages.topics import CANARY, canary_topic, stream_of
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.clock_check import ClockCheck
from estcore.runtime.logs import fields
from estcore.runtime.nats_client import BUS_ERRORS, nats
from estcore.runtime.service import sleep_or_stop
from estcore.runtime.stored_messages import stored_at

log = logging.getLogger(__name__)

_EVERY_S = 10.0
_AGAIN_S = 2.0
_TIMEOUT_S = 3.0
_OLD_S = 60.0
_EXPECTED_DIFFERENT = 10060
"""JetStream's error code: the expected stream does not match."""

STREAMS_WRITABLE = Gauge(
    "estsuite_streams_writable", "1 while every stream this process publishes to takes messages."
)


class StreamProbe:
    """Watches the streams that a service publishes to."""

    def __init__(
        self, bus: Bus, service: str, group: str = "", clock: ClockCheck | None = None
    ) -> None:
        """``clock`` is compared with NATS's: for a service without PostgreSQL."""
        self._bus, self._clock = bus, clock
        self._canary = canary_topic(service, group)
        self._fault: str | None = "not probed yet"
        self._probed = monotonic_s()
        self._reached = False

    @property
    def ready(self) -> bool:
        """Every stream took what it was sent, a moment ago."""
        return self._fault is None and monotonic_s() - self._probed < _OLD_S

    @property
    def reached(self) -> bool:
        """Every stream took what it was sent, at least once since the start."""
        return self._reached

    async def run(self, stop: asyncio.Event) -> None:
        """Probe until ``stop``, more often while a stream is unavailable."""
        while True:
            await self.probe()
            if await sleep_or_stop(stop, _EVERY_S if self._fault is None else _AGAIN_S):
                return

    async def probe(self) -> None:
        """Probe every stream once."""
        fault = await self._find_fault(self._topics())
        if fault != self._fault:
            if fault is not None:
                log.warning("streams not writable", extra=fields(reason=fault))
            elif self._fault != "not probed yet":
                log.info("streams writable")
        self._fault, self._probed = fault, monotonic_s()
        self._reached |= fault is None
        STREAMS_WRITABLE.set(fault is None)

    def _topics(self) -> dict[str, str]:
        return {s: t for t in self._bus.rights if (s := stream_of(t)) is not None}

    async def _find_fault(self, topics: dict[str, str]) -> str | None:
        if not self._bus.connected:
            self._bus.client.revive()
            return "the bus is not connected"
        faults: Sequence[str | None] = await asyncio.gather(
            *(self._ask(stream, topic) for stream, topic in topics.items()), self._store()
        )
        return next((fault for fault in faults if fault is not None), None)

    async def _ask(self, stream: str, topic: str) -> str | None:
        try:
            answer = await self._bus.probe(topic, timeout_s=_TIMEOUT_S)
            error = json.loads(answer).get("error", {})
        except nats.errors.NoRespondersError:
            return f"{stream} does not exist, or JetStream is disabled"
        except (TimeoutError, *BUS_ERRORS, ValueError, AttributeError) as exc:
            return f"{stream} does not answer: {type(exc).__name__}"
        if error.get("err_code") == _EXPECTED_DIFFERENT:
            return None
        return f"{stream}: {error.get('description', 'unexpected answer')}"

    async def _store(self) -> str | None:
        try:
            await self._bus.publish_confirmed([Outgoing(self._canary, b"{}")], timeout_s=_TIMEOUT_S)
            if self._clock is not None:
                at = await stored_at(self._bus, CANARY, self._canary, timeout_s=_TIMEOUT_S)
                self._clock.compared(at)
        except BusUnavailable as exc:
            return f"{CANARY}: {exc.reason}"
        return None
