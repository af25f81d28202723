"""Revoke the certificate that a rotation replaced, where the profile says so, after proof of use.

renewal publishes ``deprecated`` when the new certificate was seen in use and the overlap is over.
The ledger is checked again: both certificates are of one slot, the new one is younger and good,
and the current profile has ``renewal.revoke_replaced``. So a forged event can end no certificate
that has no good successor. A message is acknowledged when the row is committed and the record has
its PubAck; a redelivery changes nothing and publishes the same record.

Campaigns learn from the same events: ``activated`` proves a member, after ``deprecated`` it may be
revoked. The campaign's job does that, or this consumer with the campaign's reason where the profile
revokes as well. Sealed keys of managed renewals are deleted when their certificates are proven.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import asyncpg

from ca_signer.campaigns import progress
from ca_signer.issuance.decision_context import DecisionContext
from ca_signer.ledger import revocations
from ca_signer.managed.store import forget_proven_keys
from ca_signer.publishing.audit_records import certificate_target
from ca_signer.publishing.publisher import EventPublisher
from estcore import ids
from estcore.errors import MalformedRequest, Unavailable
from estcore.messages import topics
from estcore.messages.audit import Actor, AuditRecord
from estcore.messages.envelope import decode
from estcore.messages.events import RotationEvent
from estcore.runtime.bus import Bus
from estcore.runtime.consume import PullConsumer
from estcore.runtime.database import Connection, Database
from estcore.runtime.delivery import Delivery
from estcore.runtime.logs import fields
from estcore.runtime.worker import MessageWorker

log = logging.getLogger(__name__)

REASON = "superseded"
_ACTIVATED = "pki.rotation.activated."
_RETRY_S = 5.0
_CREDIT = 200
_OLD = """select o.*, n.issuance_id as successor_id, n.issuance_id is not null as succeeded
from issuance o
left join issuance n on n.issuance_id = (
    select issuance_id from fingerprint where certificate_sha256 = $2)
  and n.slot_id = o.slot_id and n.issued_at > o.issued_at
  and n.revoked_at is null and n.not_after > now()
where o.issuance_id = (select issuance_id from fingerprint where certificate_sha256 = $1)
for update of o"""


class RevokeAfterRotation:
    """Runs in every signer; any number may run."""

    def __init__(
        self,
        bus: Bus,
        database: Database,
        publisher: EventPublisher,
        decision_context: DecisionContext,
        *,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """``changed`` is called after a revocation: there is something to announce."""
        self._database = database
        self._publisher = publisher
        self._decision_context = decision_context
        self._changed = changed
        self._consumer = PullConsumer(
            bus, topics.PKI_EVENTS, topics.ROTATIONS_CONSUMER, credit=_CREDIT
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Consume the events of renewal until ``stop``."""
        await MessageWorker(self._consumer, self._handle_all, batch_size=_CREDIT).run(stop)

    async def _handle_all(self, deliveries: Sequence[Delivery], _: asyncio.Event) -> None:
        proofs = [d for d in deliveries if d.topic.startswith(_ACTIVATED)]
        if proofs:
            await self._handle_proofs(proofs)
        for delivery in deliveries:
            if not delivery.topic.startswith(_ACTIVATED):
                await self.handle(delivery)

    async def _handle_proofs(self, deliveries: Sequence[Delivery]) -> None:
        """Note all proofs of use at once: every rotation has one, few are of a campaign."""
        readable, fingerprints = [], []
        for delivery in deliveries:
            try:
                event = decode(RotationEvent, delivery.payload())
                if event.new is not None:
                    fingerprints.append(_octets(event.new.fingerprint_sha256))
                readable.append(delivery)
            except MalformedRequest as exc:
                log.error("rotation event unreadable", extra=fields(reason=exc.reason))
                await delivery.term()
        try:
            await self._database.run(lambda c: _note_proofs(c, fingerprints))
        except Unavailable as exc:
            log.warning("rotations deferred", extra=fields(code=exc.code, count=len(readable)))
            for delivery in readable:
                await delivery.nak(_RETRY_S)
            return
        for delivery in readable:
            await delivery.ack()

    async def handle(self, delivery: Delivery) -> None:
        """Answer one delivery."""
        try:
            event = decode(RotationEvent, delivery.payload())
            record = await self._take(event)
            if record is not None:
                await self._publisher.records([record])
        except MalformedRequest as exc:
            log.error("rotation event unreadable", extra=fields(reason=exc.reason))
            await delivery.term()
            return
        except Unavailable as exc:
            log.warning("rotation deferred", extra=fields(code=exc.code))
            await delivery.nak(_RETRY_S)
            return
        await delivery.ack()

    async def _take(self, event: RotationEvent) -> AuditRecord | None:
        if event.step != "deprecated" or event.old is None or event.new is None:
            return None
        old, new = _octets(event.old.fingerprint_sha256), _octets(event.new.fingerprint_sha256)
        by = f"rotation:{event.rotation_id}"

        async def work(connection: Connection) -> asyncpg.Record | None:
            row = await connection.fetchrow(_OLD, old, new)
            if row is None:
                return None
            if row["succeeded"]:
                await progress.note_deprecation(
                    connection, row["successor_id"], slot_id=row["slot_id"]
                )
            if row["revoked_at"] is not None:
                return row
            if not row["succeeded"] or not self._is_wanted(row["profile"]):
                return None
            await self._revoke(connection, row, by)
            return await connection.fetchrow(_OLD, old, new)

        row = await self._database.run(work)
        if row is None or row["revoked_by"] != by:
            return None
        self._changed()
        return self._record(event, row)

    async def _revoke(self, connection: Connection, row: asyncpg.Record, by: str) -> None:
        issuance_id = row["issuance_id"]
        wish = await progress.revocation_wish(
            connection, issuance_id, successor=row["successor_id"]
        )
        await progress.note_revocation(connection, issuance_id)
        await revocations.set_revocation(connection, issuance_id, wish or REASON, by)

    def _is_wanted(self, profile_name: str) -> bool:
        profile = self._decision_context.profiles.profiles.get(profile_name)
        return profile is not None and profile.renewal.revoke_replaced

    def _record(self, event: RotationEvent, row: asyncpg.Record) -> AuditRecord:
        return self._publisher.audit_records.build.success(
            "certificate.revoked",
            record_id=ids.record_id("rotation-revoked", event.rotation_id, str(row["issuance_id"])),
            at=row["revocation_changed_at"],
            correlation_id=event.correlation_id,
            causation_id=event.id,
            actor=Actor(type="system", subject=row["revoked_by"]),
            target=certificate_target(row),
            details={"reason": row["revocation_reason"]},
        )


async def _note_proofs(connection: Connection, fingerprints: Sequence[bytes]) -> None:
    await progress.note_proofs(connection, fingerprints)
    await forget_proven_keys(connection, fingerprints)


def _octets(fingerprint: str) -> bytes:
    try:
        return bytes.fromhex(fingerprint)
    except ValueError as exc:
        raise MalformedRequest("a fingerprint is none", code="message.malformed") from exc
