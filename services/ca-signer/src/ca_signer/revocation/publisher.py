"""Revoking certificates: the committed row first, then everything that follows from it.

Nothing here waits for audit or bus. The outbox publishes the event, and the serial numbers that
front ends refuse early, from the rows; ``revocation_seq`` counts the changes of one certificate,
so that a change during an announcement is announced as well.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence

import asyncpg

from ca_signer.ledger.revocations import RELEASED
from ca_signer.publishing.outbox import OutboxSource
from estcore import ids
from estcore.messages import topics
from estcore.messages.envelope import encode
from estcore.messages.events import CertificateRevoked
from estcore.messages.state import REVOKED_SHARDS, RevokedShard, revoked_shard
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.database import Database

_ISSUER_LIMIT = 400_000


class RevocationPublisher:
    """Publishes revocation events and the shards of revoked serial numbers."""

    def __init__(
        self,
        database: Database,
        bus: Bus,
        source: str,
        *,
        changed: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``changed`` is called with the id of an issuer whose CRL is not right any more."""
        self._database = database
        self._bus = bus
        self._source = source
        self._changed = changed

    def source(self) -> OutboxSource:
        """Return the source of events and shards of changed revocations."""
        return OutboxSource(
            select="select issuance_id, issuer_id, serial_number, certificate_sha256, tenant, "
            "service, context::json->>'correlation_id' as correlation_id, revoked_at, "
            "revocation_reason, revocation_seq, revocation_changed_at from issuance "
            "where revocation_changed_at is not null and revocation_announced_at is null "
            "order by revocation_changed_at limit $1",
            # A change during the publication is published as well.
            mark="update issuance s set revocation_announced_at = now() "
            "from unnest($1::uuid[], $2::int[]) as i(id, seq) "
            "where s.issuance_id = i.id and s.revocation_seq = i.seq",
            keys=("issuance_id", "revocation_seq"),
            publish=self._publish_changes,
        )

    async def _publish_changes(self, rows: Sequence[asyncpg.Record]) -> None:
        issuers = {row["issuer_id"] for row in rows}
        for issuer_id in issuers:
            self._changed(issuer_id)
        await self._bus.publish_confirmed([self._event(row) for row in rows])
        for issuer_id in issuers:
            own = {_shard(row) for row in rows if row["issuer_id"] == issuer_id}
            await self.publish(issuer_id, sorted(own))

    async def publish(self, issuer_id: str, shards: Sequence[str] = ()) -> None:
        """Publish the serial numbers of an issuer's revoked certificates; all shards by default.

        Raises:
            Unavailable: database or bus unavailable.
        """
        async with self._database.connection() as connection:
            # Before the rows are read: what is revoked meanwhile makes a newer message.
            now: dt.datetime = await connection.fetchval("select now()")
            rows = await connection.fetch(
                "select serial_number from issuance where issuer_id = $1 "
                "and revoked_at is not null and not_after > now() limit $2",
                issuer_id,
                _ISSUER_LIMIT,
            )
        by_shard: dict[str, list[str]] = {shard: [] for shard in shards or REVOKED_SHARDS}
        for row in rows:
            serials = by_shard.get(_shard(row))
            if serials is not None:
                serials.append(ids.serial_hex(int.from_bytes(row["serial_number"], "big")))
        await self._bus.publish_confirmed(
            [
                Outgoing(
                    topics.revoked_topic(issuer_id, shard),
                    encode(
                        RevokedShard(
                            issuer_id=issuer_id,
                            shard=shard,
                            updated_at=now,
                            serials=tuple(sorted(serials)),
                        )
                    ),
                )
                for shard, serials in by_shard.items()
            ]
        )

    def _event(self, row: asyncpg.Record) -> Outgoing:
        name = f"revoked-{row['issuance_id']}-{row['revocation_seq']}"
        event = CertificateRevoked(
            id=name,
            source=self._source,
            time=row["revocation_changed_at"],
            correlation_id=row["correlation_id"],
            tenant=row["tenant"],
            service=row["service"],
            issuer_id=row["issuer_id"],
            serial=ids.serial_hex(int.from_bytes(row["serial_number"], "big")),
            fingerprint_sha256=row["certificate_sha256"].hex(),
            reason=row["revocation_reason"] or RELEASED,
            revoked_at=row["revoked_at"] or row["revocation_changed_at"],
        )
        topic = topics.certificate_topic("revoked", row["tenant"], row["service"])
        return Outgoing(topic, encode(event), name)


def _shard(row: asyncpg.Record) -> str:
    return revoked_shard(int.from_bytes(row["serial_number"], "big"))
