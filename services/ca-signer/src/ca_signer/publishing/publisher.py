"""Step 10 of issuance: publish audit records and events, and await their PubAcks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from ca_signer.model import IssuanceIntent, IssuedCertificate, Refusal
from ca_signer.publishing.audit_records import AuditRecords
from ca_signer.publishing.replies import Replies
from ca_signer.settings import SERVICE
from estcore.clock import Clock
from estcore.messages import topics
from estcore.messages.audit import AuditRecord
from estcore.messages.audit_batches import Record, encode_records, join_records, parts
from estcore.messages.enrollment import EnrollmentRequested
from estcore.messages.envelope import encode, encode_mapping
from estcore.messages.events import RenewalRequested
from estcore.messages.joined import groups, join, joined_id
from estcore.runtime.boot import Boot
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.delivery import Delivery
from estcore.runtime.own_records import OwnRecords
from estcore.runtime.sent_batches import SentBatches

log = logging.getLogger(__name__)

_EVENT_OCTETS = 128 * 1024


class EventPublisher:
    """Publishes audit records and events of one signer process.

    ``audit_records`` builds what is published, ``replies`` answers front ends, ``own`` are records
    of the service about itself. A method that publishes raises BusUnavailable when a PubAck is
    missing; publishing again is harmless.
    """

    def __init__(self, bus: Bus, clock: Clock, instance: str, boot: Boot | None = None) -> None:
        boot = boot or Boot()
        self._bus = bus
        self._sent = SentBatches(bus)
        self.audit_records = AuditRecords(clock, instance, boot.id)
        self.replies = Replies(bus)
        self._refusal_topic = topics.audit_refusal_topic(SERVICE, instance)
        self.own = OwnRecords(bus, self._refusal_topic, instance, clock, boot)

    async def intents(self, intents: Sequence[IssuanceIntent]) -> None:
        """Step 6: publish the intents; without the PubAck nothing is signed.

        Raises:
            BusUnavailable: not confirmed.
        """
        for batch in _joined([self.audit_records.intent(i) for i in intents]):
            await self._sent.publish(batch)

    async def issued(self, issued: Sequence[IssuedCertificate]) -> None:
        """Step 10: publish outcome records and events.

        Raises:
            BusUnavailable: not confirmed; publishing again is harmless.
        """
        records = _batches([self.audit_records.outcome(i) for i in issued])
        await asyncio.gather(
            self._bus.publish_confirmed(self._events(issued)),
            *(self._sent.publish(batch) for batch in records),
        )

    async def left_behind(self, issued: Sequence[IssuedCertificate]) -> None:
        """Publish records and events of certificates whose signer did not, or may not have.

        Intents as well: that signer would have sent them again, had their stream been lost.

        Raises:
            BusUnavailable: not confirmed; publishing again is harmless.
        """
        await self.republish_records(issued)
        await self._bus.publish_confirmed(self._events(issued))

    async def republish_records(self, issued: Sequence[IssuedCertificate]) -> None:
        """Publish intent and outcome records again, for the audit service."""
        build = self.audit_records
        await self.mappings(
            [r for i in issued for r in (build.intent_of_issued(i), build.outcome(i))]
        )

    async def republish_events(self, issued: Sequence[IssuedCertificate]) -> None:
        """Publish the events again, for renewal."""
        await self._bus.publish_confirmed(self._events(issued, again=True))

    def _events(
        self, issued: Sequence[IssuedCertificate], *, again: bool = False
    ) -> list[Outgoing]:
        """Return the events of certificates, joined; ``again`` if JetStream must drop none."""
        encoded = [encode_mapping(self.audit_records.issued_event(i)) for i in issued]
        found = []
        for part in groups(encoded, max_octets=_EVENT_OCTETS):
            # JetStream drops a message id it has seen lately; what was asked for has none.
            name = joined_id([f"issued-{i.intent.issuance_id}" for i in issued[part]])
            message_id = None if again else name
            found.append(Outgoing(topics.ISSUED_TOPIC, join(encoded[part]), message_id))
        return found

    async def renewal_requests(self, events: Sequence[RenewalRequested]) -> None:
        """Publish that campaigns ask to renew certificates now, for renewal.

        Raises:
            BusUnavailable: not confirmed; publishing again is harmless.
        """
        encoded = [encode(event) for event in events]
        messages = [
            Outgoing(
                topics.RENEWAL_REQUESTED_TOPIC,
                join(encoded[part]),
                joined_id([event.id for event in events[part]]),
            )
            for part in groups(encoded, max_octets=_EVENT_OCTETS)
        ]
        await self._bus.publish_confirmed(messages)

    async def joined(self, records: Sequence[Record]) -> None:
        """Publish records of one kind, as items of as few records as may be.

        Raises:
            BusUnavailable: not confirmed.
        """
        await self._bus.publish_confirmed(_joined(records))

    async def mappings(self, records: Sequence[Record]) -> None:
        """Publish audit records that are mappings.

        Raises:
            BusUnavailable: not confirmed.
        """
        if records:
            await self._bus.publish_confirmed(_batches(records))

    async def records(self, records: Sequence[AuditRecord]) -> None:
        """Publish audit records, for example of what operators did.

        Raises:
            BusUnavailable: not confirmed.
        """
        await self.mappings([r.model_dump(exclude_none=True) for r in records])

    async def denials(self, records: Sequence[AuditRecord]) -> None:
        """Publish records of refusals that are no enrollments.

        Raises:
            BusUnavailable: not confirmed.
        """
        payloads = [r.model_dump(exclude_none=True) for r in records]
        if payloads:
            await self._bus.publish_confirmed(_batches(payloads, self._refusal_topic))

    async def refusals(self, refusals: Sequence[Refusal]) -> None:
        """Publish event and audit record of refused requests.

        Raises:
            BusUnavailable: not confirmed.
        """
        events = [
            Outgoing(
                topics.certificate_topic("rejected", r.event.tenant, r.event.service),
                encode(r.event),
                f"rejected-{r.event.id}",
            )
            for r in refusals
        ]
        records = [r.record.model_dump(exclude_none=True) for r in refusals]
        # On the stream of refusals: a flood of them cannot fill the one that issuing waits on.
        batches = _batches(records, self._refusal_topic)
        await self._bus.publish_confirmed([*batches, *events])

    async def dead_letter(
        self, delivery: Delivery, code: str, reason: str, message: EnrollmentRequested | None
    ) -> None:
        """Publish the audit record of a dead letter; ``message`` is None where unreadable.

        Raises:
            BusUnavailable: not confirmed.
        """
        record = self.audit_records.dead_letter(delivery, code, reason, message)
        await self._bus.publish_confirmed(_batches([record], self._refusal_topic))


def _joined(records: Sequence[Record]) -> list[Outgoing]:
    """Return records of one kind, joined, in messages."""
    topic = topics.audit_issue_topic(SERVICE)
    traceparents = [t for r in records if (t := r.pop("traceparent", None))]
    encoded = join_records(records)
    return [Outgoing(topic, encode_records(encoded[part], traceparents)) for part in parts(encoded)]


def _batches(records: Sequence[Record], topic: str | None = None) -> list[Outgoing]:
    topic = topic or topics.audit_issue_topic(SERVICE)
    traceparents = [r.pop("traceparent", None) for r in records]
    encoded = [encode_mapping(r) for r in records]
    return [
        Outgoing(topic, encode_records(encoded[part], [t for t in traceparents[part] if t]))
        for part in parts(encoded)
    ]
