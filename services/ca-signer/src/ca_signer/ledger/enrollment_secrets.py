"""Enrollment secrets: made here, given out once, kept as SHA-256 verifiers.

192 random bits need no slow hash; the verifier gives nothing away.
"""

from __future__ import annotations

import datetime as dt
import re
import secrets
from dataclasses import dataclass
from hashlib import sha256

from estcore.errors import Conflict, MalformedRequest
from estcore.messages.state import SECRET_ID
from estcore.runtime.database import Connection

_RANDOM_BYTES = 24
_INSERT = """
insert into secret (secret_id, sha256, one_time, not_after)
values ($1, $2, $3, now() + $4) on conflict (secret_id) do update set
  sha256 = excluded.sha256, one_time = excluded.one_time, not_after = excluded.not_after,
  revoked_at = null, created_at = now(), changed_at = clock_timestamp(), announced_at = null
where secret.revoked_at is not null or secret.not_after < now()
returning not_after"""
_REVOKE = """
update secret set revoked_at = now(), changed_at = clock_timestamp(), announced_at = null
where secret_id = $1 and revoked_at is null returning true"""
_LIST = """
select secret_id, not_after, one_time, revoked_at, created_at, not_after < now() as expired,
  exists (select from claim where kind = 'secret' and id = secret_id) as used
from secret where $1::text is null or secret_id > $1 order by secret_id limit $2"""


@dataclass(frozen=True)
class Created:
    """A new secret; ``secret`` is its only copy."""

    secret: str
    not_after: dt.datetime


@dataclass(frozen=True)
class Listed:
    """What the ledger knows of a secret. ``used``: a request of a one-time secret holds it."""

    secret_id: str
    created_at: dt.datetime
    not_after: dt.datetime
    one_time: bool
    state: str


async def create(
    connection: Connection, secret_id: str, *, lifetime: dt.timedelta, one_time: bool
) -> Created:
    """Make a secret; front ends get its verifier after the commit (``SecretPublisher``).

    Raises:
        MalformedRequest: not an id.
        Conflict: a live secret has the id.
    """
    if not re.fullmatch(SECRET_ID, secret_id):
        raise MalformedRequest(
            "an id has 1 to 128 letters, digits and . _ @ -, a letter or digit first",
            code="secret.id",
        )
    secret = secrets.token_urlsafe(_RANDOM_BYTES)
    verifier = sha256(secret.encode()).digest()
    end = await connection.fetchval(_INSERT, secret_id, verifier, int(one_time), lifetime)
    if end is None:
        raise Conflict(
            f"there is a live secret {secret_id!r}; revoke it first", code="secret.exists"
        )
    # A new secret under an old id is not spent.
    await connection.execute("delete from claim where kind = 'secret' and id = $1", secret_id)
    return Created(secret, end)


async def revoke(connection: Connection, secret_id: str) -> None:
    """End a secret now.

    Raises:
        Conflict: there is no such live secret.
    """
    if not await connection.fetchval(_REVOKE, secret_id):
        raise Conflict(f"there is no live secret {secret_id!r}", code="secret.unknown")


async def listed(connection: Connection, *, after: str | None, limit: int) -> list[Listed]:
    """Return secrets in the order of their ids, after one."""
    rows = await connection.fetch(_LIST, after, limit)
    return [
        Listed(
            row["secret_id"],
            row["created_at"],
            row["not_after"],
            bool(row["one_time"]),
            _state(
                revoked=row["revoked_at"] is not None,
                expired=row["expired"],
                spent=bool(row["one_time"]) and row["used"],
            ),
        )
        for row in rows
    ]


def _state(*, revoked: bool, expired: bool, spent: bool) -> str:
    if revoked:
        return "revoked"
    if expired:
        return "expired"
    return "spent" if spent else "live"
