"""What a stream stores, read back: each message verified by the signature it was stored with."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import logging
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any

from estcore.errors import BusUnavailable
from estcore.messages.signatures import HEADER, Sender
from estcore.runtime.bus import Bus
from estcore.runtime.nats_client import BUS_ERRORS, Msg

log = logging.getLogger(__name__)

_BATCH = 1024


@dataclass(frozen=True)
class Stored:
    """One message as a stream keeps it, signed by ``sender`` with ``signature``."""

    sequence: int
    topic: str
    payload: bytes
    sender: Sender
    signature: str


async def stored_at(bus: Bus, stream: str, topic: str, *, timeout_s: float = 5) -> float:
    """Return when the newest message on ``topic`` was stored: NATS's time, seconds since 1970.

    Raises:
        BusUnavailable: no answer in time, or no such message.
    """
    request = json.dumps({"last_by_subj": topic}).encode()
    try:
        answer = await bus.client.request(
            f"$JS.API.DIRECT.GET.{stream}", request, timeout=timeout_s
        )
        text = (answer.headers or {})["Nats-Time-Stamp"]
        return dt.datetime.fromisoformat(text[:19] + "+00:00").timestamp()
    except (TimeoutError, *BUS_ERRORS, KeyError, ValueError) as exc:
        raise BusUnavailable(f"no answer from stream {stream}") from exc


async def last_values(bus: Bus, stream: str, topics: str, *, timeout_s: float = 5) -> list[Stored]:
    """Return what was stored last on every topic matching ``topics`` in ``stream``.

    One batched direct get (server 2.11 and newer); replicas may answer slightly behind.

    Raises:
        BusUnavailable: no complete answer in time.
    """
    request = {"multi_last": [topics], "batch": _BATCH}
    return _verified(await _stored(bus, stream, request, timeout_s))


async def last_sequence(bus: Bus, stream: str, topics: str, *, timeout_s: float = 5) -> int:
    """Return the sequence of the newest message on ``topics``; 0 where there is none.

    Raises:
        BusUnavailable: no answer in time.
    """
    stored = await _stored(bus, stream, {"last_by_subj": topics}, timeout_s)
    return stored[0][0] if stored else 0


async def stored_from(
    bus: Bus,
    stream: str,
    topics: str,
    sequence: int,
    *,
    timeout_s: float = 5,
    batch: int = _BATCH,
) -> tuple[list[Stored], int]:
    """Return stored messages on ``topics`` from a sequence on, oldest first, a batch at most.

    With them comes the sequence to go on from, or 0 when there was nothing more: a batch may
    have messages that are refused and not returned.

    Raises:
        BusUnavailable: no complete answer in time.
    """
    request = {"seq": max(sequence, 1), "next_by_subj": topics, "batch": batch}
    stored = await _stored(bus, stream, request, timeout_s)
    return _verified(stored), stored[-1][0] + 1 if stored else 0


async def _stored(
    bus: Bus, stream: str, request: dict[str, Any], timeout_s: float
) -> list[tuple[int, Stored | None]]:
    """Return sequences and messages; None is one that is refused."""
    queue: asyncio.Queue[Msg] = asyncio.Queue()
    inbox = bus.client.new_inbox()
    subscription = await bus.client.subscribe(inbox, cb=queue.put)
    body = json.dumps(request).encode()
    stored: list[tuple[int, Stored | None]] = []
    try:
        async with asyncio.timeout(timeout_s):
            await bus.client.publish(f"$JS.API.DIRECT.GET.{stream}", body, reply=inbox)
            while True:
                message = await queue.get()
                headers = message.headers or {}
                status = headers.get("Status")
                if status in {"204", "404"}:
                    return stored
                if status is not None:
                    raise BusUnavailable(f"stream {stream} answers {status}")
                sequence = headers.get("Nats-Sequence", "")
                if not sequence.isdecimal():
                    continue  # not by the server
                stored.append((int(sequence), _read_stored(bus, message)))
                if "batch" not in request:
                    return stored
    except (TimeoutError, *BUS_ERRORS) as exc:
        raise BusUnavailable(f"no answer from stream {stream}") from exc
    finally:
        await _quietly(subscription.unsubscribe())


def _read_stored(bus: Bus, message: Msg) -> Stored | None:
    headers = message.headers or {}
    sequence, topic = headers["Nats-Sequence"], headers.get("Nats-Subject", "")
    sender = bus.sender_of(message, topic=topic)
    if sender is None:
        return None
    return Stored(int(sequence), topic, bytes(message.data), sender, headers[HEADER])


def _verified(stored: Sequence[tuple[int, Stored | None]]) -> list[Stored]:
    return [message for _, message in stored if message is not None]


async def _quietly(step: Awaitable[None]) -> None:
    try:
        await step
    except BUS_ERRORS:
        log.debug("subscription not closed")
