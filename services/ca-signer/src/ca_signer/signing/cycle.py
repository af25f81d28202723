"""The issuance cycle. Nothing is signed that is not first recorded, decided, linted and audited.

1. Find profile and issuer.            ca_signer.issuance.decision
2. Decide.                             ca_signer.issuance.decision
3. Build the TBS.                      ca_signer.issuance.decision
4. Lint it, signed by a throw-away key of the issuer's kind.
5. Commit the ledger row, state ``intended``, with serial, TBS, lease and fence.
6. Publish the audit intent and await its PubAck.
7. Sign.
8. Check that the signature verifies over exactly those bytes.
9. Commit the certificate, state ``issued``, only if the fence is still ours.
10. Publish outcome event and audit result, together with those of other batches; mark the rows.
11. Ack. It does not wait for step 10, which follows from the row: what is not marked is published
    by a sweeper.

Steps 5 to 9 take a batch. A crash after step 5 leaves a row whose lease runs out. The signer
that acquires it signs the stored TBS again, so there is one serial number and one certificate.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from hashlib import sha256

from ca_signer import metrics
from ca_signer.issuance import completion
from ca_signer.issuance.certificate_source import LeaseLost, Outcome
from ca_signer.issuance.decision_context import Candidate
from ca_signer.ledger.issuances import IssuanceStore
from ca_signer.model import IssuanceIntent, IssuedCertificate
from ca_signer.publishing.publisher import EventPublisher
from ca_signer.signing.issuers import SigningIssuer
from estcore.clock import SystemClock
from estcore.errors import (
    BusUnavailable,
    ClockWrong,
    IssuerUnavailable,
    KeyStoreUnavailable,
    LedgerUnavailable,
    RequestRejected,
)
from estcore.ids import record_id
from estcore.pki.certificate import assemble, tbs_signature_algorithm
from estcore.runtime import faults
from estcore.runtime.clock_check import LIMIT_S
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop
from estcore.runtime.tracing import Tracing, step

log = logging.getLogger(__name__)

_CLOCK = SystemClock()

_GATHER_S = 0.05
_TOGETHER = 256
_UNPUBLISHED = 10_000
"""Of a bus that confirms nothing; the rest is the sweeper's at once."""
_CLOCK_S = 2.0
"""A clock off by a twentieth of the lifetime signs nothing; by less than this, everything."""


