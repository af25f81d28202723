"""Publishes renewal information: the window of every certificate, for front ends to keep.

The first certificate of a slot travels with the batch that stored it, before its event is
acknowledged. Every later change of a window sets ``info_pending`` on the certificate's row in the
same transaction; it is cleared when the PubAck of that version is here, and the sweeper of any
replica publishes what a crash left.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Sequence

import asyncpg

from estcore.clock import Clock
from estcore.messages.renewal_info import (
    RenewalInfoEntry,
    RenewalReason,
    encode_entries,
    expiry_day,
)
from estcore.messages.topics import renewal_info_topic
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.database import Database
from renewal.metrics import INFO_ENTRIES
from renewal.rotation.renewal_info import InfoFacts, entry_of, first_entry, managed_state
from renewal.rotation.schedule import due_at
from renewal.rotation.slot import Scheduled
from renewal.settings import RenewalInfoSettings

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
_DAY_S = 86_400
_LONGEST_TTL_S = 30 * 365 * _DAY_S
"""NATS counts in nanoseconds, 292 years at most; a certificate may be good until 9999."""
_PAGE = 1000
FACTS = """
select c.issuance_id, c.slot_id, c.certificate, c.generation, c.state, c.issued_at, c.not_after,
    c.changed_at, c.issuance_id = s.active_id as active, s.due_at, s.reaction_time_s, s.spread,
    s.due_reason, s.renew_by, s.explanation_url, s.mode, s.state as slot_state,
    s.next_id is not null as succeeded, q.due_at as requested_at,
    q.reason as requested_reason, q.renew_by as requested_by, q.explanation_url as requested_url
