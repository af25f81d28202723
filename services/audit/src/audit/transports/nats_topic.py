"""CloudEvents on a topic of a NATS of others: stored by a stream there, confirmed by its PubAck.

The message id is the record id, so a stream drops what is delivered again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from audit.formats import cloudevents
from audit.formats.entry import Entry
from audit.sink_settings import NATSSink
from audit.transports.http_client import pause
from audit.transports.transport import Outcome, Prepared
from estcore.errors import ConfigurationError, Unavailable
from estcore.runtime.bus import Bus, Outgoing


class NATSTransport:
    """One connection to the NATS of the receivers."""

    acknowledged = True

    def __init__(self, sink: NATSSink) -> None:
        self._sink = sink
        self._bus: Bus | None = None

    async def open(self) -> None:
        """Connect.

        Raises:
            OSError: not reached, or the settings cannot be used.
        """
        try:
            async with asyncio.timeout(self._sink.timeout_s):
                self._bus = await Bus.connect(
                    self._sink.bus, "est-audit", self._sink.name, signs=False
                )
        except (ConfigurationError, Unavailable) as exc:
            raise ConnectionRefusedError(exc.reason) from exc

    def prepare(self, entry: Entry) -> Prepared:
        """Return an entry as a message."""
        topic = f"{self._sink.topic}.{entry.facts.action}"
        text = json.dumps(cloudevents.render(entry), separators=(",", ":")).encode()
        return Prepared(entry.key, Outgoing(topic, text, entry.key), entry.log_index)

    async def deliver(self, prepared: Sequence[Prepared]) -> Outcome:
        """Publish messages; returns when a stream has stored each.

        Raises:
            OSError: not confirmed.
        """
        if self._bus is None:
            raise ConnectionResetError("not connected")
        messages = [one.payload for one in prepared]
        try:
            await self._bus.publish_confirmed(messages, timeout_s=self._sink.timeout_s)
        except Unavailable as exc:
            raise ConnectionAbortedError(exc.reason) from exc
        return Outcome()

    async def watch(self, seconds: float) -> None:
        """Wait.

        Raises:
            OSError: the connection is lost.
        """
        await pause(seconds)
        if self._bus is None or not self._bus.connected:
            raise ConnectionResetError("the connection to NATS is lost")

    async def close(self) -> None:
        """Close the connection."""
        if self._bus is not None:
            await self._bus.close()
