"""Runner of one definition: an agent in a task of its own, started again when it crashes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Literal

from estclient.agent.agent import Agent
from estclient.agent.attention import Attention
from estclient.agent.definition_folder import Definition
from estclient.agent.process_lock import locked
from estcore.clock import Clock, monotonic_s
from estcore.errors import ConfigurationError
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop

log = logging.getLogger(__name__)

Outcome = Literal["done", "failed", "attention", "pending"]
_OUTCOMES: dict[str, Outcome] = {"needs attention": "attention", "pending": "pending"}


class Runner:
    """Keeps one definition running until it is stopped; nothing of it reaches the others."""

    def __init__(self, definition: Definition, clock: Clock) -> None:
        self.definition = definition
        self._clock = clock
        self._lock = definition.settings.store / "store-lock"
        self.agent = Agent(definition.settings, clock=clock)
        self.stop = asyncio.Event()
        self.counted = (0, 0)
        """What metrics have counted of this runner's agent."""

    async def run(self) -> None:
        """Work until stopped."""
        while not self.stop.is_set():
            try:
                with locked(self._lock):
                    await self.agent.work(self.stop)
            except ConfigurationError as exc:
                # The runner of a definition before may still hold the store.
                self._failed(exc)
                await sleep_or_stop(self.stop, self.definition.settings.retry_s)
            except Exception as exc:  # noqa: BLE001 - Bulkhead: one fault must not end the others.
                self._crashed(exc)
                await sleep_or_stop(self.stop, self.definition.settings.longest_retry_s)

    async def once(self, timeout_s: float) -> Outcome:
        """Advance until everything is done or only others can help; at most ``timeout_s``."""
        until = monotonic_s() + timeout_s
        try:
            with locked(self._lock):
                return await self._until_done(until)
        except ConfigurationError as exc:
            self._failed(exc)
        except Exception as exc:  # noqa: BLE001 - Bulkhead: as in run.
            self._crashed(exc)
        return "failed"

    async def _until_done(self, until: float) -> Outcome:
        while True:
            failure: Exception | None = TimeoutError()
            pause = 0.0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(until - monotonic_s(), 0)):
                    pause, failure = await self.agent.attempt()
            if failure is None:
                return "done"
            if monotonic_s() + pause >= until or self.agent.progress.state in _OUTCOMES:
                return _OUTCOMES.get(self.agent.progress.state, "failed")
            await asyncio.sleep(pause)

    def _failed(self, error: ConfigurationError) -> None:
        self._note(Attention(error.code, error.reason))
        log.warning(
            "agent cannot start",
            extra=fields(definition=self.definition.name, error=error.reason),
        )

    def _crashed(self, error: Exception) -> None:
        self._note(Attention("suite.error", f"{type(error).__name__}; the log has the trace"))
        log.error("agent crashed", exc_info=error, extra=fields(definition=self.definition.name))

    def _note(self, why: Attention) -> None:
        pause = self.definition.settings.retry_s
        now = self._clock.now()
        self.agent.progress.failed("needs attention", why, now=now, pause_s=pause)
