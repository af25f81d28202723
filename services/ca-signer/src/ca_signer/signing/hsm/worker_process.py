"""A worker process and the requests on their way to it (the signer's side of the pipe).

Requests are written as they come and answered in order, so many are on their way without a
round trip each. The process is killed, and everything on its way fails, when the oldest
request is not answered in time, when the process ends, or when it writes anything but the
answer that is due. A link is never repaired: its owner starts another.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import cast

from typing_extensions import override

from ca_signer.signing.hsm.protocol import Failed, Frame, FrameReader, Kind, ProtocolBroken
from estcore.clock import monotonic_s
from estcore.errors import KeyStoreUnavailable
from estcore.runtime.logs import fields

log = logging.getLogger(__name__)

# -I: neither the folder the signer was started in nor PYTHON* variables choose what is loaded.
WORKER = (sys.executable, "-I", "-m", "ca_signer.signing.hsm.worker")
_END_S = 2.0
# After these the PIN must not be tried once more by itself.
PIN_REFUSED = {
    "PinIncorrect": "the PIN is wrong",
    "PinLocked": "the PIN is locked",
    "PinExpired": "the PIN has expired",
    "PinInvalid": "the PIN is not one",
    "PinLenRange": "the PIN is not one",
    "PinFinalTry": "one more wrong PIN would lock the token",
    "UserPinNotInitialized": "the token has no PIN yet",
}
MISCONFIGURED = {
    "MultipleTokensReturned": "more than one token has this name",
    "NoSuchKey": "the key is not in the token",
    "MultipleObjectsReturned": "more than one key has this id",
}

Answer = Frame | KeyStoreUnavailable


class WorkerProcess(asyncio.Protocol):
    """One worker process; made by ``start``."""

    def __init__(
        self,
        *,
        timeout_s: float,
        lost: Callable[[WorkerProcess, KeyStoreUnavailable], None],
        took: Callable[[float], None],
    ) -> None:
        self.timeout_s = timeout_s
        self.error: KeyStoreUnavailable | None = None
        self._lost, self._took = lost, took
        self._reader = FrameReader()
        self._waiting: deque[tuple[int, asyncio.Future[Answer]]] = deque()
        self._number = 0
        self._moved_s = monotonic_s()
        self._watch: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._process: asyncio.subprocess.Process | None = None

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        *,
        timeout_s: float,
        lost: Callable[[WorkerProcess, KeyStoreUnavailable], None],
        took: Callable[[float], None],
    ) -> WorkerProcess:
        """Start a worker process; nothing is opened yet.

        ``lost`` is called once, when the process failed; ``took`` after every signature, with
        its seconds.

        Raises:
            KeyStoreUnavailable: the process cannot be started.
        """
        link = cls(timeout_s=timeout_s, lost=lost, took=took)
        ours, theirs = socket.socketpair()
        try:
            # A session of its own: Ctrl-C at a terminal is for the signer, which finishes first.
            link._process = await asyncio.create_subprocess_exec(
                *command, stdin=theirs.fileno(), stdout=2, start_new_session=True
            )
            loop = asyncio.get_running_loop()
            await loop.create_unix_connection(lambda: link, sock=ours)
        except OSError as exc:
            link.fail(KeyStoreUnavailable("cannot start the worker", code="keystore.worker"))
            ours.close()
            raise KeyStoreUnavailable("cannot start the worker", code="keystore.worker") from exc
        except BaseException:  # Cleanup, then raised again: cancelled or timed out.
            link.fail(KeyStoreUnavailable("the start was cut short", code="keystore.timeout"))
            ours.close()
            raise
        finally:
            theirs.close()
        return link

    @property
    def pid(self) -> int:
        """The process id, for people and tests."""
        return self._process.pid if self._process else 0

    def request(self, kind: Kind, body: bytes = b"") -> asyncio.Future[Answer]:
        """Write a request; the future's result is the answer, or the error instead of one.

        It never raises, so a result that no caller awaits any more causes no warning.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        if self.error is not None or self._transport is None:
            future.set_result(self.error or KeyStoreUnavailable("the worker is not there"))
            return future
        self._number = self._number % 0xFFFFFFFF + 1
        if not self._waiting:
            self._moved_s = monotonic_s()
            self._arm(self.timeout_s)
        self._waiting.append((self._number, future))
        self._transport.write(Frame(kind, self._number, body).encode())
        return future

    def fail(self, error: KeyStoreUnavailable) -> None:
        """Kill the process; everything on its way gets the error. Only the first call counts."""
        if self.error is not None:
            return
        self.error = error
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
        if self._transport is not None:
            self._transport.abort()
        self._disarm()
        while self._waiting:
            _, future = self._waiting.popleft()
            _settle(future, error)
        self._lost(self, error)

    async def ended(self) -> None:
        """Wait until the killed process is gone; not for ever, as the kernel may hold it."""
        if self._process is None:
            return
        try:
            async with asyncio.timeout(_END_S):
                await self._process.wait()
        except TimeoutError:
            log.warning("killed token worker still running", extra=fields(pid=self.pid))

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The pipe is open."""
        self._transport = cast(asyncio.Transport, transport)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """The pipe is closed, by us or because the process ended."""
        del exc
        self.fail(KeyStoreUnavailable("the token's worker process ended", code="keystore.worker"))

    @override
    def data_received(self, data: bytes) -> None:
        """Resolve the futures of answered requests."""
        try:
            for answer in self._reader.feed(data):
                self._answered(answer)
        except ProtocolBroken as exc:
            self.fail(
                KeyStoreUnavailable(f"the token's worker wrote {exc}", code="keystore.worker")
            )

    def _answered(self, answer: Frame) -> None:
        if not self._waiting or self._waiting[0][0] != answer.number:
            raise ProtocolBroken("an answer that is not due")
        _, future = self._waiting.popleft()
        now = monotonic_s()
        if answer.kind is Kind.SIGNED:
            self._took(now - self._moved_s)
        self._moved_s = now
        if not self._waiting:
            self._disarm()
        _settle(future, answer)

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._watch = asyncio.get_running_loop().call_later(seconds, self._look)

    def _disarm(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _look(self) -> None:
        """Every answer moves the deadline; looked at seldom, so that an answer costs no timer."""
        rest = self._moved_s + self.timeout_s - monotonic_s()
        if rest > 0:
            self._arm(rest)
            return
        self.fail(
            KeyStoreUnavailable(
                f"the token did not answer in {self.timeout_s:g} s", code="keystore.timeout"
            )
        )


def _settle(future: asyncio.Future[Answer], answer: Answer) -> None:
    if not future.done():
        future.set_result(answer)


def failed(answer: Frame) -> Failed | None:
    """Return what went wrong in the worker, None when nothing did.

    Raises:
        ProtocolBroken: FAILED with another body.
    """
    return Failed.decode(answer.body) if answer.kind is Kind.FAILED else None


def explained(wrong: Failed) -> str:
    """Return what went wrong as a person reads it."""
    if wrong.phase == "login" and wrong.error in PIN_REFUSED:
        return PIN_REFUSED[wrong.error]
    if wrong.error in MISCONFIGURED:
        return MISCONFIGURED[wrong.error]
    return f"{wrong.phase}: {wrong.error} {wrong.text}".rstrip()
