"""Proofs of use arriving from est-frontend on ``pki.ack.*``, answered one by one.

Accepting a proof:

1. Read the claims and find the certificate by its serial number among those of the slot of the
   certificate that authenticated the TLS connection.
2. Verify the signature by the key of that certificate.
3. Compare rotation id and time with the database's.
4. Update the slot: the certificate becomes active. A proof of what is active already is
   accepted and changes nothing.
5. Answer, then publish ``activated``; after a crash in between the sweeper publishes it.

While the database is unavailable no proof is answered: the front end answers 503, and the agent
retries.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from dataclasses import dataclass, field, replace
from hashlib import sha256

import asyncpg

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
from estcore.runtime.bus import Bus, Incoming
from estcore.runtime.database import Connection, Database
from estcore.runtime.logs import fields
from estcore.runtime.tracing import Tracing
from renewal.metrics import PROOFS
from renewal.publishing.messages import MessageBuilder
from renewal.publishing.publisher import RotationPublisher
from renewal.rotation.proof_of_use import read_claims, serial_of, verify
from renewal.rotation.slot_state import Generation, Steps
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
_PEER = "update certificate set proof_peer = $2 where issuance_id = $1 and proof_peer is null"
_NOT_YET = "no certificate with this serial number is known for this client"


@dataclass(frozen=True)
class Accepted:
    """A proof that holds: the certificate, its slot, and whether it was known before."""

    issuance_id: str
    slot_id: str
    repeated: bool


@dataclass(kw_only=True, eq=False, slots=True)
class AckListener:
    """Answers proofs of use; any number of replicas share the topic."""

    rotation: RotationSettings
    database: Database
    bus: Bus
    builder: MessageBuilder
    publisher: RotationPublisher
    tracing: Tracing
    _queue: asyncio.Queue[Incoming] = field(
        default_factory=lambda: asyncio.Queue(_WAITING), init=False
    )

    async def run(self, stop: asyncio.Event) -> None:
        """Answer until stopped."""
        subscription = await self.bus.subscribe(TOPICS, self._arrived, queue=_QUEUE)
        while not stop.is_set():
            try:
                async with asyncio.timeout(0.5):
                    message = await self._queue.get()
            except TimeoutError:
                continue
            await self.handle(message)
        if self.bus.connected:
            await subscription.unsubscribe()
        while not self._queue.empty():
            await self.handle(self._queue.get_nowait())

    async def _arrived(self, message: Incoming) -> None:
        try:
            self._queue.put_nowait(message)
        except asyncio.QueueFull:
            PROOFS.labels("overloaded").inc()  # not answered: the front end says 503

    async def handle(self, message: Incoming) -> None:
        """Check one proof, answer it and publish the resulting steps."""
        try:
            ack = decode(RotationAck, message.payload)
        except MalformedRequest as exc:
            log.warning("proof of use unreadable", extra=fields(error=exc.reason))
            PROOFS.labels("malformed").inc()
            return
        accepted: Accepted | None = None
        try:
            with self.tracing.span("renewal.proof", ack.traceparent):
                accepted = await self.accept(ack)
                answer = RotationAckAnswered(accepted=True)
                PROOFS.labels("repeated" if accepted.repeated else "accepted").inc()
        except RequestRejected as exc:
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
            return
        await self._answer(message, answer)
        if accepted is not None and not accepted.repeated:
            log.info("rotation proven in use", extra=fields(slot_id=accepted.slot_id))
            await self._publish(accepted.slot_id)

    async def accept(self, ack: RotationAck) -> Accepted:
        """Return the certificate proven by ``ack`` after recording it (steps 1 to 4).

        Raises:
            RequestRejected: the proof does not hold; ``Conflict`` when it may hold later.
            Unavailable: the database is unavailable.
        """
        claims = read_claims(ack.jws)
        async with self.database.connection() as connection:
            row = await connection.fetchrow(
                _FIND, serial_of(ack.peer), sha256(ack.peer).hexdigest(), claims.serial
            )
        if row is None:
            # Perhaps its event has not arrived yet: the agent repeats a Conflict.
            raise Conflict(_NOT_YET, code="rotation.unknown")
        verify(ack.jws, row["certificate"])
        self._compare(row, claims.rotation_id, claims.issued_at)
        slot_id = str(row["slot_id"])
        if row["state"] == "active":
            return Accepted(row["issuance_id"], slot_id, repeated=True)
        await self.database.run(
            lambda c: self._prove(c, slot_id, row["issuance_id"], ack.peer_address)
        )
        return Accepted(row["issuance_id"], slot_id, repeated=False)

    def _compare(self, row: asyncpg.Record, claimed: str, signed_at: dt.datetime) -> None:
        now: dt.datetime = row["now"]
        if abs(now - signed_at) > self.rotation.proof_skew:
            raise NotAuthorized("the proof is not of now", code="proof.time")
        if row["peer_state"] == "revoked" or row["peer_not_after"] <= now:
            raise NotAuthorized("the client's certificate is not valid", code="proof.peer")
        if claimed != rotation_id(str(row["slot_id"]), row["generation"]):
            raise Conflict("this rotation did not lead to this certificate", code="rotation.other")
        if row["state"] not in {"active", "next"}:
            raise Conflict(f"the certificate is {row['state']}", code="rotation.ended")

    async def _prove(
        self, connection: Connection, slot_id: str, issuance_id: str, peer: str | None
    ) -> None:
        now = await connection.fetchval("select now()")

        def proven(generation: Generation) -> Generation:
            if generation.issuance_id != issuance_id or generation.role != "next":
                return generation
            reached = generation.reached | Steps.ACTIVATED
            return replace(generation, activated_at=now, proof="agent_ack", reached=reached)

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
