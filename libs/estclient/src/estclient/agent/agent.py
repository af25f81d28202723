"""The renewal agent of one credential: gets a new certificate when it is due, and proves its use.

One rotation:

1. ``pki.rotation.due`` names our certificate, or the server's renewal information (RFC 9773) or
   the share of the lifetime says that it is time: whichever is first.
2. A new key and a CSR like the current certificate; kept on disk before they are sent, so that
   a repetition is the same request.
3. /simplereenroll over mutual TLS with the current certificate. Where the server renews by itself
   (``managed``) steps 2 and 3 are one: the certificate, perhaps with a sealed key, is fetched.
4. The bundle is verified, stored, and ``current`` moves.
5. The outputs are written, and the hook makes the service reload.
6. The service is seen to present the new certificate.
7. /rotation-ack over mutual TLS with the *new* certificate: a JWS by the new key, or without the
   rotation's id the connection alone.

Beside it ``/cacerts`` is asked at intervals; other CA certificates make the service reload too.
How far it has come stands in the bundle, so an agent that was killed goes on where it was.
Receiving the same event twice changes nothing: after step 4 it names a certificate of the past.

The agent ends only by ``stop`` and by settings that can never work. What can pass is repeated after
a pause: a wrong clock, a full disk, a file that is missing or damaged. What only an operator can
correct is repeated at long pauses, in the state ``needs attention``. A damaged generation is
replaced by an older one, or by a bootstrap enrollment when none can be used.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from estclient.agent.activation import Activation, Hook
from estclient.agent.attention import Attention, attention_for
from estclient.agent.backoff import Backoff
from estclient.agent.bundle import Bundle
from estclient.agent.connection import Connection
from estclient.agent.credential_store import CredentialStore
from estclient.agent.enrollment import Enrollment
from estclient.agent.event_listener import listen
from estclient.agent.progress import Progress, State
from estclient.agent.renewal_timer import AVAILABLE, RenewalTimer
from estclient.agent.rotation_names import RotationNames
from estclient.agent.server_clock import ServerClock
from estclient.agent.settings import AgentSettings
from estclient.agent.trust_refresh import TrustKeeper
from estclient.errors import StillPending
from estcore.clock import Clock, SystemClock, monotonic_s
from estcore.errors import ConfigurationError, ESTSuiteError, in_words
from estcore.messages.events import RotationEvent
from estcore.runtime.logs import fields

log = logging.getLogger(__name__)

OnStep = Callable[[str, dict[str, Any]], Awaitable[None]]
FAILURES = (ESTSuiteError, OSError, TimeoutError)
"""What an agent repeats after a pause."""
_TICK_S = 60.0
"""The longest sleep: a clock that is set is noticed after it."""
_SYSTEM = "suite.system"


async def run_agent(
    settings: AgentSettings,
    stop: asyncio.Event,
    *,
    on_step: OnStep | None = None,
    hook: Hook | None = None,
    clock: Clock | None = None,
) -> None:
    """Keep one service's certificate fresh until ``stop``.

    ``hook`` is called with the stored bundle instead of ``settings.hook``; ``on_step`` receives
    every step with its details.

    Raises:
        ConfigurationError: a store that never had a credential, and no bootstrap.
    """
    agent = Agent(settings, on_step=on_step, hook=hook, clock=clock)
    agent.check()
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(listen(settings, agent.receive, ended))
        try:
            await agent.work(stop)
        finally:
            ended.set()


class Agent:
    """One service's credential and what is going on with it.

    ``work`` runs until stopped; ``advance`` does one round, for callers with a loop of their own.
    ``progress`` is what is known of it. ``receive`` takes rotation events from a bus.
    """

    def __init__(
        self,
        settings: AgentSettings,
        *,
        on_step: OnStep | None = None,
        hook: Hook | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._settings = settings
        self._on_step = on_step
        self._clock = ServerClock(clock or SystemClock())
        self.store = CredentialStore(settings.store)
        self.progress = Progress()
        trust = TrustKeeper(settings, self.store, self._clock)
        connection = Connection(settings, trust, self._clock)
        rotations = RotationNames()
        self._trust, self._connection, self._rotations = trust, connection, rotations
        self._enrollment = Enrollment(
            settings, self.store, trust, connection, self._clock, self._say
        )
        self._activation = Activation(
            settings, self.store, connection, rotations, self._clock, self._say, hook
        )
        self._timer = RenewalTimer(settings, connection, self._clock)
        self._wake = asyncio.Event()
        self._due: RotationEvent | None = None
        self._reported: dict[Path, str] = {}
        self._backoff = Backoff(settings.retry_s, settings.longest_retry_s)
        self._attention = Backoff(settings.longest_retry_s, settings.attention_retry_s)
        self._retry_at = 0.0

    def check(self) -> None:
        """Refuse settings by which there can never be a credential.

        Raises:
            ConfigurationError: the store never had one, and there is no bootstrap.
        """
        if self._settings.bootstrap is not None:
            return
        with contextlib.suppress(OSError):  # not readable now: may have one
            if self.store.is_new():
                raise ConfigurationError(
                    f"{self._settings.store} has no credential and there is no bootstrap"
                )

    def is_usable(self) -> bool:
        """Return whether a certificate of now is stored, and in the files of its service."""
        bundle = self.progress.bundle
        return (
            bundle is not None
            and self.progress.has_credential(self._clock.now())
            and self._activation.is_written(bundle)
        )

    def report(self) -> dict[str, Any]:
        """Return what is known of the certificate, as the status file shows it."""
        return self.progress.report(self._clock.now())

    async def work(self, stop: asyncio.Event) -> None:
        """Renew, reload and prove until stopped; a failure is repeated after a pause."""
        async with asyncio.TaskGroup() as group:
            waker = group.create_task(self._wake_at(stop))
            while not stop.is_set():
                pause, _ = await self.attempt()
                await self._sleep(stop, pause)
            waker.cancel()

    async def attempt(self) -> tuple[float, Exception | None]:
        """Advance once; returns the pause until the next attempt in seconds, and the failure."""
        try:
            pause = await self.advance()
        except FAILURES as exc:
            return await self._failed(exc), exc
        self._backoff.succeeded()
        self._attention.succeeded()
        self._retry_at = 0.0
        self.progress.succeeded(self._clock.now())
        return pause, None

    async def advance(self) -> float:
        """Do what is to be done now; returns the seconds until something is, at the latest.

        Raises:
            ESTSuiteError: what kept a step from succeeding; calling again continues.
        """
        bundle = await self._load()
        self.progress.bundle = bundle
        if bundle is not None:
            await self._timer.refresh(bundle)
        if bundle is None or self._expired(bundle):
            bundle = await self._first(bundle)
        stored = bundle
        bundle = await self._trust.refreshed(stored, lambda: self._connection.authenticated(stored))
        unfinished: Exception | None = None
        try:
            bundle = await self._activation.finish(bundle)
        except FAILURES as exc:
            unfinished = exc  # a rotation that does not end must not keep the next from starting
        self.progress.bundle = bundle
        event = self._due
        if event is not None and _names(event, bundle):
            bundle = await self._renew(bundle, event)
        elif self._timer.seconds_left(bundle) <= 0:
            by = self._timer.due(bundle).by
            await self._say(f"due_by_{by}", serial=bundle.serial)
            fetch = by == AVAILABLE
            bundle = await (self._fetch(bundle) if fetch else self._renew(bundle, None))
        elif unfinished is not None:
            raise unfinished
        self._due = None if self._due is event else self._due
        return self._seconds_to_next(bundle)

    async def receive(self, event: RotationEvent) -> None:
        """Take in one rotation event; events of other slots and repeated ones change nothing."""
        bundle = self.store.load()
        # Perhaps of the certificate just on its way to us.
        self._rotations.remember(event)
        if bundle is None:
            return
        if event.step == "due" and _names(event, bundle):
            await self._say("due", rotation_id=event.rotation_id, serial=bundle.serial)
            self._due = event
            self._retry_at = 0.0
        elif self._settings.managed and event.step == "issued" and _names(event, bundle):
            self._timer.ask_now()
        elif event.new is None or event.new.fingerprint_sha256 != bundle.fingerprint:
            return
        self._wake.set()

    async def _first(self, expired: Bundle | None) -> Bundle:
        try:
            bundle = await self._enrollment.first(expired)
        finally:
            await self._report_damage()
        return self._stored(bundle)

    async def _renew(self, current: Bundle, event: RotationEvent | None) -> Bundle:
        try:
            bundle = await self._enrollment.renew(
                current, event, suggested_rotation=self._timer.rotation_id
            )
        finally:
            await self._report_damage()
        self._due = None
        return await self._activation.finish(self._stored(bundle))

    async def _fetch(self, current: Bundle) -> Bundle:
        try:
            bundle = await self._enrollment.fetch(
                current, suggested_rotation=self._timer.rotation_id
            )
        finally:
            await self._report_damage()
        return await self._activation.finish(self._stored(bundle))

    def _stored(self, bundle: Bundle) -> Bundle:
        self._timer.stored(bundle)
        self.progress.bundle = bundle
        return bundle

    def _seconds_to_next(self, bundle: Bundle) -> float:
        due, left = self._timer.due(bundle), self._timer.seconds_left(bundle)
        self.progress.due, self.progress.due_by = due.moment, due.by
        self.progress.clock_offset_s = self._clock.offset_s
        self.progress.bundle = bundle
        return max(min(left, self._trust.seconds_left, self._timer.poll_left_s), 0)

    async def _load(self) -> Bundle | None:
        """Return the credential, an older one in place of one that is damaged; report damage."""
        bundle = self.store.load(refused=self._enrollment.refused)
        await self._report_damage()
        if bundle is None or self._expired(bundle):
            return bundle
        current = self.store.make_current(bundle)
        if current is not bundle:
            folder = str(bundle.folder)
            log.warning("credential replaced by another generation", extra=fields(folder=folder))
            await self._say("fallback", serial=bundle.serial, folder=folder)
        return current

    async def _report_damage(self) -> None:
        for file, what in self.store.damage.items():
            if self._reported.get(file) != what:
                log.error("credential file is damaged", extra=fields(file=str(file), damage=what))
                await self._say("damaged", file=str(file), damage=what)
        self._reported = dict(self.store.damage)

    def _expired(self, bundle: Bundle) -> bool:
        return bundle.certificate.not_valid_after_utc <= self._clock.now()

    async def _failed(self, error: Exception) -> float:
        why = attention_for(error)
        state: State = "pending" if isinstance(error, StillPending) else "retrying"
        if why is not None:
            state, wished = "needs attention", self._attention.pause_s(error)
        else:
            wished = self._backoff.pause_s(error)
            why = Attention(getattr(error, "code", _SYSTEM), in_words(error))
        pause = round(min(wished, self._longest_pause_s()), 1)
        entered = state == "needs attention" != self.progress.state
        self.progress.failed(state, why, now=self._clock.now(), pause_s=pause)
        self.progress.clock_offset_s = self._clock.offset_s
        details = {"error": why.reason, "code": why.code, "pause_s": pause, "state": state}
        log.warning("agent step failed, retrying", extra=fields(**self._named(details)))
        await self._say("failed", error=why.reason, code=why.code, retry_in_s=pause)
        if entered:
            log.error("agent needs attention", extra=fields(**self._named(details)))
        self._retry_at = monotonic_s() + pause
        return pause

    def _longest_pause_s(self) -> float:
        """Return an eighth of the time left: the nearer the end, the more often it is tried."""
        longest = max(self._settings.longest_retry_s, self._settings.attention_retry_s)
        bundle = self.progress.bundle
        if bundle is None:
            return longest
        left = (bundle.certificate.not_valid_after_utc - self._clock.now()).total_seconds()
        if left <= 0:
            return longest
        return min(longest, max(left / 8, self._settings.retry_s))

    async def _wake_at(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._wake.set()

    async def _sleep(self, stop: asyncio.Event, pause: float) -> None:
        """Wait for the pause to end, an event, or ``stop``; an event does not cut a retry short."""
        until = max(monotonic_s() + min(pause, _TICK_S), self._retry_at)
        while not stop.is_set() and monotonic_s() < until:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(until - monotonic_s()):
                    await self._wake.wait()
            if self._wake.is_set():
                self._wake.clear()
                until = self._retry_at

    def _named(self, details: dict[str, Any]) -> dict[str, Any]:
        return {"definition": self._settings.name} | details

    async def _say(self, step: str, **details: Any) -> None:
        self.progress.entered(step, self._clock.now())
        log.info("agent step", extra=fields(**self._named({"step": step, **details})))
        if self._on_step is not None:
            await self._on_step(step, details)


def _names(event: RotationEvent, bundle: Bundle) -> bool:
    return event.old is not None and event.old.fingerprint_sha256 == bundle.fingerprint
