"""Lengths of streams and consumers, as metrics of the service that owns or reads them.

A platform team sees in one place what waits on the bus, and scales by it, without access to the
monitoring port of nats-server. Every replica reports the same figures.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import Gauge

from estcore.clock import unix_ms
from estcore.errors import BusUnavailable
from estcore.messages.topics import Consumer, Stream
from estcore.runtime.bus import Bus
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop

log = logging.getLogger(__name__)

_EVERY_S = 15.0
_TIMEOUT_S = 3.0

MESSAGES = Gauge("estsuite_stream_messages", "Messages in a stream", ["stream"])
BYTES = Gauge("estsuite_stream_bytes", "Octets of a stream", ["stream"])
LIMIT_BYTES = Gauge(
    "estsuite_stream_limit_bytes", "Octets that a stream may have; absent if unbounded", ["stream"]
)
LIMIT_MESSAGES = Gauge(
    "estsuite_stream_limit_messages",
    "Messages that a stream may have; absent if unbounded",
    ["stream"],
)
OLDEST = Gauge(
    "estsuite_stream_oldest_seconds",
    "Age of the oldest message in a stream; 0 if empty",
    ["stream"],
)
PENDING = Gauge(
    "estsuite_consumer_pending",
    "Messages that a consumer has not been sent yet",
    ["stream", "consumer"],
)
UNACKNOWLEDGED = Gauge(
    "estsuite_consumer_unacknowledged",
    "Messages that a consumer was sent and has not acknowledged",
    ["stream", "consumer"],
)
REDELIVERED = Gauge(
    "estsuite_consumer_redelivered",
    "Unacknowledged messages that were sent to a consumer more than once",
    ["stream", "consumer"],
)


class StreamLengths:
    """Asks NATS for the state of streams and consumers."""

    def __init__(self, bus: Bus, streams: Iterable[Stream], consumers: Iterable[Consumer]) -> None:
        self._bus = bus
        self._streams = tuple(stream.name for stream in streams)
        self._consumers = tuple((c.stream, c.name) for c in consumers)

    async def run(self, stop: asyncio.Event) -> None:
        """Ask until ``stop``; what cannot be asked keeps the figures of before."""
        while True:
            if self._bus.connected:
                await self.ask()
            if await sleep_or_stop(stop, _EVERY_S):
                return

    async def ask(self) -> None:
        """Ask for every stream and consumer once."""
        for stream in self._streams:
            if (info := await self._info(f"STREAM.INFO.{stream}")) is not None:
                _note_stream(stream, info)
        for stream, consumer in self._consumers:
            if (info := await self._info(f"CONSUMER.INFO.{stream}.{consumer}")) is not None:
                _note_consumer(stream, consumer, info)

    async def _info(self, subject: str) -> Mapping[str, Any] | None:
        try:
            octets = await self._bus.ask_jetstream(subject, timeout_s=_TIMEOUT_S)
            info = json.loads(octets)
        except (BusUnavailable, ValueError) as exc:
            log.debug("state not known", extra=fields(subject=subject, error=str(exc)))
            return None
        return info if isinstance(info, dict) and "error" not in info else None


def _note_stream(stream: str, info: Mapping[str, Any]) -> None:
    state, config = info.get("state", {}), info.get("config", {})
    MESSAGES.labels(stream).set(state.get("messages", 0))
    BYTES.labels(stream).set(state.get("bytes", 0))
    OLDEST.labels(stream).set(_age_s(state))
    for gauge, limit in ((LIMIT_BYTES, "max_bytes"), (LIMIT_MESSAGES, "max_msgs")):
        if config.get(limit, -1) > 0:
            gauge.labels(stream).set(config[limit])


def _note_consumer(stream: str, consumer: str, info: Mapping[str, Any]) -> None:
    PENDING.labels(stream, consumer).set(info.get("num_pending", 0))
    UNACKNOWLEDGED.labels(stream, consumer).set(info.get("num_ack_pending", 0))
    REDELIVERED.labels(stream, consumer).set(info.get("num_redelivered", 0))


def _age_s(state: Mapping[str, Any]) -> float:
    if not state.get("messages"):
        return 0.0
    try:
        first = dt.datetime.fromisoformat(str(state["first_ts"])[:19]).replace(tzinfo=dt.UTC)
    except (KeyError, ValueError):
        return 0.0
    return max(unix_ms() / 1000 - first.timestamp(), 0.0)
