"""Pending enrollments: a client that retries too early is answered 202 without queueing again.

ca-signer publishes every pending enrollment to all front ends, because a client answered 202
may retry at any of them. While an enrollment is pending, no copy of its request is queued; the
ledger would recognise the copy, but a polling fleet would fill the stream. Nothing is decided
here: an entry is valid for a few seconds only, so that a request made right after an operator's
decision reaches ca-signer.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
from collections import OrderedDict

from est_frontend import metrics
from estcore.clock import Clock
from estcore.errors import MalformedRequest
from estcore.messages.envelope import decode
from estcore.messages.events import EnrollmentPending
from estcore.runtime.bus import Bus, Incoming
from estcore.runtime.logs import fields

log = logging.getLogger(__name__)

LONGEST = dt.timedelta(seconds=10)
_MOST = 50_000
_TOPIC = "pki.certificate.pending.>"


class PendingRequests:
    """The pending enrollments known to one process; the oldest are dropped first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until: OrderedDict[str, dt.datetime] = OrderedDict()

    async def follow(self, bus: Bus) -> None:
        """Listen from now on."""
        await bus.subscribe(_TOPIC, self._arrived)

    @property
    def any(self) -> bool:
        """Some enrollment is, or was a moment ago, pending."""
        return bool(self._until)

    def wait_s(self, enrollment_id: bytes) -> int | None:
        """Return the seconds after which a client may come back; None where it may come now."""
        until = self._until.get(enrollment_id.hex())
        if until is None:
            return None
        remaining_s = (until - self._clock.now()).total_seconds()
        if remaining_s <= 0:
            del self._until[enrollment_id.hex()]
            return None
        metrics.EARLY_POLLS.inc()
        return math.ceil(remaining_s)

    async def _arrived(self, message: Incoming) -> None:
        try:
            event = decode(EnrollmentPending, message.payload)
        except MalformedRequest as exc:
            log.error("pending-enrollment event unreadable", extra=fields(reason=exc.reason))
            return
        self._until[event.enrollment_id] = min(event.until, self._clock.now() + LONGEST)
        self._until.move_to_end(event.enrollment_id)
        while len(self._until) > _MOST:
            self._until.popitem(last=False)
