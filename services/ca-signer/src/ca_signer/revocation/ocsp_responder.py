"""OCSP responder: answer OCSP requests from the ledger with a key of its own (RFC 6960 2.6).

The issuer's key signs one certificate for each responder, not each response. That certificate
takes the issuance cycle like every other: recorded, audited, linted, published. Its key exists in
the memory of this process only, so an intent left by a crash is abandoned, as one of serverkeygen
is. Topics are subscribed when the first certificate is issued; until then other signers answer.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Callable
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from ca_signer import metrics
from ca_signer.issuance.decision_context import Candidate
from ca_signer.issuance.idempotency import RequestResolver
from ca_signer.ledger.issuance_rows import SERIAL_OCTETS
from ca_signer.model import IssuanceIntent
from ca_signer.revocation.ocsp_limit import OCSPLimit
from ca_signer.settings import SERVICE, OCSPSettings
from ca_signer.signing.cycle import IssuanceCycle
from ca_signer.signing.internal_issuance import (
    InternalRole,
    internal_candidate,
    issue_internally,
)
from ca_signer.signing.issuers import SigningContext, SigningIssuer
from estcore.errors import ESTSuiteError, MalformedRequest, Unavailable
from estcore.messages import topics
from estcore.pki.ocsp import (
    MALFORMED,
    TRY_LATER,
    UNAUTHORIZED,
    CertificateStatus,
    asks_issuer,
    read_question,
    sign_answer,
)
from estcore.pki.profile import Profile, RenewalRules
from estcore.pki.usages import OCSP_SIGNING
from estcore.policy.internal_profiles import OCSP_RESPONDER_PROFILE
from estcore.runtime.bus import Bus, Incoming
from estcore.runtime.database import Database
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 5
_OPERATION = "ocsp"


@dataclass(frozen=True)
class _Signing:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


class OCSPResponder:
    """Runs in every signer with ``ocsp`` in its settings; any number may run."""

    def __init__(
        self,
        bus: Bus,
        database: Database,
        decision_context: SigningContext,
        *,
        resolver: RequestResolver[IssuanceIntent],
        cycle: IssuanceCycle,
        settings: OCSPSettings,
        issuing_waits: Callable[[], bool] = lambda: False,
    ) -> None:
        """``issuing_waits`` returns whether requests for certificates wait in this process."""
        self._bus = bus
        self._database = database
        self._decision_context = decision_context
        self._resolver = resolver
        self._cycle = cycle
        self._settings = settings
        self._limit = OCSPLimit(settings.max_per_s, issuing_waits)
        self._signing: dict[str, _Signing] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Keep every issuer's responder certificate fresh until ``stop``."""
        await self.renew()
        while not await sleep_or_stop(stop, _LOOK_EVERY_S):
            await self.renew()

    async def renew(self) -> None:
        """Get certificates that are due; an issuer that is unavailable waits."""
        for issuer in self._decision_context.issuers.values():
            if not self._is_due(issuer) or not issuer.keystore.ready:
                continue
            try:
                await self._enroll(issuer)
            except Unavailable as exc:
                log.warning("OCSP responder deferred", extra=fields(code=exc.code))
            except ESTSuiteError as exc:
                log.error(
                    "no OCSP responder certificate", extra=fields(code=exc.code, reason=exc.reason)
                )

    def _is_due(self, issuer: SigningIssuer) -> bool:
        signing = self._signing.get(issuer.issuer_id)
        if signing is None:
            return True
        half = dt.timedelta(seconds=self._settings.certificate_lifetime_s) / 2
        return signing.certificate.not_valid_after_utc - self._decision_context.clock.now() < half

    async def _enroll(self, issuer: SigningIssuer) -> None:
        self._decision_context.check_not_expired(issuer)
        key = ec.generate_private_key(ec.SECP256R1())
        lifetime = dt.timedelta(seconds=self._settings.certificate_lifetime_s)
        ocsp_candidate = responder_candidate(key, issuer, self._decision_context, lifetime)
        octets = await issue_internally(ocsp_candidate, self._resolver, self._cycle)
        first = issuer.issuer_id not in self._signing
        certificate = x509.load_der_x509_certificate(octets)
        self._signing[issuer.issuer_id] = _Signing(key, certificate)
        if first:
            await self._bus.subscribe(
                topics.ocsp_topic(issuer.issuer_id), self._arrived, queue=SERVICE, of_anyone=True
            )

    async def _arrived(self, message: Incoming) -> None:
        if not message.reply:
            return  # no reply is wanted
        issuer_id = message.topic.rpartition(".")[2]
        try:
            if self._limit.admits():
                answer = await self.answer(issuer_id, message.payload)
            else:
                answer = _counted(issuer_id, "limited", TRY_LATER)
        except Unavailable as exc:
            log.warning("OCSP request deferred", extra=fields(code=exc.code))
            answer = _counted(issuer_id, "try_later", TRY_LATER)
        try:
            await self._bus.answer(message, answer)
        except Unavailable as exc:
            log.warning("OCSP response not sent", extra=fields(code=exc.code))

    async def answer(self, issuer_id: str, request: bytes) -> bytes:
        """Return the OCSPResponse to an OCSPRequest.

        Raises:
            LedgerUnavailable: the status cannot be determined now.
        """
        signing, issuer = self._signing[issuer_id], self._decision_context.issuers[issuer_id]
        try:
            question = read_question(request)
        except MalformedRequest:
            return _counted(issuer_id, "malformed", MALFORMED)
        if not asks_issuer(question, issuer.certificate):
            return _counted(issuer_id, "unauthorized", UNAUTHORIZED)
        now = self._decision_context.clock.now()
        last = signing.certificate.not_valid_after_utc
        if last <= now:
            return _counted(issuer_id, "try_later", TRY_LATER)
        standing = await self._standing(issuer_id, question.serial_number)
        answer = sign_answer(
            question,
            standing,
            responder=signing.certificate,
            key=signing.key,
            this_update=now,
            next_update=min(now + dt.timedelta(seconds=self._settings.answer_lifetime_s), last),
        )
        status = "good" if standing.known else "unknown"
        return _counted(issuer_id, "revoked" if standing.revoked_at else status, answer)

    async def _standing(self, issuer_id: str, serial_number: int) -> CertificateStatus:
        if not 0 < serial_number < 1 << 8 * SERIAL_OCTETS:
            return CertificateStatus(known=False)
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                "select state, revoked_at, revocation_reason, abandoned_at from issuance "
                "where issuer_id = $1 and serial_number = $2 and state <> 'intended'",
                issuer_id,
                serial_number.to_bytes(SERIAL_OCTETS, "big"),
            )
        if row is None:
            return CertificateStatus(known=False)
        if row["state"] == "abandoned":
            # Its serial number is never used again; a signer may have signed it and crashed.
            return CertificateStatus(known=True, revoked_at=row["abandoned_at"])
        return CertificateStatus(
            known=True, revoked_at=row["revoked_at"], reason=row["revocation_reason"]
        )


def _counted(issuer_id: str, status: str, answer: bytes) -> bytes:
    metrics.OCSP.labels(issuer_id, status).inc()
    return answer


def responder_profile(lifetime: dt.timedelta) -> Profile:
    """Return the profile of responder certificates, which no profiles file holds."""
    profile = Profile(
        name=OCSP_RESPONDER_PROFILE,
        lifetime=lifetime,
        key_algorithms=("ec-p256",),
        subject_attributes=("CN",),
        san_kinds=(),
        same_key="deny",
        # Its key is in memory only: it ends with the process, and another one has another.
        renewal=RenewalRules(
            reaction_time=lifetime / 4, overlap=lifetime / 4, mode="poll", expiry="expected"
        ),
    )
    return profile.model_copy(update={"extended_key_usage": (OCSP_SIGNING,)})


def responder_candidate(
    key: ec.EllipticCurvePrivateKey,
    issuer: SigningIssuer,
    decision_context: SigningContext,
    lifetime: dt.timedelta,
) -> Candidate:
    """Return the candidate for a responder's certificate."""
    role = InternalRole(
        _OPERATION, f"OCSP responder {issuer.issuer_id}", responder_profile(lifetime)
    )
    return internal_candidate(key, issuer, decision_context, role)
