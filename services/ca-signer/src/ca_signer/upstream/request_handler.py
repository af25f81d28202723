"""What happens to each delivery at an issuer elsewhere; every one by itself, many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography import x509
from typing_extensions import override

from ca_signer import metrics
from ca_signer.issuance.approvals import PendingApproval
from ca_signer.issuance.decision_context import Candidate
from ca_signer.issuance.idempotency import (
    Answer,
    ExpiredIntent,
    InProgress,
    KeyNotDelivered,
    Refuse,
    Resume,
)
from ca_signer.issuance.request_handler import LEASED_S, ReceivedRequest, RequestHandler
from ca_signer.model import EXPIRED, IssuanceIntent, IssuedCertificate
from ca_signer.publishing.replies import issued_answer
from ca_signer.upstream.cycle import LeaseLost, PendingUpstream, UpstreamCycle
from ca_signer.upstream.issuer import UpstreamIssuer
from ca_signer.upstream.response_lint import check_asked, pattern_of
from ca_signer.upstream.submissions import Submission, submission
from estcore.errors import IssuerUnavailable, RequestRejected
from estcore.runtime import faults
from estcore.runtime.consume import Delivery
from estcore.runtime.service import sleep_or_stop

_WORKING_EVERY_S = 4.0
_TURN_EVERY_S = 0.2


class UpstreamRequestHandler(RequestHandler):
    """Takes deliveries through the cycle; one instance serves a process."""

    def __init__(
        self, *, cycle: UpstreamCycle, issuers: Mapping[str, UpstreamIssuer], **parts: Any
    ) -> None:
        """``parts`` are those of ``RequestHandler``."""
        super().__init__(**parts)
        self._cycle = cycle
        self._issuers = issuers
        self._in_hand: set[Delivery] = set()
        self._stop = asyncio.Event()

    async def attend(self, stop: asyncio.Event) -> None:
        """Keep the server from delivering again what is in hand: other CAs are slow."""
        self._stop = stop
        while not await sleep_or_stop(stop, _WORKING_EVERY_S):
            for delivery in list(self._in_hand):
                await delivery.working()

    @override
    async def process(self, deliveries: Sequence[Delivery]) -> None:
        async with asyncio.TaskGroup() as group:
            for delivery in deliveries:
                group.create_task(self._one(delivery))

    async def _one(self, delivery: Delivery) -> None:
        self._in_hand.add(delivery)
        try:
            item = await self._read(delivery)
            if item is not None:
                await self._alone(item)
        finally:
            self._in_hand.discard(delivery)

    @override
    async def _resolve(self, item: ReceivedRequest, candidate: Candidate) -> None:
        try:
            self._prepare(item, candidate)
            settled = await self._resolver.resolve(candidate)
        except RequestRejected as exc:
            await self._refuse(item, exc)
            return
        match settled:
            case Resume(intent=intent):
                await self._submit(item, intent)
            case Answer(issued=issued, new=new):
                await self._answer(item, issued, new=new)
            case Refuse(error=error):
                await self._refuse(item, error)
            case ExpiredIntent(intent=intent):
                assert isinstance(intent, Submission)  # noqa: S101 - rows of this process
                await self._cycle.abandon(intent, EXPIRED)
                await self._resolve(item, candidate)
            case KeyNotDelivered(issued=issued):
                await self._cycle.supersede(issued)
                await self._resolve(item, candidate)
            case InProgress(ours=ours):
                await self._leased(item, candidate.intent, ours=ours)
            case PendingApproval(retry_after_s=retry_after_s):
                await self._pending(item, candidate.intent, retry_after_s)

    def _prepare(self, item: ReceivedRequest, candidate: Candidate) -> None:
        if isinstance(candidate.intent, Submission):
            return
        csr = item.message.csr
        check_asked(x509.load_der_x509_csr(csr), pattern_of(candidate.intent.tbs))
        now = self.decision_context.clock.now()
        candidate.intent = submission(candidate.intent, csr, now)

    async def _submit(self, item: ReceivedRequest, intent: IssuanceIntent) -> None:
        assert isinstance(intent, Submission)  # noqa: S101 - rows of this process
        if intent.fence > 1:
            metrics.RESUMED.inc()
        issuer = self._issuers[intent.issuer_id]
        async with issuer.places:
            await self._turn(issuer)
            outcome = await self._cycle.sign_and_store(intent)
        match outcome:
            case IssuedCertificate() as issued:
                await self._deliver(item, issued)
            case RequestRejected() as error:
                await self._refuse(item, error)
            case PendingUpstream(retry_after_s=retry_after_s):
                await self._pending(item, intent, retry_after_s)
            case LeaseLost():
                await item.delivery.nak(LEASED_S)

    async def _turn(self, issuer: UpstreamIssuer) -> None:
        """Wait until the other CA may be asked.

        Putting the request back would count a delivery each time, and an outage longer than
        ``max_attempts`` of them would make it a dead letter.

        Raises:
            IssuerUnavailable: the process stops first.
        """
        while not await issuer.admit():
            if await sleep_or_stop(self._stop, _TURN_EVERY_S):
                raise IssuerUnavailable(
                    f"issuer {issuer.issuer_id} is left alone", code="upstream.paused"
                )

    async def _deliver(self, item: ReceivedRequest, issued: IssuedCertificate) -> None:
        message = item.message
        if issued.intent.request_id != message.id:
            # The submission of an earlier request; this one is answered with its certificate.
            answer = issued_answer(message.id, issued.certificate)
            await self._publisher.replies.send(message.group, message.instance, answer)
        await self._cycle.announce(issued)
        # 11. Ack.
        await item.delivery.ack()
        faults.hit("upstream.11.acked")
