"""The renewal agent: gets a service a new certificate when renewal says so, and proves its use.

One rotation:

1. ``pki.rotation.due`` names our certificate (or 85 % of its lifetime are over, unasked).
2. A new key and a CSR like the current certificate; kept on disk before they are sent, so that
   a repetition is the same request.
3. /simplereenroll over mutual TLS with the current certificate.
4. The bundle is verified, stored, and ``current`` moves.
5. The hook makes the service reload.
6. The service is seen to present the new certificate.
7. /rotation-ack over mutual TLS with the *new* certificate: a JWS by the new key.

Beside it ``/cacerts`` is asked at intervals; other CA certificates make the service reload too.
How far it has come stands in the bundle, so an agent that was killed goes on where it was.
Receiving the same event twice changes nothing: after step 4 it names a certificate of the past.

The agent ends only by ``stop`` and by settings that can never work. What can pass is repeated after
a pause: a wrong clock, a full disk, a file that is missing or damaged. A damaged generation is
replaced by an older one, or by a bootstrap enrollment when none can be used.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from estclient.agent.backoff import ApprovalWait, Backoff
from estclient.agent.bundle import Bundle, Pending
from estclient.agent.credential_store import CredentialStore
from estclient.agent.event_listener import listen
from estclient.agent.reload_hook import run_hook
from estclient.agent.rotation_names import RotationNames
from estclient.agent.served_certificate import wait_presented
from estclient.agent.settings import AgentSettings
from estclient.agent.trust_refresh import TrustKeeper
from estclient.errors import BundleInvalid, CredentialMissing, ServerRefused
from estclient.est.client import ESTClient, Limits
from estclient.est.keys import csr_like, make_csr, make_key
from estclient.est.proof_of_use import sign_ack
from estcore.clock import Clock, SystemClock, monotonic_s
from estcore.errors import ConfigurationError, ESTSuiteError, in_words
from estcore.messages.events import RotationEvent
from estcore.runtime.logs import fields
from estcore.runtime.settings import read_secret

log = logging.getLogger(__name__)

OnStep = Callable[[str, dict[str, Any]], Awaitable[None]]
Hook = Callable[[Bundle], Awaitable[None]]
_NOT_YET = frozenset({404, 409})
"""Answers to a proof that may be given because an event is still on its way."""
_NOT_ACCEPTED = frozenset({401, 403})
"""Answers to a re-enrollment with a certificate that is not valid any more."""
_ACK_PAUSE_S = 0.5
_TICK_S = 60.0
"""The longest sleep: a clock that is set is noticed after it."""


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
    """One service's credential and what is going on with it."""

    def __init__(
        self,
        settings: AgentSettings,
        *,
        on_step: OnStep | None = None,
        hook: Hook | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._settings = settings
        self._on_step, self._hook = on_step, hook
        self._clock = clock or SystemClock()
        self.store = CredentialStore(settings.store)
        self._trust = TrustKeeper(settings, self.store, self._clock)
        self._wake = asyncio.Event()
        self._due: RotationEvent | None = None
        self._rotations = RotationNames()
        self._refused: set[str] = set()
        self._reported: dict[Path, str] = {}
        self._backoff = Backoff(settings.retry_s, settings.longest_retry_s)
        self._approval = ApprovalWait()
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

    async def work(self, stop: asyncio.Event) -> None:
        """Renew, reload and prove until stopped; a failure is repeated after a pause."""
        while not stop.is_set():
            try:
                pause = await self.advance()
                self._backoff.succeeded()
            except (ESTSuiteError, OSError, TimeoutError) as exc:
                pause = await self._failed(exc)
            await self._sleep(stop, pause)

    async def advance(self) -> float:
        """Do what is to be done now; returns the seconds until something is, at the latest.

        Raises:
            ESTSuiteError: what kept a step from succeeding; calling again continues.
        """
        bundle = await self._load()
        if bundle is None or self._expired(bundle):
            bundle = await self._first(bundle)
        stored = bundle
        bundle = await self._trust.refreshed(stored, lambda: self._client(credential=stored.files))
        unfinished: Exception | None = None
        try:
            bundle = await self._finish(bundle)
        except (ESTSuiteError, OSError, TimeoutError) as exc:
            unfinished = exc  # a rotation that does not end must not keep the next from starting
        event = self._due
        if event is not None and _names(event, bundle):
            await self._renew(bundle, event)
        elif self._seconds_to_renewal(bundle) <= 0:
            await self._renew(bundle, None)
        elif unfinished is not None:
            raise unfinished
        self._due = None if self._due is event else self._due
        bundle = self.store.load() or bundle
        left = self._seconds_to_renewal(bundle)
        if left <= 0:
            # Not at once again: by a wrong clock every certificate is due when it is issued.
            raise BundleInvalid(
                "the new certificate is due for renewal already: is this machine's clock right?",
                code="client.clock",
            )
        return max(min(left, self._trust.seconds_left), 0)

    async def _load(self) -> Bundle | None:
        """Return the credential, an older one in place of one that is damaged; report damage."""
        bundle = self.store.load(refused=self._refused)
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
        elif event.new is None or event.new.fingerprint_sha256 != bundle.fingerprint:
            return
        self._wake.set()

    # 2. to 4.

    async def _renew(self, current: Bundle, event: RotationEvent | None) -> None:
        if event is None:
            await self._say("due_by_lifetime", serial=current.serial)
        pending = self.store.pending(current.fingerprint)
        await self._report_damage()
        if pending is None:
            key = make_key(self._settings.key_algorithm)
            pending = Pending(key, csr_like(current.certificate, key), current.fingerprint)
            self.store.begin(pending)
        await self._say("enrolling", serial=current.serial)
        client = self._client(credential=current.files)
        try:
            enrolled = await self._approval.ask(lambda: client.simplereenroll(pending.csr))
        except ServerRefused as exc:
            self.store.forget()
            if current.is_fallback and exc.status in _NOT_ACCEPTED:
                self._refused.add(current.fingerprint)
            raise
        bundle = Bundle(
            certificate=enrolled.certificate,
            key=pending.key,
            authorities=await self._trust.renewed(client, current),
            rotation_id=event.rotation_id if event else None,
            in_use=False,
            proven=False,
        )
        await self._adopt(bundle, enrolled.correlation_id)

    async def _first(self, expired: Bundle | None) -> Bundle:
        bootstrap = self._settings.bootstrap
        if bootstrap is None:
            self._refused.clear()
            state = "missing or damaged"
            if expired is not None:
                end = expired.certificate.not_valid_after_utc.isoformat()
                state = f"expired since {end} by this machine's clock"
            raise CredentialMissing(f"the credential is {state}, and there is no bootstrap")
        marker = f"bootstrap:{expired.fingerprint if expired else ''}"
        pending = self.store.pending(marker)
        await self._report_damage()
        if pending is None:
            key = make_key(self._settings.key_algorithm)
            csr = make_csr(key, bootstrap.subject, bootstrap.san)
            pending = Pending(key, csr, marker)
            self.store.begin(pending)
        secret = read_secret(bootstrap.secret_file, "the enrollment secret")
        client = self._client(secret=(bootstrap.user, secret))
        await self._say("bootstrapping", subject=bootstrap.subject)
        enrolled = await self._approval.ask(lambda: client.simpleenroll(pending.csr))
        bundle = Bundle(
            certificate=enrolled.certificate,
            key=pending.key,
            authorities=await self._trust.first(client),
            in_use=False,
            proven=False,
        )
        return await self._adopt(bundle, enrolled.correlation_id)

    async def _adopt(self, bundle: Bundle, correlation_id: str | None) -> Bundle:
        stored = self.store.save(bundle, now=self._clock.now())
        self._due = None
        await self._say(
            "stored",
            serial=stored.serial,
            fingerprint_sha256=stored.fingerprint,
            not_after=stored.certificate.not_valid_after_utc.isoformat(),
            correlation_id=correlation_id,
        )
        return await self._finish(stored)

    # 5. to 7.

    async def _finish(self, bundle: Bundle) -> Bundle:
        if not bundle.in_use:
            await self._put_into_use(bundle)
            bundle = replace(bundle, in_use=True)
            self.store.note(bundle)
        if bundle.proven:
            return bundle
        if self._rotations.is_proven(bundle.fingerprint):
            return self._note_proven(bundle)
        rotation = bundle.rotation_id or self._rotations.rotation_id(bundle.fingerprint)
        if rotation is None:
            return bundle  # a first one, or renewed unasked: an event may still name it
        await self._prove(bundle, rotation)
        await self._say("proven", rotation_id=rotation, serial=bundle.serial)
        return self._note_proven(replace(bundle, rotation_id=rotation))

    def _note_proven(self, bundle: Bundle) -> Bundle:
        done = replace(bundle, proven=True)
        self.store.note(done)
        return done

    async def _put_into_use(self, bundle: Bundle) -> None:
        if self._hook is not None:
            await self._hook(bundle)
            await self._say("reloaded", hook="callable")
        elif self._settings.hook is not None:
            await run_hook(self._settings.hook, self.store.current)
            await self._say("reloaded", hook=self._settings.hook.command[0])
        place = self._settings.presence
        if place is None:
            return
        await wait_presented(
            place.host,
            place.port,
            fingerprint=bundle.fingerprint,
            server_name=place.server_name,
            timeout_s=place.timeout_s,
        )
        await self._say("presented", host=place.host, port=place.port, serial=bundle.serial)

    async def _prove(self, bundle: Bundle, rotation: str) -> None:
        client = self._client(credential=bundle.files)
        until = monotonic_s() + self._settings.ack_timeout_s
        while True:
            now = self._clock.now()
            proof = sign_ack(bundle.key, rotation_id=rotation, serial=bundle.serial, now=now)
            try:
                await client.rotation_ack(proof)
            except ServerRefused as exc:
                if exc.status not in _NOT_YET or monotonic_s() >= until:
                    raise
                await asyncio.sleep(_ACK_PAUSE_S)
                continue
            return

    # Around it.

    def _client(
        self,
        *,
        credential: tuple[Path, Path] | None = None,
        secret: tuple[str, str] | None = None,
    ) -> ESTClient:
        server = self._settings.server
        limits = Limits(timeout_s=server.timeout_s, pending_limit_s=server.pending_limit_s)
        return ESTClient(
            server.urls,
            trust=self._trust.for_server(),
            label=server.label,
            credential=credential,
            secret=secret,
            limits=limits,
            clock=self._clock,
        )

    def _expired(self, bundle: Bundle) -> bool:
        return bundle.certificate.not_valid_after_utc <= self._clock.now()

    def _seconds_to_renewal(self, bundle: Bundle) -> float:
        start, end = bundle.certificate.not_valid_before_utc, bundle.certificate.not_valid_after_utc
        moment: dt.datetime = start + (end - start) * self._settings.renew_at
        return (moment - self._clock.now()).total_seconds()

    def _longest_pause_s(self) -> float:
        """Return an eighth of the time left: the nearer the end, the more often it is tried."""
        with contextlib.suppress(ESTSuiteError, OSError):
            bundle = self.store.load()
            if bundle is not None:
                end = bundle.certificate.not_valid_after_utc
                left = (end - self._clock.now()).total_seconds()
                return max(left / 8, self._settings.retry_s)
        return self._settings.longest_retry_s

    async def _failed(self, error: Exception) -> float:
        pause = round(min(self._backoff.pause_s(error), self._longest_pause_s()), 1)
        text = in_words(error)
        log.warning("agent step failed, retrying", extra=fields(error=text, pause_s=pause))
        await self._say("failed", error=text, retry_in_s=pause)
        self._retry_at = monotonic_s() + pause
        return pause

    async def _sleep(self, stop: asyncio.Event, pause: float) -> None:
        """Wait for the pause to end, an event, or ``stop``; an event does not cut a retry short."""
        until = max(monotonic_s() + min(pause, _TICK_S), self._retry_at)
        while not stop.is_set() and monotonic_s() < until:
            if self._wake.is_set() and monotonic_s() >= self._retry_at:
                break
            try:
                async with asyncio.timeout(min(0.25, max(until - monotonic_s(), 0.001))):
                    await stop.wait()
            except TimeoutError:
                continue
        self._wake.clear()

    async def _say(self, step: str, **details: Any) -> None:
        log.info("agent step", extra=fields(step=step, **details))
        if self._on_step is not None:
            await self._on_step(step, details)


def _names(event: RotationEvent, bundle: Bundle) -> bool:
    return event.old is not None and event.old.fingerprint_sha256 == bundle.fingerprint
