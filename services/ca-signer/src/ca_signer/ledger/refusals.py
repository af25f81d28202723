"""Refused requests in the ledger: recorded once, published until confirmed; and what expires."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from uuid import UUID

from ca_signer.model import Refusal
from estcore.errors import RequestRejected
from estcore.messages.enrollment import Claim
from estcore.messages.envelope import decode, encode
from estcore.runtime.database import Database

_PROOFS = ("dpop", "digest")
"""Not one-time secrets: a refused request leaves them good."""

_RECORD = """
with spent as (
  insert into claim (kind, id, enrollment_id, state)
  select kind, id, $8, 'consumed' from unnest($6::text[], $7::text[]) as used (kind, id)
  on conflict do nothing)
insert into request (request_id, outcome, kind, code, reason, announcement)
values ($1, 'rejected', $2, $3, $4, $5) on conflict do nothing returning true
"""


class RefusalStore:
    """Statements on one database, each a transaction of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(
        self, refusal: Refusal, error: RequestRejected, claims: Sequence[Claim] = ()
    ) -> bool:
        """Record that a request was refused; False when it was recorded before.

        Its proofs that are good once (DPoP, Digest) are spent with it: the transaction that
        refused it was rolled back, and what it had consumed with it.
        """
        spent = [claim for claim in claims if claim.kind in _PROOFS]
        async with self._database.connection() as connection:
            done = await connection.fetchval(
                _RECORD,
                refusal.event.id,
                type(error).__name__,
                error.code,
                error.reason,
                encode(refusal).decode(),
                [claim.kind for claim in spent],
                [claim.id for claim in spent],
                UUID(refusal.event.id).bytes,
            )
        return bool(done)

    async def mark_published(self, request_ids: list[str]) -> None:
        """Record that refusals were published."""
        async with self._database.connection() as connection:
            await connection.execute(
                "update request set announced_at = now() where request_id = any($1::uuid[])",
                request_ids,
            )

    async def unpublished(self, *, older_than_s: float, limit: int) -> list[Refusal]:
        """Return refusals whose publication was not confirmed, oldest first."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "select announcement from request where announced_at is null "
                "and created_at < now() - $1::interval order by created_at limit $2",
                dt.timedelta(seconds=older_than_s),
                limit,
            )
        return [decode(Refusal, row["announcement"].encode()) for row in rows]

    async def delete_expired(self) -> None:
        """Delete what is over.

        Single-use proofs, which live minutes, and counts of deliveries after a day; approvals
        after 90 days.
        """
        async with self._database.connection() as connection:
            await connection.execute(
                "delete from approval where expires_at < now() - interval '90 days' "
                "and announced_at is not null"
            )
            await connection.execute(
                "delete from claim where kind in ('dpop', 'digest') "
                "and created_at < now() - interval '1 day'"
            )
            await connection.execute(
                "delete from attempt where created_at < now() - interval '1 day'"
            )
