"""Constant load on one server: new TLS connections and a kept one, and what went wrong.

``Client.connect`` is a whole TLS connection, verified against the root; ``request`` is answered or
raises. A server may end a kept connection between two requests: that is counted, and the client
connects again. Where the end crosses a request on its way, the client repeats it once on a new
connection, as RFC 9112 section 9.3.1 lets it: that is counted too. Anything else is a failure.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from typing_extensions import override

_NEW_EVERY_S, _REQUEST_EVERY_S = 0.2, 0.1
_ANSWER_S = 10.0
FAILURES = (OSError, EOFError, TimeoutError, RuntimeError)


class Unanswered(Exception):
    """The connection ended before the first octet of an answer; the request may be repeated."""


class Connection(Protocol):
    """One TLS connection to a server."""

    async def request(self) -> None:
        """Send a request and check its answer.

        Raises:
            Unanswered: an idempotent request got no answer because the connection ended.
        """

    def ended(self) -> bool:
        """Return whether the server has ended the connection in order."""

    async def close(self) -> None:
        """End it."""


class Client(Protocol):
    """How a protocol connects."""

    alpn: tuple[str, ...]

    async def connect(self, port: int, context: ssl.SSLContext) -> Connection:
        """Connect to this machine, and verify the name ``localhost``."""


@dataclass
class Tally:
    """What clients of one server saw."""

    name: str
    handshakes: int = 0
    requests: int = 0
    ended: int = 0
    repeated: int = 0
    failed: list[str] = field(default_factory=list)
    fingerprints: Counter[str] = field(default_factory=Counter)
    failures: tuple[type[Exception], ...] = FAILURES

    def line(self) -> str:
        """Return a line for a person."""
        return (
            f"{self.name}: {len(self.fingerprints)} certificates, {self.handshakes} handshakes, "
            f"{self.requests} requests, {len(self.failed)} failed; kept connections ended by the "
            f"server {self.ended}, requests repeated {self.repeated}"
        )

    def fail(self, what: str, error: Exception) -> None:
        """Note a failure with its moment."""
        self.failed.append(f"{time.strftime('%X')} {what}: {type(error).__name__}: {error}")


def recording_context(root: Path, tally: Tally, alpn: tuple[str, ...]) -> ssl.SSLContext:
    """Return a context that verifies, and counts each completed handshake and its certificate."""

    class Recorded(ssl.SSLObject):
        @override
        def do_handshake(self) -> None:
            super().do_handshake()
            tally.handshakes += 1
            tally.fingerprints[sha256(self.getpeercert(True) or b"").hexdigest()] += 1

    context = ssl.create_default_context(cafile=str(root))
    context.sslobject_class = Recorded
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


async def load(
    client: Client,
    port: int,
    context: Callable[[], ssl.SSLContext],
    tally: Tally,
    stop: asyncio.Event,
) -> None:
    """Use a server until stopped."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_connect_anew(client, port, context(), tally, stop))
        group.create_task(_keep(client, port, context(), tally, stop))


async def _connect_anew(
    client: Client, port: int, context: ssl.SSLContext, tally: Tally, stop: asyncio.Event
) -> None:
    while not stop.is_set():
        connection = await _connected(client, port, context, tally)
        if connection is not None:
            await _answered(connection, tally)
            await connection.close()
        await asyncio.sleep(_NEW_EVERY_S)


async def _keep(
    client: Client, port: int, context: ssl.SSLContext, tally: Tally, stop: asyncio.Event
) -> None:
    connection: Connection | None = None
    while not stop.is_set():
        if connection is not None and connection.ended():
            tally.ended += 1
            await connection.close()
            connection = None
        if connection is None:
            connection = await _connected(client, port, context, tally)
        elif not await _answered(connection, tally, may_repeat=True):
            await connection.close()
            connection = await _connected(client, port, context, tally)
            if connection is not None and await _answered(connection, tally):
                tally.repeated += 1
        await asyncio.sleep(_REQUEST_EVERY_S)
    if connection is not None:
        await connection.close()


async def _connected(
    client: Client, port: int, context: ssl.SSLContext, tally: Tally
) -> Connection | None:
    try:
        async with asyncio.timeout(_ANSWER_S):
            return await client.connect(port, context)
    except tally.failures as exc:
        tally.fail("handshake", exc)
        return None


async def _answered(connection: Connection, tally: Tally, *, may_repeat: bool = False) -> bool:
    """Return False for a request to repeat; each other one is answered, or a failure."""
    try:
        async with asyncio.timeout(_ANSWER_S):
            await connection.request()
    except Unanswered as exc:
        if not may_repeat:
            tally.fail("request", exc)
        return not may_repeat
    except tally.failures as exc:
        tally.fail("request", exc)
    else:
        tally.requests += 1
    return True
