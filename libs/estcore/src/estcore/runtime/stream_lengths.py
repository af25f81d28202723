"""Lengths of streams and consumers, as metrics of the service that owns or reads them.

A platform team sees in one place what waits on the bus, and scales by it, without access to the
monitoring port of nats-server. Every replica reports the same figures, and asks NATS for them when
its metrics are read: without a scrape it asks nothing.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Iterable
from typing import TypeVar

from prometheus_client import Gauge
from pydantic import BaseModel, Field, ValidationError

from estcore.clock import monotonic_s, unix_ms
from estcore.errors import BusUnavailable
from estcore.messages.topics import Consumer, Stream
from estcore.runtime.bus import Bus
from estcore.runtime.logs import fields

log = logging.getLogger(__name__)

_FRESH_S = 5.0
"""Figures of less than this age are not asked for again: several may scrape."""
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


class _StreamState(BaseModel):
    messages: int
    octets: int = Field(alias="bytes")
    first_ts: dt.datetime


class _StreamConfig(BaseModel):
    max_bytes: int = -1
    max_msgs: int = -1


class _StreamInfo(BaseModel):
    """What is read of JetStream's answer about a stream."""

    state: _StreamState
    config: _StreamConfig


class _ConsumerInfo(BaseModel):
    """What is read of JetStream's answer about a consumer."""

    num_pending: int
    num_ack_pending: int
    num_redelivered: int


Info = TypeVar("Info", bound=BaseModel)


class StreamLengths:
    """Asks NATS for the state of streams and consumers."""

    def __init__(self, bus: Bus, streams: Iterable[Stream], consumers: Iterable[Consumer]) -> None:
        self._bus = bus
        self._streams = tuple(stream.name for stream in streams)
        self._consumers = tuple((c.stream, c.name) for c in consumers)
        self._asked_at = -_FRESH_S

    async def refresh(self) -> None:
        """Ask, unless it was asked a moment ago; what cannot be asked keeps its figures."""
        now = monotonic_s()
        if self._bus.connected and now - self._asked_at >= _FRESH_S:
            self._asked_at = now
            await self.ask()

    async def ask(self) -> None:
        """Ask for every stream and consumer once."""
        for stream in self._streams:
            info = await self._info(_StreamInfo, f"STREAM.INFO.{stream}")
            if info is not None:
                _note_stream(stream, info)
        for stream, consumer in self._consumers:
            about = await self._info(_ConsumerInfo, f"CONSUMER.INFO.{stream}.{consumer}")
            if about is not None:
                _note_consumer(stream, consumer, about)

    async def _info(self, model: type[Info], subject: str) -> Info | None:
        try:
            octets = await self._bus.ask_jetstream(subject, timeout_s=_TIMEOUT_S)
            return model.model_validate_json(octets)
        except (BusUnavailable, ValidationError) as exc:
            # Also an error of JetStream: it has no such stream or consumer.
            log.debug("state not known", extra=fields(subject=subject, error=str(exc)))
            return None


def _note_stream(stream: str, info: _StreamInfo) -> None:
    state, config = info.state, info.config
    MESSAGES.labels(stream).set(state.messages)
    BYTES.labels(stream).set(state.octets)
    age_s = unix_ms() / 1000 - state.first_ts.timestamp() if state.messages else 0
    OLDEST.labels(stream).set(max(age_s, 0))
    for gauge, limit in ((LIMIT_BYTES, config.max_bytes), (LIMIT_MESSAGES, config.max_msgs)):
        if limit > 0:
            gauge.labels(stream).set(limit)


def _note_consumer(stream: str, consumer: str, info: _ConsumerInfo) -> None:
    PENDING.labels(stream, consumer).set(info.num_pending)
    UNACKNOWLEDGED.labels(stream, consumer).set(info.num_ack_pending)
    REDELIVERED.labels(stream, consumer).set(info.num_redelivered)
