"""Splunk HTTP Event Collector, with indexer acknowledgement where the token has it.

Without it, 200 says that the events were parsed. With it, each request gets an ``ackId`` of its
channel, and is delivered when ``/services/collector/ack`` says ``true`` for it once; ``false`` also
means that the id is unknown, so after ``acknowledge_timeout_s`` the events are sent again.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Sequence
from typing import Any

from audit.formats.entry import Entry, without_empty
from audit.sink_settings import SplunkSink
from audit.transports.http_client import Answer, HTTPClient, bearer, check, pause
from audit.transports.transport import BatchRefused, Outcome, Prepared, SinkBusy
from estcore.clock import Clock, monotonic_s

_EVENTS, _ACK = "/services/collector/event", "/services/collector/ack"
_FIRST_ASK_S, _LONGEST_ASK_S = 0.1, 5.0


class SplunkTransport:
    """One channel of an event collector."""

    acknowledged = True

    def __init__(self, sink: SplunkSink, clock: Clock) -> None:
        self._sink, self._client = sink, HTTPClient(sink, clock)
        self._channel = str(uuid.uuid4())

    async def open(self) -> None:
        """Begin a session.

        Raises:
            OSError: a file cannot be used.
        """
        self._client.open()

    def prepare(self, entry: Entry) -> Prepared:
        """Return an entry as an event; its fields are indexed."""
        facts = entry.facts
        fields = without_empty(
            {
                "record_id": facts.record_id,
                "action": facts.action,
                "outcome": facts.outcome,
                "severity": facts.severity,
                "reason_code": facts.reason_code,
                "correlation_id": facts.correlation_id,
                "tenant": facts.tenant,
                "owner": facts.owner,
                "serial_number": facts.serial,
            }
        )
        event = without_empty(
            {
                "time": f"{facts.occurred_at.timestamp():.6f}",
                "host": facts.instance,
                "source": f"est-audit:{facts.service}",
                "sourcetype": self._sink.sourcetype,
                "index": self._sink.index,
                "fields": fields,
            }
        )
        event["event"] = dict(entry.value)
        return Prepared(entry.key, json.dumps(event, separators=(",", ":")), entry.log_index)

    async def deliver(self, prepared: Sequence[Prepared]) -> Outcome:
        """Send events; with acknowledgement, return when indexers have them.

        Raises:
            BatchRefused: the content is refused for good.
            OSError: not reached, not now, or not acknowledged in time.
        """
        body = "\n".join(one.payload for one in prepared).encode()
        answer = self._checked(await self._post(_EVENTS, body))
        if self._sink.acknowledge:
            await self._acknowledged(_number(answer))
        return Outcome()

    async def watch(self, seconds: float) -> None:
        """Wait."""
        await pause(seconds)

    async def close(self) -> None:
        """End the session."""
        await self._client.close()

    async def _acknowledged(self, number: int) -> None:
        end = monotonic_s() + self._sink.acknowledge_timeout_s
        wait = _FIRST_ASK_S
        while monotonic_s() < end:
            body = json.dumps({"acks": [number]}).encode()
            answer = check(await self._post(_ACK, body))
            try:
                if json.loads(answer.body)["acks"].get(str(number)):
                    return
            except (ValueError, KeyError, AttributeError) as exc:
                raise ConnectionAbortedError("the answer is no acknowledgement") from exc
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_ASK_S)
        raise SinkBusy("the indexers did not acknowledge in time")

    async def _post(self, path: str, body: bytes) -> Answer:
        headers = {
            "Content-Type": "application/json",
            "X-Splunk-Request-Channel": self._channel,
            **bearer(self._sink.token_file, "Splunk"),
        }
        return await self._client.post(self._sink.url.rstrip("/") + path, body, headers)

    def _checked(self, answer: Answer) -> Answer:
        """Return a good answer; a 400 that is about the token or the channel refuses no content.

        Raises:
            BatchRefused, OSError: see ``check``.
        """
        try:
            return check(answer)
        except BatchRefused as exc:
            if _code(answer) in _ABOUT_SETTINGS:
                raise ConnectionRefusedError(str(exc)) from exc
            raise


_ABOUT_SETTINGS = frozenset({1, 2, 3, 4, 7, 10, 11, 14})
"""HEC status codes of a disabled or wrong token, a wrong index or channel, and disabled acks."""


def _code(answer: Answer) -> int | None:
    try:
        found: Any = json.loads(answer.body)["code"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) else None


def _number(answer: Answer) -> int:
    try:
        return int(json.loads(answer.body)["ackId"])
    except (ValueError, KeyError, TypeError) as exc:
        raise ConnectionAbortedError(
            "no ackId: indexer acknowledgement is not enabled for the token"
        ) from exc
