"""The cycle of upstream issuers. Nothing is sent that is not first recorded and audited.

1. Find profile and issuer.            ca_signer.issuance.decision
2. Decide.                             ca_signer.issuance.decision
3. Build what a local issuer would have signed: the pattern.
4. Lint it.                            ca_signer.issuance.tbs
5. Commit the submission's row, state ``recorded``, with the CSR and its hash, lease and fence.
6. Publish the audit intent and await its PubAck.
7. Commit ``submitted``; then send.
8. Lint what comes back against the pattern.
9. Commit the certificate, state ``issued``, if the row is still ours; or set it aside and have it
   revoked.
10. Publish outcome event and audit result, reply with the stored bytes.
11. Ack.

After a crash before 7 nothing was sent. After 7 the outcome is unknown and the request is not sent
again: an operator resolves it (``ca_signer.upstream.operator_verbs``), unless the upstream CA
answers the same request with the same certificate (``repeatable_s``).
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from cryptography import x509

from ca_signer import metrics as signer_metrics
from ca_signer.issuance import completion
from ca_signer.issuance.certificate_source import LeaseLost, Outcome, RetryLater
from ca_signer.issuance.decision_context import Candidate
from ca_signer.ledger.issuances import IssuanceStore
from ca_signer.model import IssuedCertificate
from ca_signer.publishing.publisher import EventPublisher
from ca_signer.upstream import metrics
from ca_signer.upstream.idempotency import wrong_certificate
from ca_signer.upstream.issuer import UpstreamIssuer
from ca_signer.upstream.plugin import (
    Pending,
    Refused,
    Retryable,
    Submitted,
    Unknown,
    Wanted,
)
from ca_signer.upstream.response_lint import (
    ResponseChecks,
    UnexpectedCertificate,
    check_asked,
    check_response,
    expected_of,
)
from ca_signer.upstream.submissions import Submission, Submissions
from estcore.clock import Clock, monotonic_s
from estcore.errors import (
    BusUnavailable,
    Conflict,
    IssuerUnavailable,
    LedgerUnavailable,
    NotAuthorized,
    RequestRejected,
    SerialNumberReused,
)
from estcore.pki.csr import parse_csr
from estcore.runtime import faults
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop

log = logging.getLogger(__name__)

T = TypeVar("T")
_INSIST_S, _AGAIN_S = 60.0, 0.5
_TURN_EVERY_S = 0.2
_NOT_SENT = ("upstream.not_sent", "the ledger became unavailable before it was sent")
_REPEATED = "upstream.repeated"
_NOT_ITS_OWN = {"issuer", "unreadable", "der"}
"""Checks that leave open whether the upstream CA made it, or what: nothing it could revoke."""


@dataclass(kw_only=True, eq=False)
class UpstreamCycle:
    """Steps 6 to 10 for leased submissions; the CertificateSource of upstream issuers."""

    name: str = field(default="upstream", init=False)

    submissions: Submissions
    ledger: IssuanceStore
    publisher: EventPublisher
    issuers: Mapping[str, UpstreamIssuer]
    clock: Clock
    unknown_retry_after_s: int
    changed: Callable[[], None] = lambda: None
    """Called when a row has something to publish that no message carries."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def check(self, candidate: Candidate) -> None:
        """Refuse a CSR that an upstream CA would not follow.

        Raises:
            RequestRejected: its names or extensions are not those of the expected certificate.
        """
        check_asked(parse_csr(candidate.message.csr), expected_of(candidate.intent.tbs))

    async def issue(self, intent: Submission) -> Outcome:
        """Take a recorded submission through steps 6 to 9 when its upstream CA may be asked.

        Raises:
            BusUnavailable: the audit intent was not confirmed; nothing was sent.
            IssuerUnavailable: nothing was issued, or the process stops; retry.
            LedgerUnavailable: the row shows how far it came; redelivery goes on from there.
        """
        issuer = self.issuers[intent.issuer_id]
        async with issuer.places:
            await self._turn(issuer)
            return await self._submit(intent)

    async def _turn(self, issuer: UpstreamIssuer) -> None:
        """Wait until the upstream CA may be asked.

        Deferring the request would count a delivery each time, and an outage longer than
        ``max_attempts`` of them would make it a dead letter.

        Raises:
            IssuerUnavailable: the process stops first.
        """
        while not await issuer.admit():
            if await sleep_or_stop(self.stopping, _TURN_EVERY_S):
                raise IssuerUnavailable(
                    f"circuit breaker open for issuer {issuer.issuer_id}",
                    code="upstream.circuit_open",
                )

    async def _submit(self, submission: Submission) -> Outcome:
        """Take a recorded submission through steps 6 to 9 and answer.

        Raises:
            BusUnavailable: the audit intent was not confirmed; nothing was sent.
            IssuerUnavailable: nothing was issued; the request is redelivered.
            LedgerUnavailable: the row says how far it came; redelivery goes on from there.
        """
        faults.hit("upstream.5.recorded")
        issuer = self.issuers[submission.issuer_id]
        try:
            # 6. Without a PubAck nothing is sent.
            await self.publisher.intents([submission])
        except BusUnavailable:
            await self._release(submission)
            raise
        faults.hit("upstream.6.audited")
        # 7. Say so before it is done.
        try:
            if not await self.submissions.begin(submission):
                return LeaseLost()
        except LedgerUnavailable:
            # Committed or not, nothing was sent: say that as soon as anybody listens.
            await self._insist(lambda: self.submissions.put_back(submission, *_NOT_SENT))
            raise
        faults.hit("upstream.7.submitted")
        try:
            submitted = await self._send(issuer, submission)
        except Refused as exc:
            refused = exc
            await self._insist(
                lambda: self.submissions.refuse(submission, refused.code, refused.reason)
            )
            return NotAuthorized(exc.reason, code=exc.code)
        except Pending as exc:
            return await self._pending(submission, exc)
        except Retryable as exc:
            later = exc
            await self._insist(
                lambda: self.submissions.put_back(submission, later.code, later.reason)
            )
            raise IssuerUnavailable(exc.reason, code=exc.code) from exc
        except Unknown as exc:
            return await self._unknown(issuer, submission, exc)
        faults.hit("upstream.7.answered")
        return await self._take(issuer, submission, submitted)

    async def _send(self, issuer: UpstreamIssuer, submission: Submission) -> Submitted:
        """Send the request within its deadline; any doubt about the outcome is ``Unknown``."""
        remaining = issuer.certificate.not_after - self.clock.now()
        request = Wanted(
            submission_id=submission.issuance_id,
            csr=submission.csr,
            pattern=expected_of(submission.tbs),
            lifetime=min(submission.lifetime, remaining),
            sending=submission.sendings,
        )
        started = monotonic_s()
        outcome = "unknown"
        try:
            async with asyncio.timeout(issuer.settings.timeout_s):
                submitted = await issuer.plugin.submit(request)
            outcome = "issued"
        except (Refused, Pending) as exc:
            outcome = "refused" if isinstance(exc, Refused) else "pending"
            issuer.succeeded()
            raise
        except Retryable:
            outcome = "retryable"
            issuer.failed()
            raise
        except Unknown:
            issuer.failed()
            raise
        except TimeoutError as exc:
            issuer.failed()
            raise Unknown("no answer in time", code="upstream.timeout") from exc
        except Exception as exc:  # Bulkhead: a plug-in's mistake, perhaps after it has sent.
            issuer.failed()
            log.error("upstream plug-in failed", exc_info=exc)
            raise Unknown("the plug-in failed; see the log", code="upstream.plugin_failed") from exc
        finally:
            metrics.CALLS.labels(submission.issuer_id, outcome).inc()
            metrics.SECONDS.labels(submission.issuer_id).observe(monotonic_s() - started)
        return submitted

    async def _take(
        self, issuer: UpstreamIssuer, submission: Submission, submitted: Submitted
    ) -> Outcome:
        der = submitted.certificate
        issuance_id = await self._insist(lambda: self.submissions.issuance_of(der))
        if issuance_id == submission.issuance_id:
            return LeaseLost()  # another holder was faster, with the same answer
        if issuance_id is not None:
            # Its own earlier answer to the same CSR: good, in use, and no new one.
            return await self._repeated(submission)
        # 8. Lint.
        try:
            certificate = self.checked(issuer, submission, der)
            # 9. The fence decides.
            stored = await self._insist(
                lambda: self.submissions.store(
                    submission,
                    certificate,
                    der,
                    reference=submitted.reference,
                    shared=issuer.plugin.repeatable_s > 0,
                )
            )
        except UnexpectedCertificate as exc:
            issuer.failed()
            return await self._quarantine(
                submission, der, exc, revoke=exc.check not in _NOT_ITS_OWN
            )
        except SerialNumberReused as exc:
            issuer.failed()
            # Revoking it would revoke the other one.
            wrong = UnexpectedCertificate("serial_reused", exc.reason)
            return await self._quarantine(submission, der, wrong, revoke=False)
        issuer.succeeded()
        if stored is None:
            return await self._stray(submission, der)
        faults.hit("upstream.9.stored")
        await completion.answer(self.publisher, [stored])
        return stored

    def checked(
        self, issuer: UpstreamIssuer, submission: Submission, der: bytes
    ) -> x509.Certificate:
        """Step 8: return the certificate if it is what was decided.

        Raises:
            WrongCertificate: it is not.
        """
        terms = ResponseChecks(
            pattern=expected_of(submission.tbs),
            issuer=issuer.certificate.certificate,
            lifetime=submission.lifetime,
            asked_at=submission.asked_at,
            backdating=dt.timedelta(seconds=issuer.settings.backdating_s),
        )
        return check_response(der, terms, now=self.clock.now())

    async def publish(self, issued: Sequence[IssuedCertificate]) -> None:
        """Step 10: publish events and records of stored certificates.

        Raises:
            BusUnavailable: not confirmed; a sweeper publishes again.
        """
        await self.publisher.issued(issued)
        faults.hit("upstream.10.announced")
        try:
            await self.ledger.mark_announced([i.intent.issuance_id for i in issued])
        except LedgerUnavailable:
            log.warning("publication not recorded, it will be repeated")

    async def _pending(self, submission: Submission, pending: Pending) -> Outcome:
        if submission.generated:
            reason = "the upstream CA answers later, which a server-generated key cannot wait for"
            await self.submissions.refuse(submission, "upstream.pending_keygen", reason)
            return Conflict(reason, code="upstream.pending_keygen")
        await self._insist(lambda: self.submissions.wait(submission, pending.retry_after_s))
        log.info(
            "upstream request pending",
            extra=fields(
                correlation_id=submission.context.correlation_id, issuer=submission.issuer_id
            ),
        )
        return RetryLater(pending.retry_after_s)

    async def _unknown(
        self, issuer: UpstreamIssuer, submission: Submission, failure: Unknown
    ) -> Outcome:
        if issuer.plugin.repeatable_s > 0:
            # It stays ``submitted`` without a lease: the next delivery sends again, as long as
            # that gets the same certificate (``SubmissionResolver``).
            submission.came_from = "submitted"
            await self._insist(
                lambda: self.submissions.put_back(submission, failure.code, failure.reason)
            )
            raise IssuerUnavailable(failure.reason, code=failure.code) from failure
        await self.submissions.unknown(submission, failure.code, failure.reason)
        self.changed()
        log.error(
            "upstream outcome unknown, operator action required",
            extra=fields(
                correlation_id=submission.context.correlation_id,
                submission=submission.issuance_id,
                issuer=submission.issuer_id,
                code=failure.code,
                reason=failure.reason,
            ),
        )
        return RetryLater(self.unknown_retry_after_s)

    async def _repeated(self, submission: Submission) -> Outcome:
        reason = "the upstream CA returned a certificate that is already in the ledger"
        await self.submissions.refuse(submission, _REPEATED, reason)
        return Conflict(f"{reason}; use another key, or come later", code=_REPEATED)

    async def _quarantine(
        self, submission: Submission, der: bytes, wrong: UnexpectedCertificate, *, revoke: bool
    ) -> Outcome:
        await self._insist(
            lambda: self.submissions.quarantine(
                submission, der, wrong.check, wrong.reason, revoke=revoke
            )
        )
        self.changed()
        metrics.QUARANTINED.labels(submission.issuer_id, wrong.check).inc()
        log.error(
            "upstream certificate quarantined",
            extra=fields(
                correlation_id=submission.context.correlation_id,
                submission=submission.issuance_id,
                issuer=submission.issuer_id,
                check=wrong.check,
                reason=wrong.reason,
            ),
        )
        return wrong_certificate()

    async def _stray(self, submission: Submission, der: bytes) -> Outcome:
        """Handle a response that arrived after the row moved on: its certificate is never used."""
        if await self.submissions.issuance_of(der) is None:
            late = UnexpectedCertificate("late", "the answer came when the row had another holder")
            await self._quarantine(submission, der, late, revoke=True)
        return LeaseLost()

    async def abandon(self, submission: Submission, why: RequestRejected) -> None:
        """Abandon a submission that was never sent, or never fetched, and answer its request."""
        if await self.submissions.abandon(submission, why.code, why.reason):
            signer_metrics.ABANDONED.labels(why.code).inc()
            log.warning("submission abandoned", extra=fields(code=why.code, reason=why.reason))
            await self.publisher.replies.send_abandoned(submission, why)

    async def supersede(self, issued: IssuedCertificate) -> None:
        """Revoke a certificate whose generated key never reached its client.

        Raises:
            BusUnavailable: not audited, so not revoked either.
        """
        await completion.supersede(self.publisher, self.ledger, issued)

    async def _insist(self, write: Callable[[], Awaitable[T]]) -> T:
        """Write the outcome, retrying through a short outage of PostgreSQL: it is reported once.

        Raises:
            LedgerUnavailable: the outage was longer; the row shows that something was sent.
        """
        give_up_at = monotonic_s() + _INSIST_S
        while True:
            try:
                return await write()
            except LedgerUnavailable:
                if monotonic_s() >= give_up_at:
                    raise
                await asyncio.sleep(_AGAIN_S)

    async def _release(self, submission: Submission) -> None:
        try:
            await self.submissions.release(submission)
        except LedgerUnavailable:
            log.warning("lease not released, it will expire")
