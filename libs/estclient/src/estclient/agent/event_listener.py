"""Rotation events for an agent, from NATS.

Without them an agent renews by lifetime, so nothing here ends it: a seed file that cannot be read
or used at the moment is read again after a pause.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from estclient.agent.backoff import Backoff
from estclient.agent.settings import AgentSettings
from estcore.errors import ESTSuiteError, MalformedRequest, in_words
from estcore.messages.envelope import decode
from estcore.messages.events import RotationEvent
from estcore.messages.topics import rotation_topic
from estcore.runtime.bus import Bus, Incoming
from estcore.runtime.logs import fields
from estcore.runtime.nats_client import NkeysError
from estcore.runtime.service import sleep_or_stop
from estcore.runtime.settings import BusSettings

log = logging.getLogger(__name__)
Receive = Callable[[RotationEvent], Awaitable[None]]


async def listen(settings: AgentSettings, receive: Receive, stop: asyncio.Event) -> None:
    """Pass the owner's rotation events to ``receive`` until stopped; none without a bus."""
    if settings.bus is None or settings.owner is None:
        return
    topic = rotation_topic("any", settings.owner.tenant, settings.owner.service)
    backoff = Backoff(settings.retry_s, settings.longest_retry_s)
    while not stop.is_set():
        failures: list[BaseException] = []
        try:
            await _subscribe(
                settings.bus, settings.name, topic.replace(".any.", ".*."), receive, stop
            )
        except* (ESTSuiteError, OSError, NkeysError) as group:
            failures += group.exceptions
        if failures:
            pause = backoff.pause_s(failures[0])
            log.warning(
                "no rotation events, retrying",
                extra=fields(error=in_words(_first(failures[0])), pause_s=round(pause, 1)),
            )
            await sleep_or_stop(stop, pause)


async def _subscribe(
    settings: BusSettings, name: str, topic: str, receive: Receive, stop: asyncio.Event
) -> None:
    bus = await _connect(settings, name, stop)
    if bus is None:
        return

    async def handle(message: Incoming) -> None:
        try:
            await receive(decode(RotationEvent, message.payload))
        except MalformedRequest as exc:
            log.warning("rotation event unreadable", extra=fields(error=exc.reason))
        except (ESTSuiteError, OSError) as exc:
            # The store cannot be read at the moment; the lifetime of the certificate is kept.
            log.warning("rotation event not used", extra=fields(error=in_words(exc)))

    try:
        # Only a hint to look at the own schedule: an invented event renews early at most.
        await bus.subscribe(topic, handle, of_anyone=True)
        await stop.wait()
    finally:
        await bus.close()


async def _connect(settings: BusSettings, name: str, stop: asyncio.Event) -> Bus | None:
    """Return the connection; None when the agent stops before it is established."""
    async with asyncio.TaskGroup() as group:
        connecting = group.create_task(Bus.connect(settings, f"agent-{name}", name, signs=False))
        stopped = group.create_task(stop.wait())
        await asyncio.wait({connecting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not connecting.done():
            connecting.cancel()
    return None if connecting.cancelled() else connecting.result()


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
