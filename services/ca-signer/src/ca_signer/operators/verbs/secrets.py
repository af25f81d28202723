"""Enrollment secrets by operators of the role ``secrets``: create, list, revoke.

The answer to ``secret-create`` is sealed for the key in the command, so neither the bus nor the
stored answer shows the secret.
"""

from __future__ import annotations

import datetime as dt

from pydantic import Field, JsonValue

from ca_signer.ledger import enrollment_secrets
from ca_signer.operators.verb import Caller, CommandResult, Verb, Verbs, table
from estcore.messages.state import SECRET_ID
from estcore.pki.profile import StrictModel
from estcore.pki.sealed_text import MAX_RECIPIENT, seal
from estcore.policy.operators import Role
from estcore.runtime.database import Connection

_CHANGING: frozenset[Role] = frozenset({"secrets"})
_LOOKING: frozenset[Role] = frozenset({"secrets", "auditor"})
MAX_LIFETIME_S = 10 * 366 * 86_400


class New(StrictModel):
    """A secret to make; ``recipient`` is the key that its answer is sealed for."""

    id: str = Field(pattern=SECRET_ID)
    recipient: str = Field(max_length=MAX_RECIPIENT)
    lifetime_s: int = Field(default=30 * 86_400, ge=1, le=MAX_LIFETIME_S)
    one_time: bool = False


class One(StrictModel):
    """Which secret."""

    id: str = Field(pattern=SECRET_ID)


class Listing(StrictModel):
    """Secrets by id, page by page."""

    after: str | None = Field(default=None, pattern=SECRET_ID)
    limit: int = Field(default=50, ge=1, le=500)


def verbs() -> Verbs:
    """Return the verbs about enrollment secrets."""
    return table(
        Verb("secret-create", _CHANGING, New, _create),
        Verb("secret-revoke", _CHANGING, One, _revoke),
        Verb("secret-list", _LOOKING, Listing, _list, reads=True),
    )


async def _create(connection: Connection, new: New, _: Caller) -> CommandResult:
    lifetime = dt.timedelta(seconds=new.lifetime_s)
    created = await enrollment_secrets.create(
        connection, new.id, lifetime=lifetime, one_time=new.one_time
    )
    return CommandResult(
        {
            "id": new.id,
            "not_after": created.not_after.isoformat(),
            "one_time": new.one_time,
            "sealed": seal(created.secret, new.recipient),
        },
        details={"not_after": created.not_after.isoformat()},
    )


async def _revoke(connection: Connection, one: One, _: Caller) -> CommandResult:
    await enrollment_secrets.revoke(connection, one.id)
    return CommandResult({"id": one.id, "state": "revoked"})


async def _list(connection: Connection, listing: Listing, _: Caller) -> CommandResult:
    found = await enrollment_secrets.listed(connection, after=listing.after, limit=listing.limit)
    rows: list[JsonValue] = [
        {
            "id": one.secret_id,
            "state": one.state,
            "one_time": one.one_time,
            "created_at": one.created_at.isoformat(),
            "not_after": one.not_after.isoformat(),
        }
        for one in found
    ]
    full = len(found) == listing.limit
    return CommandResult({"secrets": rows, "next": found[-1].secret_id if full else None})
