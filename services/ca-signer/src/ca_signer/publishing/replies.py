"""Answers to front ends, on core NATS; a lost one is repeated when the client asks again."""

from __future__ import annotations

from ca_signer.model import EXPIRED, IssuanceIntent
from estcore.errors import BusUnavailable, RequestRejected
from estcore.messages import topics
from estcore.messages.enrollment import EnrollmentAnswered
from estcore.messages.envelope import encode
from estcore.runtime.bus import Bus

_EXPIRED_RETRY_S = 1


class Replies:
    """Sends answers to the front ends that asked."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def send(self, group: str, instance: str, answer: EnrollmentAnswered) -> None:
        """Send an answer to one front end; without the bus it is dropped."""
        topic = topics.reply_topic(group, instance, answer.request_id)
        try:
            await self._bus.publish_unconfirmed(topic, encode(answer))
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
