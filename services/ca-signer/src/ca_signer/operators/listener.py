"""Listener for operator commands: receive them, execute them one by one, answer."""

from __future__ import annotations

import asyncio
import logging

from ca_signer import metrics
from ca_signer.operators.executor import CommandExecutor
from ca_signer.settings import SERVICE
from estcore.errors import Unavailable
from estcore.messages.commands import CommandAnswered
from estcore.messages.envelope import encode
from estcore.messages.topics import command_topic
from estcore.runtime.bus import Bus, Incoming
from estcore.runtime.logs import fields

log = logging.getLogger(__name__)

_WAITING = 100


class CommandListener:
    """Answers commands; any number of signers share the topics."""

    def __init__(self, bus: Bus, executor: CommandExecutor, *, of_anyone: bool = True) -> None:
        """``of_anyone`` takes commands from every client: they prove themselves."""
        self._bus = bus
        self._executor = executor
        self._of_anyone = of_anyone
        self._queue: asyncio.Queue[tuple[str, Incoming]] = asyncio.Queue(_WAITING)

    async def run(self, stop: asyncio.Event) -> None:
        """Answer until ``stop``."""
        # One subscription a verb: a wildcard would share its queue group with other requests.
        for verb in self._executor.verbs:
            topic = command_topic(SERVICE, verb)
            await self._bus.subscribe(
                topic, self._arrived, queue=SERVICE, of_anyone=self._of_anyone
            )
        while not stop.is_set():
            try:
                async with asyncio.timeout(0.5):
                    verb, message = await self._queue.get()
            except TimeoutError:
                continue
            await self._handle(verb, message)

    async def _arrived(self, message: Incoming) -> None:
        verb = message.topic.rpartition(".")[2]
        try:
            self._queue.put_nowait((verb, message))
        except asyncio.QueueFull:
            metrics.COMMANDS.labels(verb, "overloaded").inc()  # not answered: sent again

    async def _handle(self, verb: str, message: Incoming) -> None:
        try:
            answer = await self._executor.execute(verb, message.payload)
        except Unavailable as exc:
            log.warning("command not executed", extra=fields(code=exc.code, reason=exc.reason))
            answer = CommandAnswered(outcome="unavailable", code=exc.code, reason=exc.reason)
        except Exception as exc:  # Bulkhead: one poisoned command must not end the signer.
            log.error("command failed", exc_info=exc)
            answer = CommandAnswered(outcome="unavailable", code="internal", reason="see the log")
        try:
            await self._bus.answer(message, encode(answer))
        except Unavailable as exc:
            log.warning("reply not sent", extra=fields(code=exc.code))