from certificate c join renewal_slot s using (slot_id)
left join renewal_request q using (fingerprint_sha256) where
"""
# Two, each by an index of its own: a slot may have thousands of certificates that ended.
_OF_SLOTS = (
    FACTS + "c.info_pending and c.slot_id = any($1::uuid[]) union all "
    f"{FACTS} not c.info_pending and c.issuance_id = any($2::text[])"
)
_LEFT = (
    FACTS + "c.info_pending and c.changed_at < now() - $1::interval "
    f"order by c.changed_at limit {_PAGE}"
)
_CLEAR = """
update certificate c set info_pending = false
from unnest($1::text[], $2::timestamptz[]) as t(id, changed_at)
where c.issuance_id = t.id and c.info_pending and c.changed_at = t.changed_at
"""


class RenewalInfoPublisher:
    """Publishes entries, and notices by the PubAcks that the stream lost some."""

    def __init__(
        self, database: Database, bus: Bus, clock: Clock, settings: RenewalInfoSettings
    ) -> None:
        self._database, self._bus, self._clock = database, bus, clock
        self._grace_s = settings.expired_days * _DAY_S
        self._highest = 0
        """The highest sequence of a PubAck; 0 before the first."""
        self.lost = False
        """A PubAck had a sequence that was used before: the stream lost its end."""

    def restart(self) -> None:
        """Forget the sequences seen: the stream is filled again."""
        self._highest, self.lost = 0, False

    def first(self, scheduled: Iterable[Scheduled], repeated: Collection[str]) -> list[Outgoing]:
        """Return the messages about the first certificates of slots."""
        entries = [first_entry(item) for item in scheduled if item.event.id not in repeated]
        return self.outgoing([entry for entry in entries if entry is not None])

    async def publish(self, slot_ids: Sequence[str], issuance_ids: Collection[str] = ()) -> int:
        """Publish what changed in these slots, and these certificates of them in any case.

        Raises:
            Unavailable: not everything was confirmed; the sweeper publishes it again.
        """
        async with self._database.connection() as connection:
            rows = await connection.fetch(_OF_SLOTS, list(slot_ids), list(issuance_ids))
        return await self._publish(rows)

    async def sweep(self, older_than: dt.timedelta) -> int:
        """Publish what a crash or an outage left unpublished; returns how many entries.

        Raises:
            Unavailable: the bus or the database is unavailable.
        """
        async with self._database.connection() as connection:
            rows = await connection.fetch(_LEFT, older_than)
        return await self._publish(rows)

    async def _publish(self, rows: Sequence[asyncpg.Record]) -> int:
        if not rows:
            return 0
        count = await self.publish_rows(rows)
        async with self._database.connection() as connection:
            await connection.execute(
                _CLEAR, [row["issuance_id"] for row in rows], [row["changed_at"] for row in rows]
            )
        return count

    async def publish_rows(self, rows: Sequence[asyncpg.Record]) -> int:
        """Publish the entries of rows of ``FACTS``, without marking them; returns how many.

        Raises:
            BusUnavailable: not everything was confirmed.
        """
        entries = [entry for row in rows if (entry := entry_of(_facts(row))) is not None]
        await self.confirm(self.outgoing(entries))
        return len(entries)

    async def confirm(
        self, messages: Sequence[Outgoing], others: Sequence[Outgoing] = ()
    ) -> list[int]:
        """Publish messages about renewal information, and ``others`` with them.

        Returns the sequences of ``messages``.

        Raises:
            BusUnavailable: not everything was confirmed.
        """
        before = self._highest
        sequences = await self._bus.publish_confirmed([*messages, *others], timeout_s=10)
        own = sequences[: len(messages)]
        if own:
            self.lost = self.lost or min(own) <= before
            self._highest = max(self._highest, *own)
        return own

    def outgoing(self, entries: Sequence[RenewalInfoEntry]) -> list[Outgoing]:
        """Return entries as messages, those of a day of expiry together.

        Without message ids: what is published again has to get a sequence of its own.
        """
        by_day: dict[str, list[RenewalInfoEntry]] = {}
        for entry in entries:
            by_day.setdefault(expiry_day(entry.not_after), []).append(entry)
        INFO_ENTRIES.inc(len(entries))
        return [
            Outgoing(renewal_info_topic(day), payload, ttl_s=self._ttl_s(of_day[0].not_after))
            for day, of_day in sorted(by_day.items())
            for payload in encode_entries(of_day)
        ]

    def _ttl_s(self, not_after: int) -> int:
        """Return the seconds until the day of expiry and the days after it are over."""
        day_end = (not_after // _DAY_S + 1) * _DAY_S
        left = day_end + self._grace_s - int(self._clock.now().timestamp())
        return min(max(left, 1), _LONGEST_TTL_S)


def _facts(row: asyncpg.Record) -> InfoFacts:
    early = _schedule(row)
    return InfoFacts(
        certificate=row["certificate"],
        slot_id=str(row["slot_id"]),
        number=row["generation"],
        state=row["state"],
        issued_at=row["issued_at"],
        not_after=row["not_after"],
        version=(row["changed_at"] - _EPOCH) // _MICROSECOND,
        due_at=early[0],
        due_reason=early[1],
        renew_by=early[2],
        explanation_url=early[3],
        managed=managed_state(
            row["state"],
            mode=row["mode"],
            slot_state=row["slot_state"],
            succeeded=row["succeeded"],
        ),
    )


def _schedule(
    row: asyncpg.Record,
) -> tuple[dt.datetime | None, RenewalReason | None, dt.datetime | None, str | None]:
    """Return when a certificate is due, why, until when, and the URL that explains it."""
    if row["active"]:
        return row["due_at"], row["due_reason"], row["renew_by"], row["explanation_url"]
    if row["state"] != "next":
        return None, None, None, None
    due = due_at(
        issued_at=row["issued_at"],
        not_after=row["not_after"],
        reaction_time=dt.timedelta(seconds=row["reaction_time_s"]),
        spread=row["spread"],
        slot_id=str(row["slot_id"]),
        generation=row["generation"],
    )
    if row["requested_at"] is None:
        return due, None, None, None
    early = min(due, row["requested_at"])
    return early, row["requested_reason"], row["requested_by"], row["requested_url"]
