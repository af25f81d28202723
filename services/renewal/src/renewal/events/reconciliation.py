"""Anti-entropy: does the table hold what the ledger committed, minute by minute?

A PubAck says that NATS had an event, not that it was applied here, and a stream can lose what
it acknowledged. ca-signer says for every closed window how many certificates it committed and
the XOR of the SHA-256 of their issuance ids; a window that differs here is asked for again and
looked at again, until it agrees or is given up loudly.
"""

from __future__ import annotations

import datetime as dt
import logging
from enum import Enum

from estcore.messages.envelope import decode, encode
from estcore.messages.events import (
    WINDOW_DIGEST_SQL,
    ReannounceAnswered,
    ReannounceRequested,
    WindowClosed,
)
from estcore.messages.topics import REANNOUNCE_TOPIC
from estcore.runtime.bus import Bus
from estcore.runtime.database import Database
from estcore.runtime.logs import fields
from renewal.metrics import (
    WINDOWS_CHECKED,
    WINDOWS_DIFFERENT,
    WINDOWS_GIVEN_UP,
    WINDOWS_REQUESTED,
)
from renewal.settings import SERVICE, WindowSettings

log = logging.getLogger(__name__)

_SUM = f"""
select count(*) as count, {WINDOW_DIGEST_SQL} as digest
from certificate where issued_at >= $1 and issued_at < $2
"""  # noqa: S608 - our constant


class Verdict(Enum):
    """What to do with a window's message."""

    DONE = "done"
    AGAIN = "again"


class Windows:
    """Compares closed windows."""

    def __init__(self, settings: WindowSettings, database: Database, bus: Bus) -> None:
        self._settings, self._database, self._bus = settings, database, bus
        self._looks: dict[dt.datetime, int] = {}

    async def check(self, window: WindowClosed) -> Verdict:
        """Compare one window.

        At first a difference may be a batch still under way in another replica, so patience
        comes before a request. A window that differs after all requests is given up. Looks are
        counted by this process; one during which ca-signer was away does not count.

        Raises:
            Unavailable: database or ca-signer away.
        """
        WINDOWS_CHECKED.inc()
        if await self._agrees(window):
            self._looks.pop(window.start, None)
            return Verdict.DONE
        WINDOWS_DIFFERENT.inc()
        looks = self._looks.get(window.start, 0) + 1
        start = window.start.isoformat()
        if looks > self._settings.patience + self._settings.max_requests:
            self._looks.pop(window.start, None)
            WINDOWS_GIVEN_UP.inc()
            log.error("reconciliation window differs from the ledger", extra=fields(start=start))
            return Verdict.DONE
        if looks > self._settings.patience:
            announced = await self._request(window)
            log.warning(
                "reconciliation window requested again",
                extra=fields(start=start, announced=announced),
            )
        self._looks[window.start] = looks
        return Verdict.AGAIN

    async def _agrees(self, window: WindowClosed) -> bool:
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_SUM, window.start, window.end)
        assert row is not None  # noqa: S101 - an aggregate has one row
        if row["count"] != window.count:
            return False
        return not window.count or row["digest"].bytes.hex() == window.digest.lower()

    async def _request(self, window: WindowClosed) -> int:
        WINDOWS_REQUESTED.inc()
        asked = ReannounceRequested(requester=SERVICE, windows=(window.start,))
        answer = await self._bus.request(REANNOUNCE_TOPIC, encode(asked), timeout_s=10)
        return decode(ReannounceAnswered, answer).announced
