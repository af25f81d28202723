"""Answers to front ends, on core NATS; a lost one is repeated when the client asks again."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence

from ca_signer.model import EXPIRED, IssuanceIntent, IssuedCertificate
from estcore.errors import BusUnavailable, RequestRejected
from estcore.messages import topics
from estcore.messages.enrollment import READS_JOINED, EnrollmentAnswered, EnrollmentRequested
from estcore.messages.envelope import encode
from estcore.messages.joined import groups, join
from estcore.runtime.bus import Bus

_EXPIRED_RETRY_S = 1
_MAX_OCTETS = 128 * 1024
_FRONT_ENDS = 10_000


class Replies:
    """Sends answers to the front ends that asked."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._versions: OrderedDict[tuple[str, str], int] = OrderedDict()

    def note(self, message: EnrollmentRequested) -> None:
        """Remember what the front end that sent a request can read."""
        front_end = (message.group, message.instance)
        self._versions[front_end] = message.schema_version
        if len(self._versions) > _FRONT_ENDS:
            self._versions.popitem(last=False)

    async def send_issued(self, stored: Sequence[IssuedCertificate]) -> None:
        """Answer the requests of stored certificates, one message for each front end."""
        await self._send_together(
            (
                (issued.intent.context.group, issued.intent.context.instance),
                issued_answer(issued.intent.request_id, issued.certificate),
            )
            for issued in stored
        )

    async def send_certificates(
        self, found: Iterable[tuple[EnrollmentRequested, IssuedCertificate]]
    ) -> None:
        """Answer requests with certificates stored before, one message for each front end."""
        await self._send_together(
            ((message.group, message.instance), issued_answer(message.id, issued.certificate))
            for message, issued in found
        )

    async def _send_together(
        self, answered: Iterable[tuple[tuple[str, str], EnrollmentAnswered]]
    ) -> None:
        answers: dict[tuple[str, str], list[EnrollmentAnswered]] = defaultdict(list)
        for front_end, answer in answered:
            answers[front_end].append(answer)
        for (group, instance), found in answers.items():
            if len(found) == 1 or self._versions.get((group, instance), 0) < READS_JOINED:
                for answer in found:
                    await self.send(group, instance, answer)
                continue
            encoded = [encode(answer) for answer in found]
            for part in groups(encoded, max_octets=_MAX_OCTETS):
                topic = topics.reply_topic(group, instance, found[part.start].request_id)
                await self._publish(topic, join(encoded[part]))

    async def send(self, group: str, instance: str, answer: EnrollmentAnswered) -> None:
        """Send an answer to one front end; without the bus it is dropped."""
        await self._publish(topics.reply_topic(group, instance, answer.request_id), encode(answer))

    async def _publish(self, topic: str, payload: bytes) -> None:
        try:
            await self._bus.publish_unconfirmed(topic, payload)
        except BusUnavailable:
            return

    async def send_abandoned(self, intent: IssuanceIntent, why: RequestRejected) -> None:
        """Answer the request of an intent that is not signed.

        The client of an expired request is asked to send it again; any other is refused.
        """
        request_id, context = intent.request_id, intent.context
        if why.code == EXPIRED.code:
            answer = EnrollmentAnswered(
                request_id=request_id, outcome="pending", retry_after_s=_EXPIRED_RETRY_S
            )
        else:
            answer = rejected_answer(request_id, why)
        await self.send(context.group, context.instance, answer)


def issued_answer(request_id: str, certificate: bytes) -> EnrollmentAnswered:
    """Return the answer with the stored certificate."""
    return EnrollmentAnswered(request_id=request_id, outcome="issued", certificate=certificate)


def rejected_answer(request_id: str, error: RequestRejected) -> EnrollmentAnswered:
    """Return the answer to a refused request."""
    return EnrollmentAnswered(
        request_id=request_id,
        outcome="rejected",
        kind=type(error).__name__,
        code=error.code,
        reason=error.reason,
    )
