"""Enrollment secrets: made here, shown once, kept as SHA-256 verifiers, published to front ends.

128 random bits need no slow hash; the verifier gives nothing away.
"""

from __future__ import annotations

import datetime as dt
import secrets
from hashlib import sha256

from estcore.clock import Clock
from estcore.errors import ConfigurationError
from estcore.messages import topics
from estcore.messages.envelope import encode
from estcore.messages.state import SECRET_SHARDS, SecretShard, SecretVerifier, secret_shard
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.database import Connection, Database

_RANDOM_BYTES = 24


class SecretStore:
    """Secrets in the ledger and their verifiers on the bus."""

    def __init__(self, database: Database, bus: Bus, clock: Clock) -> None:
        self._database = database
        self._bus = bus
        self._clock = clock

    async def create(self, secret_id: str, *, lifetime: dt.timedelta, one_time: bool) -> str:
        """Make a secret and publish its verifier; the return value is the only copy.

        Raises:
            ConfigurationError: a live secret has the id.
            Unavailable: database or bus unavailable.
        """
        secret = secrets.token_urlsafe(_RANDOM_BYTES)
        verifier, not_after = sha256(secret.encode()).digest(), self._clock.now() + lifetime

        async def work(connection: Connection) -> bool:
            done = await connection.fetchval(
                "insert into secret (secret_id, sha256, one_time, not_after) "
                "values ($1, $2, $3, $4) on conflict (secret_id) do update set "
                "sha256 = excluded.sha256, one_time = excluded.one_time, "
                "not_after = excluded.not_after, revoked_at = null "
                "where secret.revoked_at is not null or secret.not_after < now() "
                "returning true",
                secret_id,
                verifier,
                int(one_time),
                not_after,
            )
            # A new secret under an old id is not spent.
            await connection.execute(
                "delete from claim where kind = 'secret' and id = $1 and $2", secret_id, bool(done)
            )
            return bool(done)

        if not await self._database.run(work):
            raise ConfigurationError(
                f"there is a live secret {secret_id!r}; revoke it first", code="secret.exists"
            )
        await self.publish(secret_shard(secret_id))
        return secret

    async def revoke(self, secret_id: str) -> None:
        """End a secret now.

        Raises:
            ConfigurationError: there is no such live secret.
        """
        async with self._database.connection() as connection:
            done = await connection.fetchval(
                "update secret set revoked_at = now() where secret_id = $1 "
                "and revoked_at is null returning true",
                secret_id,
            )
        if not done:
            raise ConfigurationError(
                f"there is no live secret {secret_id!r}", code="secret.unknown"
            )
        await self.publish(secret_shard(secret_id))

    async def listed(self) -> list[tuple[str, dt.datetime, bool, bool]]:
        """Return (id, expiry, one-time, revoked) of every secret."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "select secret_id, not_after, one_time, revoked_at from secret order by secret_id"
            )
        return [
            (r["secret_id"], r["not_after"], bool(r["one_time"]), r["revoked_at"] is not None)
            for r in rows
        ]

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
