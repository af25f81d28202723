"""CRL publisher: sign, verify, store and publish the CRLs of every issuer.

An issuer has its full CRL and, where its settings say so, the shards that certificates name
(``estcore.pki.crl_shards``). A CRL is due when there is none, when half its lifetime is over, or
when the ledger's revoked certificates are not those in it. A signer takes the next CRL number
first, so a number is used once, and the CRL with the highest number stays. A crash may leave a gap
in the numbers. What is published is read from the row.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import asyncpg

from ca_signer import metrics
from ca_signer.ledger.issuance_rows import serial_octets
from ca_signer.signing.issuers import SigningIssuer
from estcore.clock import monotonic_s
from estcore.errors import InvariantBroken, Unavailable
from estcore.messages import topics
from estcore.messages.envelope import encode
from estcore.messages.state import RevocationList, RevocationManifest
from estcore.pki.certificate import assemble
from estcore.pki.crl import (
    RevokedEntry,
    build_crl,
    check_crl,
    crl_signature_algorithm,
    plain_entries,
    read_crl,
)
from estcore.pki.crl_shards import Partition, all_of
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.database import Connection, Database
from estcore.runtime.logs import fields
from estcore.runtime.service import event_or_stop, sleep_or_stop

log = logging.getLogger(__name__)

_FIRST_S = 0.2
_DEBOUNCE_S = 0.5
_LEAST_BETWEEN_S = 2.0
_LOOK_EVERY_S = 10.0
_PUBLISH_EVERY_S = 300.0
MOST = 14_000
"""Entries that fit one message of a NATS with its usual limit of 1 MiB."""
Key = tuple[str, Partition | None]

_REVOKED = """from issuance where issuer_id = $1 and revoked_at is not null and not_after > $2"""


@dataclass(frozen=True)
class _PublishedList:
    number: int
    entries: frozenset[RevokedEntry]


@dataclass(frozen=True)
class _Ledger:
    """What the ledger says of an issuer at ``now``."""

    now: dt.datetime
    entries: frozenset[RevokedEntry]

    def of(self, part: Partition | None) -> frozenset[RevokedEntry]:
        if part is None:
            return self.entries
        return frozenset(e for e in self.entries if part.holds(e.serial_number))


class CRLPublisher:
    """Runs in every signer; any number may run."""

    def __init__(
        self,
        database: Database,
        bus: Bus,
        issuers: Mapping[str, SigningIssuer],
        *,
        lifetime_s: int,
        urls: Callable[[], Sequence[str]] = lambda: (),
    ) -> None:
        """``urls`` returns the templates under which certificates name parts of a list."""
        self._database = database
        self._bus = bus
        self._issuers = issuers
        self._lifetime = dt.timedelta(seconds=lifetime_s)
        self._urls = urls
        self._due = asyncio.Event()
        self._lists: dict[Key, _PublishedList] = {}
        self._totals: dict[str, asyncpg.Record] = {}
        self._published_at: dict[Key, float] = {}

    def changed(self, _: str) -> None:
        """Say that a list may not be right any more."""
        self._due.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Keep the lists fresh until ``stop``."""
        pause = _FIRST_S
        while not await event_or_stop(stop, self._due, pause):
            # Several in a row make one list.
            if self._due.is_set() and await sleep_or_stop(stop, _DEBOUNCE_S):
                return
            self._due.clear()
            await self.refresh()
            if await sleep_or_stop(stop, _LEAST_BETWEEN_S):
                return
            pause = _LOOK_EVERY_S - _LEAST_BETWEEN_S

    async def refresh(self) -> None:
        """Make and publish every list that is due; an issuer whose key is unavailable waits."""
        for issuer in self._issuers.values():
            try:
                await self._refresh(issuer)
            except Unavailable as exc:
                log.warning("CRL deferred", extra=fields(issuer=issuer.issuer_id, code=exc.code))
            except InvariantBroken as exc:
                log.error("CRL not signed", extra=fields(code=exc.code, reason=exc.reason))

    async def _refresh(self, issuer: SigningIssuer) -> None:
        issuer_id = issuer.issuer_id
        parts: list[Partition | None] = [p for n in issuer.crl.counts for p in all_of(n)]
        async with self._database.connection() as connection:
            rows = {
                row["partition"]: row
                for row in await connection.fetch(
                    "select partition, number, next_update, next_update - now() < $2 as late, "
                    "crl is null as missing from crl where issuer_id = $1",
                    issuer_id,
                    self._lifetime / 2,
                )
            }
            (totals,) = await connection.fetch(
                "select count(*), sum(revocation_seq), max(revocation_changed_at) " + _REVOKED,
                issuer_id,
                await self._horizon(connection),
            )
        if totals["count"] <= MOST or not parts:
            # Else the full list ends here: certificates of today name parts.
            parts.insert(0, None)
        late = [p for p in parts if _is_late(rows.get(_name(p)))]
        if (late or self._totals.get(issuer_id) != totals) and issuer.keystore.ready:
            ledger = await self._ledger(issuer_id)
            for part in parts:
                if part in late or await self._differs(issuer_id, part, rows, ledger):
                    await self._make(issuer, part)
            self._totals[issuer_id] = totals
        await self._publish(issuer, parts)

    async def _horizon(self, connection: Connection) -> dt.datetime:
        # RFC 5280 section 3.3: an entry stays until it was on a list made after expiry.
        now: dt.datetime = await connection.fetchval("select date_trunc('second', now())")
        return now - self._lifetime

    async def _ledger(self, issuer_id: str, part: Partition | None = None) -> _Ledger:
        async with self._database.connection() as connection:
            horizon = await self._horizon(connection)
            rows = await connection.fetch(
                "select serial_number, revoked_at, revocation_reason "
                + _REVOKED
                + " and get_byte(serial_number, length(serial_number) - 1) % $3 = $4",
                issuer_id,
                horizon,
                part.count if part else 1,
                part.index if part else 0,
            )
        entries = (
            RevokedEntry(
                int.from_bytes(r["serial_number"], "big"), r["revoked_at"], r["revocation_reason"]
            )
            for r in rows
        )
        return _Ledger(horizon + self._lifetime, await asyncio.to_thread(plain_entries, entries))

    async def _differs(
        self,
        issuer_id: str,
        part: Partition | None,
        rows: Mapping[str, asyncpg.Record],
        ledger: _Ledger,
    ) -> bool:
        row = rows[_name(part)]
        published = self._lists.get((issuer_id, part))
        if published is None or published.number != row["number"]:
            published = await self._read(issuer_id, part, row["number"])
        entries = ledger.of(part)
        if entries - published.entries:
            return True
        gone = [serial_octets(e.serial_number) for e in published.entries - entries]
        if not gone:
            return False
        async with self._database.connection() as connection:
            # What has only expired may stay in the list; what was released may not.
            released = await connection.fetchval(
                "select true from issuance where issuer_id = $1 "
                "and serial_number = any($2::bytea[]) and revoked_at is null limit 1",
                issuer_id,
                gone,
            )
        return bool(released)

    async def _read(self, issuer_id: str, part: Partition | None, number: int) -> _PublishedList:
        async with self._database.connection() as connection:
            crl = await connection.fetchval(
                "select crl from crl where issuer_id = $1 and partition = $2",
                issuer_id,
                _name(part),
            )
        _, entries = await asyncio.to_thread(read_crl, crl)
        published = self._lists[issuer_id, part] = _PublishedList(number, entries)
        return published

    async def _make(self, issuer: SigningIssuer, part: Partition | None) -> None:
        issuer_id, name = issuer.issuer_id, _name(part)
        async with self._database.connection() as connection:
            number = await connection.fetchval(
                "insert into crl (issuer_id, partition, last_number) values ($1, $2, 1) "
                "on conflict (issuer_id, partition) do update "
                "set last_number = crl.last_number + 1 returning last_number",
                issuer_id,
                name,
            )
        # Read after the number was taken: a CRL with a higher number has at least these entries.
        ledger = await self._ledger(issuer_id, part)
        now, entries = ledger.now, ledger.entries
        if len(entries) > MOST:
            log.error(
                "CRL too large for one message, increase crl_partitions",
                extra=fields(issuer=issuer_id, partition=name, entries=len(entries)),
            )
            return
        next_update = now + self._lifetime
        urls = issuer.crl.urls_of(part, self._urls())
        tbs = await asyncio.to_thread(
            build_crl,
            issuer.certificate,
            entries,
            number=number,
            this_update=now,
            next_update=next_update,
            urls=urls,
        )
        self._database.clock.require()
        signature = await issuer.keystore.sign(tbs)
        issuer.check_signature(tbs, signature)
        crl = assemble(tbs, crl_signature_algorithm(tbs), signature)
        await asyncio.to_thread(
            check_crl,
            crl,
            issuer.certificate,
            entries,
            number=number,
            next_update=next_update,
            urls=urls,
        )
        async with self._database.connection() as connection:
            await connection.execute(
                "update crl set number = $3, crl = $4, this_update = $5, next_update = $6, "
                "published_at = null where issuer_id = $1 and partition = $2 "
                "and coalesce(number, 0) < $3",
                issuer_id,
                name,
                number,
                crl,
                now,
                next_update,
            )
        metrics.CRL_MADE.labels(issuer_id).inc()
        log.info(
            "CRL signed",
            extra=fields(issuer=issuer_id, partition=name, number=number, entries=len(entries)),
        )

    async def _publish(self, issuer: SigningIssuer, parts: Sequence[Partition | None]) -> None:
        issuer_id = issuer.issuer_id
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "select partition, number, this_update, next_update, published_at, now() as moment "
                "from crl where issuer_id = $1 and crl is not null",
                issuer_id,
            )
        by_partition = {row["partition"]: row for row in rows}
        if not by_partition:
            return
        made, ends = (min(row[c] for row in rows) for c in ("this_update", "next_update"))
        metrics.CRL_THIS_UPDATE.labels(issuer_id).set(made.timestamp())
        metrics.CRL_NEXT_UPDATE.labels(issuer_id).set(ends.timestamp())
        published = False
        for part in parts:
            row = by_partition.get(_name(part))
            if row is not None and self._is_to_be_told((issuer_id, part), row):
                await self._tell(issuer_id, part)
                published = True
        if published and issuer.crl.counts:
            manifest = RevocationManifest(
                issuer_id=issuer_id,
                updated_at=rows[0]["moment"],
                partitions=tuple(sorted(p.name for p in parts if p is not None)),
            )
            topic = topics.crl_topic(issuer_id, topics.CRL_MANIFEST)
            await self._bus.publish_confirmed([Outgoing(topic, encode(manifest))])

    def _is_to_be_told(self, key: Key, row: asyncpg.Record) -> bool:
        at = self._published_at.get(key)
        if at is None or row["published_at"] is None:
            return True
        return monotonic_s() - at > _PUBLISH_EVERY_S

    async def _tell(self, issuer_id: str, part: Partition | None) -> None:
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                "select * from crl where issuer_id = $1 and partition = $2", issuer_id, _name(part)
            )
        if row is None or row["crl"] is None:
            return
        message = RevocationList(
            issuer_id=issuer_id,
            partition=part.name if part else None,
            number=row["number"],
            this_update=row["this_update"],
            next_update=row["next_update"],
            crl=row["crl"],
        )
        topic = topics.crl_topic(issuer_id, message.partition)
        await self._bus.publish_confirmed([Outgoing(topic, encode(message))])
        self._published_at[issuer_id, part] = monotonic_s()
        async with self._database.connection() as connection:
            await connection.execute(
                "update crl set published_at = now() "
                "where issuer_id = $1 and partition = $2 and number = $3",
                issuer_id,
                _name(part),
                row["number"],
            )


def _name(part: Partition | None) -> str:
    return part.name if part else ""


def _is_late(row: asyncpg.Record | None) -> bool:
    return row is None or row["missing"] or row["late"]
