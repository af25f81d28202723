"""Keeps a fresh revocation list of every issuer: made, verified, stored, published.

A list is due when it is not there, when half its lifetime is over, or when the ledger's revoked
certificates are not those in it. A signer that makes one takes the next number first, so a
number is used once; the list with the highest number stays. Numbers may leave gaps, that is all
a crash in between leaves. What is published is read from the row.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Mapping
from dataclasses import dataclass

import asyncpg

from ca_signer import metrics
from ca_signer.keystore import Issuer
from ca_signer.ledger import SERIAL_OCTETS
from estcore.clock import monotonic_s
from estcore.errors import InvariantBroken, Unavailable
from estcore.messages import topics
from estcore.messages.envelope import encode
from estcore.messages.state import RevocationList
from estcore.pki.certificate import assemble
from estcore.pki.crl import (
    RevokedEntry,
    build_crl,
    check_crl,
    plain_entries,
    read_crl,
    signature_algorithm,
)
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.database import Database
from estcore.runtime.logs import fields
from estcore.runtime.service import until

log = logging.getLogger(__name__)

_TICK_S = 0.2
_DEBOUNCE_S = 0.5
_LOOK_EVERY_S = 10.0
_PUBLISH_EVERY_S = 300.0
MOST = 14_000
"""Entries that fit one message of a NATS with its usual limit of 1 MiB."""


@dataclass(frozen=True)
class _Known:
    number: int
    entries: frozenset[RevokedEntry]


class RevocationLists:
    """Runs in every signer; any number may run."""

    def __init__(
        self,
        database: Database,
        bus: Bus,
        issuers: Mapping[str, Issuer],
        *,
        lifetime_s: int,
    ) -> None:
        self._database = database
        self._bus = bus
        self._issuers = issuers
        self._lifetime = dt.timedelta(seconds=lifetime_s)
        self._due = asyncio.Event()
        self._known: dict[str, _Known] = {}
        self._published_at: dict[str, float] = {}

    def changed(self, _: str) -> None:
        """Say that a list may not be right any more."""
        self._due.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Keep the lists fresh until ``stop``."""
        next_look = 0.0
        while not await until(stop, _TICK_S):
            due = self._due.is_set()
            if not due and monotonic_s() < next_look:
                continue
            self._due.clear()
            if due and await until(stop, _DEBOUNCE_S):  # several in a row make one list
                return
            await self.refresh()
            next_look = monotonic_s() + _LOOK_EVERY_S

    async def refresh(self) -> None:
        """Make and publish every list that is due; an issuer whose key is away waits."""
        for issuer in self._issuers.values():
            try:
                await self._refresh(issuer)
            except Unavailable as exc:
                log.warning("CRL put off", extra=fields(issuer=issuer.issuer_id, code=exc.code))
            except InvariantBroken as exc:
                log.error("no CRL was made", extra=fields(code=exc.code, reason=exc.reason))

    async def _refresh(self, issuer: Issuer) -> None:
        now, row, entries = await self._state(issuer.issuer_id)
        if await self._is_due(issuer.issuer_id, now, row, entries) and issuer.keystore.ready:
            await self._make(issuer)
        await self._publish(issuer.issuer_id)

    async def _state(
        self, issuer_id: str
    ) -> tuple[dt.datetime, asyncpg.Record | None, frozenset[RevokedEntry]]:
        async with self._database.connection() as connection:
            now: dt.datetime = await connection.fetchval("select date_trunc('second', now())")
            row = await connection.fetchrow("select * from crl where issuer_id = $1", issuer_id)
            # RFC 5280 section 3.3: an entry stays until it was on a list made after expiry.
            rows = await connection.fetch(
                "select serial_number, revoked_at, revocation_reason from issuance "
                "where issuer_id = $1 and revoked_at is not null and not_after > $2",
                issuer_id,
                now - self._lifetime,
            )
        found = (
            RevokedEntry(
                int.from_bytes(r["serial_number"], "big"), r["revoked_at"], r["revocation_reason"]
            )
            for r in rows
        )
        return now, row, plain_entries(found)

    async def _is_due(
        self,
        issuer_id: str,
        now: dt.datetime,
        row: asyncpg.Record | None,
        entries: frozenset[RevokedEntry],
    ) -> bool:
        if row is None or row["crl"] is None or row["next_update"] - now < self._lifetime / 2:
            return True
        known = self._known.get(issuer_id)
        if known is None or known.number != row["number"]:
            known = self._known[issuer_id] = _Known(row["number"], read_crl(row["crl"])[1])
        if entries - known.entries:
            return True
        gone = [e.serial_number.to_bytes(SERIAL_OCTETS, "big") for e in known.entries - entries]
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

    async def _make(self, issuer: Issuer) -> None:
        async with self._database.connection() as connection:
            number = await connection.fetchval(
                "insert into crl (issuer_id, last_number) values ($1, 1) "
                "on conflict (issuer_id) do update set last_number = crl.last_number + 1 "
                "returning last_number",
                issuer.issuer_id,
            )
        # Read after the number was taken: whoever has a higher one has seen at least this.
        now, _, entries = await self._state(issuer.issuer_id)
        if len(entries) > MOST:
            log.error(
                "CRL is too large for one message; revoke less or shorten lifetimes",
                extra=fields(issuer=issuer.issuer_id, entries=len(entries)),
            )
            return
        next_update = now + self._lifetime
        tbs = build_crl(
            issuer.certificate, entries, number=number, this_update=now, next_update=next_update
        )
        signature = await issuer.keystore.sign(tbs)
        issuer.check_signature(tbs, signature)
        crl = assemble(tbs, signature_algorithm(issuer.certificate.public_key), signature)
        check_crl(crl, issuer.certificate, entries, number=number, next_update=next_update)
        async with self._database.connection() as connection:
            await connection.execute(
                "update crl set number = $2, crl = $3, this_update = $4, next_update = $5, "
                "published_at = null where issuer_id = $1 and coalesce(number, 0) < $2",
                issuer.issuer_id,
                number,
                crl,
                now,
                next_update,
            )
        metrics.CRL_MADE.labels(issuer.issuer_id).inc()
        log.info(
            "CRL made",
            extra=fields(issuer=issuer.issuer_id, number=number, entries=len(entries)),
        )

    async def _publish(self, issuer_id: str) -> None:
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                "select * from crl where issuer_id = $1 and crl is not null", issuer_id
            )
        if row is None:
            return
        metrics.CRL_NEXT_UPDATE.labels(issuer_id).set(row["next_update"].timestamp())
        late = monotonic_s() - self._published_at.get(issuer_id, 0) > _PUBLISH_EVERY_S
        if row["published_at"] is not None and issuer_id in self._published_at and not late:
            return
        message = RevocationList(
            issuer_id=issuer_id,
            number=row["number"],
            this_update=row["this_update"],
            next_update=row["next_update"],
            crl=row["crl"],
        )
        topic = topics.crl_topic(issuer_id)
        await self._bus.publish_confirmed([Outgoing(topic, encode(message))])
        self._published_at[issuer_id] = monotonic_s()
        async with self._database.connection() as connection:
            await connection.execute(
                "update crl set published_at = now() where issuer_id = $1 and number = $2",
                issuer_id,
                row["number"],
            )
