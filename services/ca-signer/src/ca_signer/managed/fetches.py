"""Answers clients that fetch what replaces their certificate, relayed by front ends.

A front end says whose TLS handshake it was, and nothing else. The ledger decides: the presented
certificate is good, the one named in the request is of the same slot, and the newest good
certificate of that slot is the answer. The same request gets the same octets until the certificate
is proven in use; then a generated key is deleted.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from hashlib import sha256

from ca_signer import metrics
from ca_signer.issuance.decision_context import DecisionContext, live_certificate
from ca_signer.ledger.issuance_rows import serial_octets
from ca_signer.ledger.issuances import IssuanceStore
from ca_signer.managed.store import Identity, ManagedStore
from ca_signer.model import KnownCertificate
from ca_signer.settings import SERVICE
from estcore.clock import monotonic_s
from estcore.errors import (
    Conflict,
    NotAuthenticated,
    NotAuthorized,
    RequestRejected,
    Unavailable,
)
from estcore.est.renewal_info import parse_cert_id
from estcore.messages.envelope import decode, encode
from estcore.messages.state import RenewedCertificateAnswered, RenewedCertificateRequested
from estcore.policy.groups import check_group_label, check_group_profile
from estcore.runtime.bus import Bus, Incoming
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop

log = logging.getLogger(__name__)

TOPICS = "pki.renewed.*"
MOST_PER_S = 200
"""Answers of one process; each reads the ledger."""
_PENDING_S = 2
_PURGE_EVERY_S = 600


@dataclass(kw_only=True, eq=False, slots=True)
class RenewedCertificates:
    """Runs in every signer; any number share the topic."""

    bus: Bus
    ledger: IssuanceStore
    store: ManagedStore
    decision_context: DecisionContext
    _second: int = field(default=0, init=False)
    _answered: int = field(default=0, init=False)
    """Requests of this second."""

    async def run(self, stop: asyncio.Event) -> None:
        """Answer until ``stop``; now and then delete sealed keys that are of no use."""
        subscription = await self.bus.subscribe(TOPICS, self._arrived, queue=SERVICE)
        while not await sleep_or_stop(stop, _PURGE_EVERY_S):
            try:
                await self.store.forget_expired_keys()
            except Unavailable as exc:
                log.warning("sealed keys not deleted", extra=fields(code=exc.code))
        if self.bus.connected:
            await subscription.unsubscribe()

    def _admits(self) -> bool:
        """Return whether one more request is answered: a flood takes no time of issuing."""
        second = int(monotonic_s())
        if second != self._second:
            self._second, self._answered = second, 0
        self._answered += 1
        return self._answered <= MOST_PER_S

    async def _arrived(self, message: Incoming) -> None:
        if not self._admits():
            metrics.RENEWED.labels("limited").inc()
            return  # the front end says 503
        try:
            request = decode(RenewedCertificateRequested, message.payload)
            if request.group != message.topic.rpartition(".")[2]:
                raise NotAuthorized("topic and request do not agree", code="frontend.route")
            answer = await self.answer(request)
        except RequestRejected as exc:
            log.warning("request for a renewed certificate refused", extra=fields(code=exc.code))
            answer = _rejected(exc)
        except Unavailable as exc:
            # Not answered: the front end says 503.
            log.warning("request for a renewed certificate deferred", extra=fields(code=exc.code))
            metrics.RENEWED.labels("unavailable").inc()
            return
        metrics.RENEWED.labels(answer.outcome).inc()
        try:
            await self.bus.answer(message, encode(answer))
        except Unavailable as exc:
            log.warning("renewed certificate not sent", extra=fields(code=exc.code))

    async def answer(self, request: RenewedCertificateRequested) -> RenewedCertificateAnswered:
        """Return the answer to a client.

        Raises:
            Unavailable: the ledger cannot be read now.
        """
        try:
            return await self._answer(request)
        except RequestRejected as exc:
            return _rejected(exc)

    async def _answer(self, request: RenewedCertificateRequested) -> RenewedCertificateAnswered:
        known = await self.ledger.known_certificates([sha256(request.peer).digest()])
        presented = live_certificate(known[0] if known else None, self.decision_context)
        self._check_route(request, presented)
        identity = await self._identity(request)
        newest = await self.store.newest(identity.slot_id, presented.spki_sha256)
        if newest is None or newest.issuance_id == identity.target_id:
            if await self.store.is_open(identity.slot_id):
                return RenewedCertificateAnswered(outcome="pending", retry_after_s=_PENDING_S)
            return RenewedCertificateAnswered(outcome="none")
        if newest.generated and newest.sealed_key is None:
            raise Conflict(
                "the key of this certificate was deleted, since the certificate is proven in use, "
                "or was lost in a restore",
                code="renewed.key_deleted",
            )
        if newest.managed:
            await self.store.note_fetched(newest.issuance_id)
        return RenewedCertificateAnswered(
            outcome="ready",
            certificate=newest.certificate,
            sealed_key=newest.sealed_key,
            issuer=self.decision_context.family(newest.issuer_id),
        )

    def _check_route(
        self, request: RenewedCertificateRequested, presented: KnownCertificate
    ) -> None:
        """Check that the group may use the label, and that the label renews the certificate.

        Raises:
            NotAuthorized: it may not, or does not.
        """
        context = self.decision_context
        check_group_label(context.groups, request.group, request.label)
        check_group_profile(context.groups, request.group, presented.profile)
        label = context.policy.labels.get(request.label)
        family = context.family(presented.issuer_id)
        renews = label is not None and presented.profile in label.profiles
        if label is None or not renews or family not in label.issuers:
            raise NotAuthorized(
                f"label {request.label} does not renew profile {presented.profile}",
                code="reenroll.label",
            )
        if not label.offers("certificate"):
            raise NotAuthorized(
                f"label {request.label} does not accept certificates",
                code="frontend.authentication",
            )

    async def _identity(self, request: RenewedCertificateRequested) -> Identity:
        named = parse_cert_id(request.certificate_id)
        identity = await self.store.identity(request.peer, serial_octets(named.serial_number))
        if identity is None or identity.target_id is None:
            raise NotAuthorized(
                "the certificate named is not of the identity that asks", code="renewed.identity"
            )
        if identity.revoked:
            raise NotAuthenticated(
                "the presented certificate is revoked", code="auth.certificate_revoked"
            )
        return identity


def _rejected(error: RequestRejected) -> RenewedCertificateAnswered:
    return RenewedCertificateAnswered(
        outcome="rejected", kind=type(error).__name__, code=error.code, reason=error.reason
    )
