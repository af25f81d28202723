"""Publish a digest of every closed window of issuances, and republish windows on request.

A PubAck says that the bus has an event, not that renewal or audit applied it, and a stream can lose
what it acknowledged. Consumers compare the digest with their tables and request the windows that
differ (``estcore.runtime.reconciliation``); they ask for the digests as well, since the message
about a window can be lost like the events of the window.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from dataclasses import dataclass

from ca_signer import metrics
from ca_signer.ledger.issuances import IssuanceStore
from ca_signer.publishing.publisher import EventPublisher
from estcore import ids
from estcore.clock import Clock
from estcore.errors import MalformedRequest, Unavailable
from estcore.messages import topics
from estcore.messages.envelope import decode, encode
from estcore.messages.events import (
    ReannounceAnswered,
    ReannounceRequested,
    WindowClosed,
    WindowsAnswered,
    WindowsRequested,
    WindowSum,
    window_digest,
)
from estcore.runtime.bus import Bus, Incoming, Outgoing
from estcore.runtime.logs import fields
from estcore.runtime.reconciliation import check_size, sums
from estcore.runtime.service import sleep_or_stop

log = logging.getLogger(__name__)

_BACK = dt.timedelta(hours=24)
_LIMIT = 120
_PIECE = 200
_ISSUED = (
    "(select issuance_id::text as issuance_id, issued_at from issuance where state = 'issued') i"
)


@dataclass(kw_only=True, eq=False, slots=True)
class ReconciliationWindows:
    """Publishes digests of windows and answers requests to publish windows again."""

    bus: Bus
    ledger: IssuanceStore
    publisher: EventPublisher
    clock: Clock
    length: dt.timedelta
    grace: dt.timedelta
    """How long after its end a window is closed."""

    async def run(self, stop: asyncio.Event) -> None:
        """Publish closed windows until ``stop``."""
        await self.bus.subscribe(topics.REANNOUNCE_TOPIC, self._handle_request, queue="ca-signer")
        await self.bus.subscribe(topics.WINDOWS_TOPIC, self._handle_sums, queue="ca-signer")
        while not await sleep_or_stop(stop, min(self.length.total_seconds() / 4, 10)):
            try:
                await self.publish_closed()
            except Unavailable as exc:
                log.warning("reconciliation windows deferred", extra=fields(code=exc.code))

    async def publish_closed(self) -> None:
        """Publish every window that closed and was not published.

        Raises:
            Unavailable: database or bus unavailable.
        """
        async with self.ledger.database.connection() as connection:
            rows = await connection.fetch(
                "with closed as (select date_bin($1, issued_at, 'epoch'::timestamptz) as start, "
                "issuance_id from issuance where state = 'issued' "
                "and issued_at >= now() - $2::interval "
                "and issued_at < date_bin($1, now() - $3::interval, 'epoch'::timestamptz)) "
                "select start, array_agg(issuance_id::text) as ids from closed "
                'where not exists (select 1 from "window" w where w.started_at = closed.start '
                "and w.published_at is not null) group by start order by start limit $4",
                self.length,
                _BACK,
                self.grace,
                _LIMIT,
            )
            for row in rows:
                digest = window_digest(row["ids"])
                await self._publish(row["start"], len(row["ids"]), digest)
                await connection.execute(
                    'insert into "window" (started_at, count, digest, published_at) '
                    "values ($1, $2, $3, now()) on conflict (started_at) do update set "
                    "count = excluded.count, digest = excluded.digest, published_at = now()",
                    row["start"],
                    len(row["ids"]),
                    bytes.fromhex(digest),
                )

    async def _publish(self, start: dt.datetime, count: int, digest: str) -> None:
        window = WindowClosed(
            id=f"window-{start.isoformat()}",
            source="ca-signer",
            time=self.clock.now(),
            correlation_id=ids.uuid7(),
            start=start,
            end=start + self.length,
            count=count,
            digest=digest,
        )
        await self.bus.publish_confirmed([Outgoing(topics.WINDOW_TOPIC, encode(window))])

    async def _handle_request(self, message: Incoming) -> None:
        try:
            request = decode(ReannounceRequested, message.payload)
            announced = await self.announce_again(request)
            await self.bus.answer(message, encode(ReannounceAnswered(announced=announced)))
        except (MalformedRequest, Unavailable) as exc:
            log.warning("reconciliation windows not republished", extra=fields(code=exc.code))

    async def _handle_sums(self, message: Incoming) -> None:
        try:
            windows = await self.closed_sums(decode(WindowsRequested, message.payload))
            await self.bus.answer(message, encode(WindowsAnswered(windows=windows)))
        except (MalformedRequest, Unavailable) as exc:
            log.warning("reconciliation windows not answered", extra=fields(code=exc.code))

    async def closed_sums(self, request: WindowsRequested) -> tuple[WindowSum, ...]:
        """Return the sums of closed windows in which something was issued.

        Raises:
            MalformedRequest: the answer would be too large.
            Unavailable: database unavailable.
        """
        check_size(request)
        length = dt.timedelta(seconds=request.length_s)
        async with self.ledger.database.connection() as connection:
            closed = await connection.fetchval(
                "select date_bin($1, now() - $2::interval, 'epoch'::timestamptz)",
                length,
                self.grace,
            )
            end = min(request.end, closed)
            found = await sums(connection, _ISSUED, request.start, end, request.length_s)
        return tuple(
            WindowSum(start=start, end=start + length, count=count, digest=digest)
            for start, (count, digest) in found.items()
            if request.start <= start and start + length <= end
        )

    async def announce_again(self, request: ReannounceRequested) -> int:
        """Publish every certificate of the windows again, for the requester; returns how many.

        Raises:
            Unavailable: database or bus unavailable.
        """
        count = 0
        length = dt.timedelta(seconds=request.length_s) if request.length_s else self.length
        for start in request.windows:
            issued = await self.ledger.issued_between(start, start + length)
            for first in range(0, len(issued), _PIECE):
                piece = issued[first : first + _PIECE]
                if request.requester == "audit":
                    await self.publisher.republish_records(piece)
                else:
                    await self.publisher.republish_events(piece)
                count += len(piece)
        metrics.REANNOUNCED.labels(request.requester).inc(count)
        log.warning(
            "reconciliation windows republished",
            extra=fields(requester=request.requester, windows=len(request.windows), count=count),
        )
        return count
