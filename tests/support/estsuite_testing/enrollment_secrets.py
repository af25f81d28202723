"""Enrollment secrets of a signer under test, created and revoked as its commands do it."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from ca_signer.ledger import enrollment_secrets
from ca_signer.publishing.secret_verifiers import SecretPublisher
from estcore.messages.state import secret_shard
from estcore.runtime.database import Database


@dataclass(frozen=True)
class EnrollmentSecrets:
    """Changes are published before a method returns."""

    database: Database
    publisher: SecretPublisher

    async def create(self, secret_id: str, *, lifetime: dt.timedelta, one_time: bool) -> str:
        created = await self.database.run(
            lambda connection: enrollment_secrets.create(
                connection, secret_id, lifetime=lifetime, one_time=one_time
            )
        )
        await self.publisher.publish(secret_shard(secret_id))
        return created.secret

    async def revoke(self, secret_id: str) -> None:
        await self.database.run(lambda c: enrollment_secrets.revoke(c, secret_id))
        await self.publisher.publish(secret_shard(secret_id))
