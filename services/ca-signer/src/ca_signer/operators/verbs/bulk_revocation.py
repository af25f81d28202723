"""Incidents by operators of the role ``revoker``: propose, look, confirm, stop.

Who proposes does not confirm: two different registered operators stand behind every incident.
"""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import asyncpg
from pydantic import Field, JsonValue

from ca_signer.operators.verb import Caller, CommandResult, Verb, Verbs, table
from ca_signer.revocation.bulk import LIFETIME, Selector
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
    """Names an incident."""

    id: UUID


class Confirmation(One):
    """Confirms an incident of exactly so many certificates."""

    count: int = Field(ge=1)


class Listing(StrictModel):
    """How many incidents to list, newest first."""

    limit: int = Field(default=20, ge=1, le=200)


async def _propose(connection: Connection, wanted: Proposal, caller: Caller) -> CommandResult:
    incident_id = ids.uuid7()
    selector = wanted.model_dump(mode="json", exclude={"reason", "per_minute"}, exclude_none=True)
    await connection.execute(
        "insert into incident (incident_id, state, selector, reason, per_minute, proposed_by) "
        "values ($1, 'selecting', $2, $3, $4, $5)",
        incident_id,
        json.dumps(selector),
        wanted.reason,
        wanted.per_minute,
        caller.name,
    )
    return _result(await _find(connection, UUID(incident_id)))


async def _confirm(connection: Connection, wanted: Confirmation, caller: Caller) -> CommandResult:
    row = await _find(connection, wanted.id)
    if row["proposed_by"] == caller.name:
        raise NotAuthorized("another operator than the proposer confirms", code="incident.dual")
    if row["state"] == "running" and row["confirmed_by"] == caller.name:
        return _result(row)
    if row["state"] != "proposed":
        raise Conflict(f"the incident is {row['state']}, not proposed", code="incident.state")
    if row["now"] - row["proposed_at"] > LIFETIME:
        raise Conflict("the proposal is older than a day; propose again", code="incident.state")
    if row["members"] != wanted.count:
        raise Conflict(
            f"the incident has {row['members']} certificates, not {wanted.count}",
            code="incident.count",
        )
    await connection.execute(
        "update incident set state = 'running', confirmed_by = $2, paced_at = now() "
        "where incident_id = $1",
        wanted.id,
        caller.name,
    )
    return _result(await _find(connection, wanted.id))


async def _stop(connection: Connection, wanted: One, caller: Caller) -> CommandResult:
    row = await _find(connection, wanted.id)
    if row["state"] in {"selecting", "proposed", "running"}:
        await connection.execute(
            "update incident set state = 'stopped', stopped_by = $2, ended_at = now() "
            "where incident_id = $1",
            wanted.id,
            caller.name,
        )
    elif row["state"] != "stopped":
        raise Conflict(f"the incident is {row['state']}", code="incident.state")
    return _result(await _find(connection, wanted.id))


async def _show(connection: Connection, wanted: One, _: Caller) -> CommandResult:
    row = await _find(connection, wanted.id)
    from ca_signer.ledger import operator_reads  # SQLAlchemy, at the first command

    owners = await operator_reads.bulk_revocation_owners(connection, wanted.id, limit=_SHOWN)
    some = await operator_reads.bulk_revocation_members(connection, wanted.id, limit=_SHOWN)
    shown = _result(row)
    members: list[JsonValue] = [
        {
            "issuer": r["issuer_id"],
            "serial": ids.serial_hex(int.from_bytes(r["serial_number"], "big")),
            "subject": r["subject"],
            "not_after": r["not_after"].isoformat(),
        }
        for r in some
    ]
    return CommandResult({**shown.result, "owners": [dict(r) for r in owners], "some": members})


async def _list(connection: Connection, wanted: Listing, _: Caller) -> CommandResult:
    from ca_signer.ledger import operator_reads  # SQLAlchemy, at the first command

    rows = await operator_reads.bulk_revocations(connection, limit=wanted.limit)
    return CommandResult({"incidents": [_result(row).result for row in rows]})


async def _find(connection: Connection, incident_id: UUID) -> asyncpg.Record:
    row = await connection.fetchrow(
        "select *, now() as now from incident where incident_id = $1 for update", incident_id
    )
    if row is None:
        raise Conflict("there is no such incident", code="command.unknown")
    return row


def _result(row: asyncpg.Record) -> CommandResult:
    facts: dict[str, Any] = {
        "id": str(row["incident_id"]),
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
        facts, details={"incident": str(row["incident_id"]), "state": row["state"]}
    )


def verbs() -> Verbs:
    """Return the verbs about incidents."""
    return table(
        Verb("incident-propose", _REVOKING, Proposal, _propose),
        Verb("incident-confirm", _REVOKING, Confirmation, _confirm),
        Verb("incident-stop", _REVOKING, One, _stop),
        Verb("incident-show", _LOOKING, One, _show, reads=True),
        Verb("incident-list", _LOOKING, Listing, _list, reads=True),
    )
