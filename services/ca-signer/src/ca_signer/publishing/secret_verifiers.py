"""Verifiers of enrollment secrets for front ends: the shards of live ones in ``PKI_STATE``."""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from ca_signer.publishing.outbox import OutboxSource
from estcore.clock import Clock
from estcore.messages import topics
from estcore.messages.envelope import encode
from estcore.messages.state import SECRET_SHARDS, SecretShard, SecretVerifier, secret_shard
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.database import Database


class SecretPublisher:
    """Publishes the verifiers of live secrets, a shard a message."""

    def __init__(self, database: Database, bus: Bus, clock: Clock) -> None:
        self._database = database
        self._bus = bus
        self._clock = clock

    def source(self) -> OutboxSource:
        """Return the source of secrets that were created or revoked."""
        return OutboxSource(
            select="select secret_id, changed_at from secret where announced_at is null "
            "order by changed_at limit $1",
            # A change during the publication is published as well.
            mark="update secret s set announced_at = now() "
            "from unnest($1::text[], $2::timestamptz[]) as i(id, at) "
            "where s.secret_id = i.id and s.changed_at = i.at",
            keys=("secret_id", "changed_at"),
            publish=self._publish_changes,
        )

    async def _publish_changes(self, rows: Sequence[asyncpg.Record]) -> None:
        await self.publish(*sorted({secret_shard(row["secret_id"]) for row in rows}))

    async def publish(self, *shards: str) -> None:
        """Publish the live verifiers of the shards; all shards if none is named.

        Raises:
            Unavailable: database or bus unavailable.
        """
        # Before the rows are read: rows read later go out with a later time, so that a revocation
        # in between is not undone by the older rows.
        now = self._clock.now()
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "select secret_id, sha256, not_after, one_time from secret "
                "where revoked_at is null and not_after > now()"
            )
        by_shard: dict[str, list[SecretVerifier]] = {shard: [] for shard in shards or SECRET_SHARDS}
        for row in rows:
            verifiers = by_shard.get(secret_shard(row["secret_id"]))
            if verifiers is not None:
                verifiers.append(
                    SecretVerifier(
                        secret_id=row["secret_id"],
                        sha256=row["sha256"].hex(),
                        not_after=row["not_after"],
                        one_time=bool(row["one_time"]),
                    )
                )
        await self._bus.publish_confirmed(
            [
                Outgoing(
                    topics.secrets_topic(shard),
                    encode(SecretShard(shard=shard, updated_at=now, secrets=tuple(verifiers))),
                )
                for shard, verifiers in by_shard.items()
            ]
        )
