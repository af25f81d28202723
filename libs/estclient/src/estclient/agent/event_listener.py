"""Rotation events for agents, from NATS; agents of one bus share a connection.

Without events an agent renews by renewal information and lifetime, so nothing here ends it: a seed
file that cannot be read or used at the moment is read again after a pause.
"""

from __future__ import annotations

import asyncio
import functools
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
    if settings.bus is None:
        return
    listener = EventListener(
        settings.bus, settings.name, settings.retry_s, settings.longest_retry_s
    )
    listener.add(settings, receive)
    await listener.run(stop)


class EventListener:
    """One connection to a bus, for any number of agents that come and go."""

    def __init__(self, bus: BusSettings, name: str, retry_s: float, longest_retry_s: float) -> None:
        self._settings, self._name = bus, name
        self._backoff = Backoff(retry_s, longest_retry_s)
        self._receivers: dict[str, list[Receive]] = {}
        self._changed = asyncio.Event()

    def add(self, settings: AgentSettings, receive: Receive) -> Callable[[], None]:
        """Pass the events of the settings' owner to ``receive``; returns what ends that."""
        if settings.owner is None:
            return lambda: None
        topic = rotation_topic("any", settings.owner.tenant, settings.owner.service)
        receivers = self._receivers.setdefault(topic.replace(".any.", ".*."), [])
        receivers.append(receive)
        self._changed.set()

        def remove() -> None:
            receivers.remove(receive)

        return remove

    @property
    def is_idle(self) -> bool:
        """Whether no agent is left."""
        return not any(self._receivers.values())

    async def run(self, stop: asyncio.Event) -> None:
        """Listen until stopped; a failure is repeated after a pause."""
        while not stop.is_set():
            failures: list[BaseException] = []
            try:
                await self._listen(stop)
            except* (ESTSuiteError, OSError, NkeysError) as group:
                failures += group.exceptions
            if failures:
                pause = self._backoff.pause_s(failures[0])
                log.warning(
                    "no rotation events, retrying",
                    extra=fields(error=in_words(_first(failures[0])), pause_s=round(pause, 1)),
                )
                await sleep_or_stop(stop, pause)

    async def _listen(self, stop: asyncio.Event) -> None:
        bus = await _connect(self._settings, self._name, stop)
        if bus is None:
            return
        subscribed: set[str] = set()
        try:
            while not stop.is_set():
                self._changed.clear()
                for topic in set(self._receivers) - subscribed:
                    handle = functools.partial(self._handle, topic)
                    # Only a hint to look at the own schedule: an invented one renews early at most.
                    await bus.subscribe(topic, handle, of_anyone=True)
                    subscribed.add(topic)
                await _either(stop, self._changed)
        finally:
            await bus.close()

    async def _handle(self, topic: str, message: Incoming) -> None:
        try:
            event = decode(RotationEvent, message.payload)
        except MalformedRequest as exc:
            log.warning("rotation event unreadable", extra=fields(error=exc.reason))
            return
        for receive in list(self._receivers[topic]):
            try:
                await receive(event)
            except (ESTSuiteError, OSError) as exc:
                # The store cannot be read at the moment; the lifetime of the certificate is kept.
                log.warning("rotation event not used", extra=fields(error=in_words(exc)))


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


async def _either(*events: asyncio.Event) -> None:
    """Wait for one of the events."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(event.wait()) for event in events]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