class IssuanceCycle:
    """Steps 6 to 10 for leased intents; the CertificateSource of issuers whose keys are here."""

    name = "signer"

    def __init__(
        self,
        ledger: IssuanceStore,
        publisher: EventPublisher,
        issuers: Mapping[str, SigningIssuer],
        tracing: Tracing | None = None,
    ) -> None:
        self._ledger = ledger
        self._publisher = publisher
        self._issuers = issuers
        self._tracing = tracing
        self._unpublished: deque[IssuedCertificate] = deque(maxlen=_UNPUBLISHED)
        self._publishing: asyncio.Task[None] | None = None
        self._flushing = asyncio.Lock()
        self._announced: list[str] = []
        self._fences: dict[str, int] = {}

    def check(self, candidate: Candidate) -> None:
        """Accept every candidate: what was decided can be signed."""
        del candidate

    async def issue(self, intent: IssuanceIntent) -> Outcome:
        """Take one recorded intent through steps 6 to 9; see ``sign_and_store``."""
        stored = await self.sign_and_store([intent])
        return stored[0] if stored else LeaseLost()

    async def sign_and_store(self, intents: Sequence[IssuanceIntent]) -> list[IssuedCertificate]:
        """Take recorded intents through steps 6 to 9 and answer; returns what was stored.

        Raises:
            BusUnavailable: the audit intent was not confirmed; the leases are released.
            KeyStoreUnavailable: nothing was stored; the leases are released.
            LedgerUnavailable: the certificates may or may not be stored; redelivery finds out.
            TBSMismatch: the key store gave a wrong signature; nothing was stored.
        """
        if not intents:
            return []
        if self._tracing is None:
            return await self._sign_and_store(intents)
        traced = next((i.context.traceparent for i in intents if i.context.traceparent), None)
        with self._tracing.span("sign certificates", traced, batch=len(intents)):
            return await self._sign_and_store(intents)

    async def _sign_and_store(self, intents: Sequence[IssuanceIntent]) -> list[IssuedCertificate]:
        faults.hit("signer.5.recorded")
        self._fences.update((i.issuance_id, i.fence) for i in intents)
        try:
            # 6. Without a PubAck there is no signature.
            with step("audit intents"):
                await self._publisher.intents(intents)
            faults.hit("signer.6.audited")
            with step("sign"):
                signed = await self._sign(intents)
        except (BusUnavailable, ClockWrong, KeyStoreUnavailable):
            await self._release(intents)
            raise
        finally:
            for intent in intents:
                self._fences.pop(intent.issuance_id, None)
        faults.hit("signer.8.signed")
        # 9. The fence decides whose signature counts.
        with step("store certificates"):
            stored = await self._ledger.store(signed)
        faults.hit("signer.9.stored")
        with step("answer"):
            await completion.answer(self._publisher, stored)
        return stored

    async def _sign(
        self, intents: Sequence[IssuanceIntent]
    ) -> list[tuple[IssuanceIntent, bytes, bytes]]:
        self._require_right_time(intents)
        signed = []
        for issuer_id in dict.fromkeys(i.issuer_id for i in intents):
            issuer = self._issuers.get(issuer_id)
            if issuer is None:
                raise IssuerUnavailable(f"issuer {issuer_id} is not here")
            own = [i for i in intents if i.issuer_id == issuer_id]
            # 7. Sign. 8. Verify over the recorded bytes, which are the linted ones.
            signatures = await issuer.keystore.sign_many([i.tbs for i in own])
            for intent, signature in zip(own, signatures, strict=True):
                issuer.check_signature(intent.tbs, signature)
                certificate = assemble(intent.tbs, tbs_signature_algorithm(intent.tbs), signature)
                signed.append((intent, certificate, sha256(certificate).digest()))
        return signed

    def _require_right_time(self, intents: Sequence[IssuanceIntent]) -> None:
        """Check this machine's clock, and that the intents were decided by a right one.

        A clock may have been set between the decision and now. What is refused here is stale for
        the ledger as well, so the request is decided anew when it comes again.

        Raises:
            ClockWrong: nothing is signed.
        """
        shortest = min(i.not_after - i.not_before for i in intents)
        self._ledger.database.clock.require(max(shortest.total_seconds() / 20, _CLOCK_S))
        now = _CLOCK.now()
        ahead = max(i.not_before for i in intents) > now + dt.timedelta(seconds=LIMIT_S)
        if ahead or min(i.sign_before for i in intents) < now:
            raise ClockWrong("the clock was set after the decision, or the request expired")

    async def abandon(self, intent: IssuanceIntent, why: RequestRejected) -> None:
        """Abandon an intent that is ours and answer its request.

        Its serial number is never used again.

        Raises:
            BusUnavailable: not audited, so not abandoned either.
            LedgerUnavailable: audited; it is abandoned and audited again later.
        """
        record = self._publisher.audit_records.about_intent(
            intent,
            record_id=record_id("abandoned", intent.issuance_id),
            action="certificate.abandoned",
            error=why,
            phase="error",
        )
        await self._publisher.mappings([record])
        if await self._ledger.abandon(intent):
            metrics.ABANDONED.labels(why.code).inc()
            log.warning("intent abandoned", extra=fields(code=why.code, reason=why.reason))
            await self._publisher.replies.send_abandoned(intent, why)

    async def supersede(self, issued: IssuedCertificate) -> None:
        """Revoke a certificate whose generated key never reached its client.

        Raises:
            BusUnavailable: not audited, so not revoked either.
            LedgerUnavailable: audited; it is revoked and audited again later.
        """
        await completion.supersede(self._publisher, self._ledger, issued)

    async def publish(self, issued: Sequence[IssuedCertificate]) -> None:
        """Step 10: have events and records published, in a moment, with those of other batches."""
        self._unpublished.extend(issued)
        if self._publishing is None or self._publishing.done():
            self._publishing = asyncio.create_task(self._publish_soon())

    async def _publish_soon(self) -> None:
        # A message for many costs little more than for one, and no client waits for it.
        await asyncio.sleep(_GATHER_S)
        try:
            await self.flush_unpublished()
        except Exception:  # Bulkhead: what is not published is the sweeper's.
            log.exception("certificates not published")

    async def flush_unpublished(self) -> None:
        """Publish events and records of what was stored; on return they are, or left."""
        async with self._flushing:
            await self._flush_unpublished()

    async def _flush_unpublished(self) -> None:
        while self._unpublished:
            count = min(len(self._unpublished), _TOGETHER)
            issued = [self._unpublished.popleft() for _ in range(count)]
            try:
                await self._publisher.issued(issued)
            except BusUnavailable as exc:
                log.warning(
                    "publication left to the sweeper",
                    extra=fields(code=exc.code, count=len(issued) + len(self._unpublished)),
                )
                self._unpublished.clear()
                return
            faults.hit("signer.10.announced")
            # Marked in groups by ``keep_marking``: if we die first, the sweeper announces the same
            # facts under the same ids once more.
            self._announced.extend(i.intent.issuance_id for i in issued)

    async def keep_leases(self, stop: asyncio.Event) -> None:
        """Hold on to intents whose signatures a slow key store is still working on."""
        while not await sleep_or_stop(stop, self._ledger.lease.total_seconds() / 3):
            fences = dict(self._fences)
            if not fences:
                continue
            try:
                await self._ledger.extend(fences)
            except LedgerUnavailable:
                log.warning("leases not extended", extra=fields(count=len(fences)))

    async def keep_marking(self, stop: asyncio.Event) -> None:
        """Write ``announced`` for what was announced, every second."""
        stopping = False
        while not stopping:
            stopping = await sleep_or_stop(stop, 1)
            await self.flush_published_marks()

    async def flush_published_marks(self) -> None:
        """Write ``announced`` for what was announced since the last call."""
        ready, self._announced = self._announced, []
        if not ready:
            return
        try:
            await self._ledger.mark_announced(ready)
        except LedgerUnavailable:
            self._announced.extend(ready)

    async def _release(self, intents: Sequence[IssuanceIntent]) -> None:
        try:
            await self._ledger.release(intents)
        except LedgerUnavailable:
            log.warning("leases not released, they will expire")
