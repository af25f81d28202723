"""Bulk revocations by operators of the role ``revoker``: propose, look, confirm, stop.

The proposer cannot confirm: every bulk revocation needs two different registered operators.
"""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import asyncpg
from pydantic import Field, JsonValue

from ca_signer.ledger.selector import Selector
from ca_signer.operators.verb import Caller, CommandResult, Verb, Verbs, table
from ca_signer.revocation.bulk import LIFETIME
from estcore import ids
from estcore.errors import Conflict, NotAuthorized
from estcore.pki.crl import RevocationReason
from estcore.pki.profile import StrictModel
from estcore.policy.operators import Role
from estcore.runtime.database import Connection

_REVOKING: frozenset[Role] = frozenset({"revoker"})
_LOOKING: frozenset[Role] = frozenset({"revoker", "auditor"})
_SHOWN = 20


class Proposal(Selector):
    """Which certificates, why, and how many a minute."""

    reason: RevocationReason
    per_minute: int = Field(default=600, ge=1, le=12_000)


class One(StrictModel):
    """Names a bulk revocation."""

    id: UUID


class Confirmation(One):
    """Confirms a bulk revocation of exactly so many certificates."""

    count: int = Field(ge=1)


class Listing(StrictModel):
    """How many bulk revocations to list, newest first."""

    limit: int = Field(default=20, ge=1, le=200)


async def _propose(connection: Connection, proposal: Proposal, caller: Caller) -> CommandResult:
    bulk_revocation_id = ids.uuid7()
    selector = proposal.model_dump(mode="json", exclude={"reason", "per_minute"}, exclude_none=True)
    await connection.execute(
        "insert into bulk_revocation (bulk_revocation_id, state, selector, "
        "reason, per_minute, proposed_by) "
        "values ($1, 'selecting', $2, $3, $4, $5)",
        bulk_revocation_id,
        json.dumps(selector),
        proposal.reason,
        proposal.per_minute,
        caller.name,
    )
    return _result(await _find(connection, UUID(bulk_revocation_id)))


async def _confirm(
    connection: Connection, confirmation: Confirmation, caller: Caller
) -> CommandResult:
    row = await _find(connection, confirmation.id)
    if row["proposed_by"] == caller.name:
        raise NotAuthorized(
            "another operator than the proposer confirms", code="bulk_revocation.dual"
        )
    if row["state"] == "running" and row["confirmed_by"] == caller.name:
        return _result(row)
    if row["state"] != "proposed":
        raise Conflict(
            f"the bulk revocation is {row['state']}, not proposed", code="bulk_revocation.state"
        )
    if row["now"] - row["proposed_at"] > LIFETIME:
        raise Conflict(
            "the proposal is older than a day; propose again", code="bulk_revocation.state"
        )
    if row["members"] != confirmation.count:
        raise Conflict(
            f"the bulk revocation has {row['members']} certificates, not {confirmation.count}",
            code="bulk_revocation.count",
        )
    await connection.execute(
        "update bulk_revocation set state = 'running', confirmed_by = $2, paced_at = now() "
        "where bulk_revocation_id = $1",
        confirmation.id,
        caller.name,
    )
    return _result(await _find(connection, confirmation.id))


async def _stop(connection: Connection, reference: One, caller: Caller) -> CommandResult:
    row = await _find(connection, reference.id)
    if row["state"] in {"selecting", "proposed", "running"}:
        await connection.execute(
            "update bulk_revocation set state = 'stopped', stopped_by = $2, ended_at = now() "
            "where bulk_revocation_id = $1",
            reference.id,
            caller.name,
        )
    elif row["state"] != "stopped":
        raise Conflict(f"the bulk revocation is {row['state']}", code="bulk_revocation.state")
    return _result(await _find(connection, reference.id))


async def _show(connection: Connection, reference: One, _: Caller) -> CommandResult:
    row = await _find(connection, reference.id)
    from ca_signer.ledger import operator_reads  # SQLAlchemy, at the first command

    owners = await operator_reads.bulk_revocation_owners(connection, reference.id, limit=_SHOWN)
    some = await operator_reads.bulk_revocation_members(connection, reference.id, limit=_SHOWN)
    summary = _result(row)
    members: list[JsonValue] = [
        {
            "issuer": r["issuer_id"],
            "serial": ids.serial_hex(int.from_bytes(r["serial_number"], "big")),
            "subject": r["subject"],
            "not_after": r["not_after"].isoformat(),
        }
        for r in some
    ]
    return CommandResult({**summary.result, "owners": [dict(r) for r in owners], "some": members})


async def _list(connection: Connection, listing: Listing, _: Caller) -> CommandResult:
    from ca_signer.ledger import operator_reads  # SQLAlchemy, at the first command

    rows = await operator_reads.bulk_revocations(connection, limit=listing.limit)
    return CommandResult({"bulk_revocations": [_result(row).result for row in rows]})


async def _find(connection: Connection, bulk_revocation_id: UUID) -> asyncpg.Record:
    row = await connection.fetchrow(
        "select *, now() as now from bulk_revocation where bulk_revocation_id = $1 for update",
        bulk_revocation_id,
    )
    if row is None:
        raise Conflict("there is no such bulk revocation", code="command.unknown")
    return row


def _result(row: asyncpg.Record) -> CommandResult:
    facts: dict[str, Any] = {
        "id": str(row["bulk_revocation_id"]),
        "state": row["state"],
        "selector": ",".join(f"{k}={v}" for k, v in json.loads(row["selector"]).items()),
        "reason": row["reason"],
        "per_minute": row["per_minute"],
        "count": row["members"],
        "revoked": row["revoked"],
        "skipped": row["skipped"],
        "proposed_by": row["proposed_by"],
        "proposed_at": row["proposed_at"].isoformat(),
        "confirmed_by": row["confirmed_by"],
        "stopped_by": row["stopped_by"],
        "ended_at": row["ended_at"].isoformat() if row["ended_at"] else None,
    }
    return CommandResult(
        facts, details={"bulk_revocation": str(row["bulk_revocation_id"]), "state": row["state"]}
    )


def verbs() -> Verbs:
    """Return the verbs about bulk revocations."""
    return table(
        Verb("bulk-revocation-propose", _REVOKING, Proposal, _propose),
        Verb("bulk-revocation-confirm", _REVOKING, Confirmation, _confirm),
        Verb("bulk-revocation-stop", _REVOKING, One, _stop),
        Verb("bulk-revocation-show", _LOOKING, One, _show, reads=True),
        Verb("bulk-revocation-list", _LOOKING, Listing, _list, reads=True),
    )
