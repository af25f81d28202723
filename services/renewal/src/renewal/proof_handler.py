"""Proofs of use arriving from est-frontend on ``pki.ack.*``, answered one by one.

A proof has two forms. One is a JWS by the key of the new certificate; the connection may be
authenticated by the old one. The other has no body: the connection itself is authenticated by the
new certificate, so its handshake proved the key (``mtls_seen``). Accepting a proof:

1. With a JWS, read the claims and find the certificate by its serial number among those of the slot
   of the certificate that authenticated the TLS connection. Without, that one is the certificate.
2. Verify the signature by the key of that certificate.
3. Compare rotation id and time with the database's.
4. Update the slot: the certificate becomes active. A proof of what is active already is
   accepted and changes nothing.
5. Answer, then publish ``activated``; after a crash in between the sweeper publishes it.

A proof of a certificate that is not known yet waits ``rotation.proof_wait`` for its event: a client
may prove a certificate in the moment it gets it.

While the database is unavailable no proof is answered: the front end answers 503, and the agent
retries.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from hashlib import sha256

import asyncpg

from estcore.clock import monotonic_s
from estcore.errors import (
    Conflict,
    MalformedRequest,
    NotAuthorized,
    RequestRejected,
    Unavailable,
)
from estcore.ids import rotation_id
from estcore.messages.envelope import decode, encode
from estcore.messages.state import RotationAck, RotationAckAnswered
from estcore.runtime import faults
from estcore.runtime.bus import Bus, Incoming
from estcore.runtime.database import Connection, Database
from estcore.runtime.logs import fields
from estcore.runtime.tracing import Tracing
from renewal.metrics import PROOFS
from renewal.publishing.messages import MessageBuilder
from renewal.publishing.publisher import RotationPublisher
from renewal.rotation.proof_of_use import Claims, read_claims, serial_of, verify
from renewal.rotation.slot_state import Generation, Proof, Steps
from renewal.rotation.store import update_slots
from renewal.settings import RotationSettings

log = logging.getLogger(__name__)

TOPICS = "pki.ack.*"
_QUEUE = "renewal"
_WAITING = 1000
_FIND = """
select n.issuance_id, n.slot_id, n.certificate, n.generation, n.state, n.role, n.activated_at,
       p.state as peer_state, p.not_after as peer_not_after, now() as now
from certificate p join certificate n on n.slot_id = p.slot_id
where p.serial = $1 and p.fingerprint_sha256 = $2 and n.serial = $3
"""
_UNKNOWN = "rotation.unknown"
_LOOK_AGAIN_S = 0.2
_PEER = "update certificate set proof_peer = $2 where issuance_id = $1 and proof_peer is null"
_NOT_YET = "no certificate with this serial number is known for this client"


@dataclass(frozen=True)
class Accepted:
    """A proof that holds: the certificate, its slot, and whether it was known before."""

    issuance_id: str
    slot_id: str
    repeated: bool


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A proof in the queue. ``until`` is the last moment at which it may wait for its event."""

    message: Incoming
    until: float


