"""Publishing to JetStream: PubAcks of messages that were published together, as one future.

nats-py keeps a future, a queue entry and a turn of a task for every PubAck. Here a group of
messages has one future, and a PubAck is counted where it is read. Names of inboxes are random, so
no other client can confirm what it did not receive.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Awaitable, Callable

from estcore.errors import BusUnavailable
from estcore.runtime.nats_client import Client, Msg

log = logging.getLogger(__name__)

_NO_RESPONDERS = "503"
_MOST = 8192
"""Messages without a PubAck. With more the stream confirms nothing, and more would help nothing."""


class Group:
    """Messages published together. ``done`` has their sequences once every PubAck is here."""

    def __init__(self, size: int) -> None:
        self.done: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self.tokens: list[str] = []
        self._sequences = [0] * size
        self._open = size

    def confirm(self, place: int, sequence: int) -> None:
        """Note the PubAck of the message at a place of the group."""
        self._sequences[place] = sequence
        self._open -= 1
        if not self._open and not self.done.done():
            self.done.set_result(self._sequences)

    def fail(self, error: Exception) -> None:
        """Note that the stream refused one of the messages."""
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # who waited may have stopped: not an error of the loop


class Confirmations:
    """The PubAcks that one connection waits for."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._prefix = ""
        self._waiting: dict[str, tuple[Group, int]] = {}

    async def open(self) -> None:
        """Subscribe to PubAcks, if that is not done."""
        if self._prefix:
            return
        prefix = f"{self._client.new_inbox()}."
        await self._client.subscribe_plain(f"{prefix}*", self._arrived)
        self._prefix = prefix

    async def publish(
        self, size: int, send: Callable[[int, str], Awaitable[None]]
    ) -> asyncio.Future[list[int]]:
        """Publish messages with ``send``, which is given the place and the reply subject of each.

        Returns the future of the sequences under which the streams stored them. It raises
        BusUnavailable for a message that was refused; who waits no more cancels it.

        Raises:
            BusUnavailable: too many messages wait already.
            nats.errors.Error, OSError, RuntimeError: not sent.
        """
        if len(self._waiting) + size > _MOST:
            raise BusUnavailable("the bus confirms nothing", code="bus.unavailable")
        group = Group(size)
        try:
            await self.open()
            for place in range(size):
                token = secrets.token_hex(11)
                group.tokens.append(token)
                self._waiting[token] = (group, place)
                await send(place, self._prefix + token)
        except BaseException:  # Cleanup, then raised again: nothing waits for these PubAcks.
            self.forget(group)
            raise
        group.done.add_done_callback(lambda _: self.forget(group))
        return group.done

    def forget(self, group: Group) -> None:
        """Wait for the PubAcks of a group no more."""
        for token in group.tokens:
            self._waiting.pop(token, None)

    def _arrived(self, message: Msg) -> None:
        found = self._waiting.pop(message.subject.rpartition(".")[2], None)
        if found is None:
            return
        group, place = found
        if message.headers and message.headers.get("Status") == _NO_RESPONDERS:
            group.fail(BusUnavailable("the stream does not exist", code="bus.storage"))
            return
        try:
            answer = json.loads(message.data)
            error = answer.get("error")
            if error is None:
                group.confirm(place, int(answer["seq"]))
                return
            reason = str(error.get("description") or "no reason")
        except (ValueError, KeyError, TypeError, AttributeError):
            group.fail(BusUnavailable("the stream answered no PubAck", code="bus.storage"))
            return
        code = "bus.full" if reason.startswith("maximum") else "bus.storage"
        group.fail(BusUnavailable(f"stream refused the message: {reason}", code=code))
