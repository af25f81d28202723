"""Watch over the stream of renewal information: publish everything again where it lost something.

The stream is compared with what renewal recorded in its database:

- its marker (``pki.renewal.info.complete``) is missing or has a different epoch: the stream is new,
  or was emptied, or is one from a backup;
- it gives a sequence that it gave before, to the messages of renewal or to a probe at each
  comparison: it lost its end.

Then one replica publishes every certificate that has not expired, at a bounded rate, and a new
marker after them. Front ends see the marker and read the stream from its start.
"""

from __future__ import annotations

import asyncio
import logging
import uuid

import asyncpg

from estcore.clock import Clock
from estcore.errors import MalformedRequest, Unavailable
from estcore.messages.envelope import decode, encode
from estcore.messages.renewal_info import RenewalInfoComplete
from estcore.messages.topics import (
    PKI_RENEWAL_INFO,
    RENEWAL_INFO_COMPLETE_TOPIC,
    RENEWAL_INFO_PROBE_TOPIC,
)
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.database import Database
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop
from estcore.runtime.stored_messages import last_values
from renewal.metrics import INFO_REPUBLISHED
from renewal.publishing.renewal_info import FACTS, RenewalInfoPublisher
from renewal.settings import RenewalInfoSettings

log = logging.getLogger(__name__)

_LOCK = 0x52_45_4E_49_4E_46_4F
"""The advisory lock of the replica that publishes everything again."""
_PAGE = 1000
_PROBE_TTL_S = 60
_PAGES = FACTS + (
    f"c.issuance_id > $1 and c.not_after > now() order by c.issuance_id limit {_PAGE}"
)
_RECORDED = "select epoch, sequence from info_stream"
_SEEN = "update info_stream set sequence = $1 where sequence < $1"
_COMPLETE = "update info_stream set epoch = $1, sequence = $2, published_at = now()"
FORGET_EPOCH = "update info_stream set epoch = null"


class InfoStreamWatch:
    """Compares the stream with the database, and publishes everything again."""

    def __init__(
        self,
        settings: RenewalInfoSettings,
        database: Database,
        bus: Bus,
        clock: Clock,
        publisher: RenewalInfoPublisher,
    ) -> None:
        self._settings, self._clock = settings, clock
        self._database, self._bus, self._publisher = database, bus, publisher
        self._epoch: uuid.UUID | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Compare until stopped."""
        while not stop.is_set():
            try:
                await self.check(stop)
            except Unavailable as exc:
                log.warning("renewal information not compared", extra=fields(error=exc.reason))
            await sleep_or_stop(stop, self._settings.check_every_s)

    async def check(self, stop: asyncio.Event) -> bool:
        """Compare once; True when everything was published again.

        Raises:
            Unavailable: the bus or the database is unavailable.
        """
        reason = await self._fault()
        if reason is None:
            return False
        async with self._database.connection() as connection:
            if not await connection.fetchval("select pg_try_advisory_lock($1)", _LOCK):
                return False  # a different replica does it
            try:
                reason = await self._fault()
                return reason is not None and await self._republish(reason, stop)
            finally:
                await connection.execute("select pg_advisory_unlock($1)", _LOCK)

    async def _fault(self) -> str | None:
        """Return what the stream lacks; None where it has what was recorded."""
        row = await self._recorded()
        if row["epoch"] != self._epoch:
            # A different replica filled the stream: what this one saw before does not count.
            self._epoch = row["epoch"]
            self._publisher.restart()
        marker = await self._marker()
        if marker is None:
            return "the stream is not complete"
        if marker.epoch != row["epoch"]:
            return "the stream is of a different epoch"
        # Read before: what other replicas publish meanwhile may be recorded after.
        probe = Outgoing(RENEWAL_INFO_PROBE_TOPIC, b"{}", ttl_s=_PROBE_TTL_S)
        (end,) = await self._publisher.confirm([probe])
        if end <= row["sequence"] or self._publisher.lost:
            return "the stream lost messages it had confirmed"
        async with self._database.connection() as connection:
            await connection.execute(_SEEN, end)
        return None

    async def _recorded(self) -> asyncpg.Record:
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_RECORDED)
        assert row is not None  # noqa: S101 - made by the migration, never deleted
        return row

    async def _marker(self) -> RenewalInfoComplete | None:
        values = await last_values(self._bus, PKI_RENEWAL_INFO, RENEWAL_INFO_COMPLETE_TOPIC)
        try:
            return decode(RenewalInfoComplete, values[0].payload) if values else None
        except MalformedRequest as exc:
            log.warning("marker refused", extra=fields(error=exc.reason))
            return None

    async def _republish(self, reason: str, stop: asyncio.Event) -> bool:
        log.info("publishing all renewal information", extra=fields(reason=reason))
        # What is confirmed from here on counts: the sequences of a new stream begin at 1.
        self._publisher.restart()
        count, after = 0, ""
        while rows := await self._page(after):
            count += await self._publisher.publish_rows(rows)
            after = rows[-1]["issuance_id"]
            if await sleep_or_stop(stop, len(rows) / self._settings.republish_per_s):
                return False
        epoch = uuid.uuid4()
        marker = RenewalInfoComplete(epoch=epoch, entries=count, published_at=self._clock.now())
        message = Outgoing(RENEWAL_INFO_COMPLETE_TOPIC, encode(marker))
        (sequence,) = await self._publisher.confirm([message])
        async with self._database.connection() as connection:
            await connection.execute(_COMPLETE, epoch, sequence)
        INFO_REPUBLISHED.inc()
        log.info("all renewal information published", extra=fields(entries=count))
        return True

    async def _page(self, after: str) -> list[asyncpg.Record]:
        async with self._database.connection() as connection:
            return await connection.fetch(_PAGES, after)