@dataclass(kw_only=True, eq=False, slots=True)
class AckListener:
    """Answers proofs of use; any number of replicas share the topic."""

    rotation: RotationSettings
    database: Database
    bus: Bus
    builder: MessageBuilder
    publisher: RotationPublisher
    tracing: Tracing
    _queue: asyncio.Queue[_Waiting] = field(
        default_factory=lambda: asyncio.Queue(_WAITING), init=False
    )

    async def run(self, stop: asyncio.Event) -> None:
        """Answer until stopped."""
        subscription = await self.bus.subscribe(TOPICS, self._arrived, queue=_QUEUE)
        while not stop.is_set():
            try:
                async with asyncio.timeout(0.5):
                    waiting = await self._queue.get()
            except TimeoutError:
                continue
            await self._handle(waiting)
        if self.bus.connected:
            await subscription.unsubscribe()
        while not self._queue.empty():
            await self.handle(self._queue.get_nowait().message)

    async def _arrived(self, message: Incoming) -> None:
        self._put(_Waiting(message, monotonic_s() + self.rotation.proof_wait.total_seconds()))

    def _put(self, waiting: _Waiting) -> None:
        try:
            self._queue.put_nowait(waiting)
        except asyncio.QueueFull:
            PROOFS.labels("overloaded").inc()  # not answered: the front end says 503

    async def _handle(self, waiting: _Waiting) -> None:
        """Handle a proof, or look again in a moment for the certificate it is about."""
        last = monotonic_s() >= waiting.until
        if not await self.handle(waiting.message, last=last):
            asyncio.get_running_loop().call_later(_LOOK_AGAIN_S, self._put, waiting)

    async def handle(self, message: Incoming, *, last: bool = True) -> bool:
        """Check one proof, answer it and publish the resulting steps.

        Returns False where its certificate is not known yet and this is not the ``last`` look.
        """
        try:
            ack = decode(RotationAck, message.payload)
        except MalformedRequest as exc:
            log.warning("proof of use unreadable", extra=fields(error=exc.reason))
            PROOFS.labels("malformed").inc()
            return True
        accepted: Accepted | None = None
        try:
            with self.tracing.span("renewal.proof", ack.traceparent):
                accepted = await self.accept(ack)
                answer = RotationAckAnswered(accepted=True)
                PROOFS.labels("repeated" if accepted.repeated else "accepted").inc()
        except RequestRejected as exc:
            if exc.code == _UNKNOWN and not last:
                return False
            PROOFS.labels("refused").inc()
            log.info("proof of use refused", extra=fields(code=exc.code, label=ack.label))
            kind = type(exc).__name__
            answer = RotationAckAnswered(
                accepted=False, kind=kind, code=exc.code, reason=exc.reason
            )
            await self._record_refusal(ack, exc)
        except Unavailable as exc:
            PROOFS.labels("unavailable").inc()
            log.warning("proof of use unanswered", extra=fields(error=exc.reason))
            return True
        await self._answer(message, answer)
        if accepted is not None and not accepted.repeated:
            log.info("rotation proven in use", extra=fields(slot_id=accepted.slot_id))
            await self._publish(accepted.slot_id)
        return True

    async def accept(self, ack: RotationAck) -> Accepted:
        """Return the certificate proven by ``ack`` after recording it (steps 1 to 4).

        Raises:
            RequestRejected: the proof does not hold; ``Conflict`` when it may hold later.
            Unavailable: the database is unavailable.
        """
        if ack.jws is None and self.rotation.require_signed_proof:
            raise NotAuthorized("a proof has to be a signed JWS here", code="proof.unsigned")
        peer_serial = serial_of(ack.peer)
        claims = None if ack.jws is None else read_claims(ack.jws)
        async with self.database.connection() as connection:
            row = await connection.fetchrow(
                _FIND,
                peer_serial,
                sha256(ack.peer).hexdigest(),
                claims.serial if claims else peer_serial,
            )
        if row is None:
            # Perhaps its event has not arrived yet: the agent repeats a Conflict.
            raise Conflict(_NOT_YET, code=_UNKNOWN)
        proof: Proof = "mtls_seen"
        if ack.jws is not None and claims is not None:
            proof = "agent_ack"
            verify(ack.jws, row["certificate"])
            self._compare(row, claims)
        _require_live(row)
        slot_id = str(row["slot_id"])
        if row["state"] == "active":
            return Accepted(row["issuance_id"], slot_id, repeated=True)
        await self.database.run(
            lambda c: self._prove(c, slot_id, row["issuance_id"], ack.peer_address, proof)
        )
        faults.hit("renewal.proven")
        return Accepted(row["issuance_id"], slot_id, repeated=False)

    def _compare(self, row: asyncpg.Record, claims: Claims) -> None:
        if abs(row["now"] - claims.issued_at) > self.rotation.proof_skew:
            raise NotAuthorized("the proof is not of now", code="proof.time")
        _require_valid_peer(row)
        if claims.rotation_id != rotation_id(str(row["slot_id"]), row["generation"]):
            raise Conflict("this rotation did not lead to this certificate", code="rotation.other")

    async def _prove(
        self,
        connection: Connection,
        slot_id: str,
        issuance_id: str,
        peer: str | None,
        proof: Proof,
    ) -> None:
        now = await connection.fetchval("select now()")

        def proven(generation: Generation) -> Generation:
            if generation.issuance_id != issuance_id or generation.role != "next":
                return generation
            reached = generation.reached | Steps.ACTIVATED
            return replace(generation, activated_at=now, proof=proof, reached=reached)

        await update_slots(connection, [slot_id], rotation=self.rotation, proven=proven)
        await connection.execute(_PEER, issuance_id, peer)

    async def _answer(self, message: Incoming, answer: RotationAckAnswered) -> None:
        try:
            await self.bus.answer(message, encode(answer))
        except Unavailable as exc:
            log.warning("reply not sent", extra=fields(error=exc.reason))

    async def _publish(self, slot_id: str) -> None:
        try:
            await self.publisher.rotations([slot_id])
        except Unavailable as exc:
            log.warning("publication deferred to the sweeper", extra=fields(error=exc.reason))

    async def _record_refusal(self, ack: RotationAck, error: RequestRejected) -> None:
        record = self.builder.proof_refused(
            request_id=ack.request_id,
            correlation_id=ack.correlation_id,
            code=error.code,
            reason=error.reason,
            label=ack.label,
            peer=ack.peer_address,
        )
        try:
            await self.bus.publish_confirmed(self.builder.refusals([record]), timeout_s=2)
        except Unavailable as exc:
            log.warning("refusal not recorded", extra=fields(error=exc.reason))


def _require_live(row: asyncpg.Record) -> None:
    _require_valid_peer(row)
    if row["state"] not in {"active", "next"}:
        raise Conflict(f"the certificate is {row['state']}", code="rotation.ended")


def _require_valid_peer(row: asyncpg.Record) -> None:
    if row["peer_state"] == "revoked" or row["peer_not_after"] <= row["now"]:
        raise NotAuthorized("the client's certificate is not valid", code="proof.peer")
