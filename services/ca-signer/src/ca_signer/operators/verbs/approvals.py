"""Requests that wait for an operator: list, approve, reject."""

from __future__ import annotations

import datetime as dt
from uuid import UUID

import asyncpg
from pydantic import Field, JsonValue

from ca_signer.model import RequestFacts
from ca_signer.operators.verb import Caller, CommandResult, Verb, Verbs, table
from ca_signer.publishing.audit_records import request_target
from estcore.errors import Conflict
from estcore.messages.envelope import decode
from estcore.pki.profile import StrictModel, Token
from estcore.policy.operators import Role
from estcore.runtime.database import Connection

_DECIDING: frozenset[Role] = frozenset({"approver"})
_LOOKING: frozenset[Role] = frozenset({"approver", "auditor"})


class Listing(StrictModel):
    """Which requests to list, oldest first."""

    tenant: Token | None = None
    service: Token | None = None
    all: bool = False
    limit: int = Field(default=50, ge=1, le=500)


class Decision(StrictModel):
    """Which request, and why."""

    id: UUID
    reason: str | None = Field(default=None, min_length=1, max_length=200, pattern=r"^[ -~]*$")


async def _list(connection: Connection, listing: Listing, _: Caller) -> CommandResult:
    from ca_signer.ledger import operator_reads  # SQLAlchemy, at the first command

    rows = await operator_reads.approvals(
        connection,
        tenant=listing.tenant,
        service=listing.service,
        ended=listing.all,
        limit=listing.limit,
    )
    return CommandResult({"requests": [_facts(row) for row in rows]})


def _facts(row: asyncpg.Record) -> dict[str, JsonValue]:
    context = decode(RequestFacts, row["context"].encode())
    spki = row["spki_sha256"]
    over = row["expires_at"] <= row["now"] and row["state"] != "used"
    return {
        "id": str(row["approval_id"]),
        "state": "over" if over else row["state"],
        "age_s": int((row["now"] - row["requested_at"]).total_seconds()),
        "subject": row["subject"],
        "san": list(filter(None, row["san"].split("\n"))),
        "key": context.key_algorithm,
        "key_sha256": spki.hex() if spki else None,
        "principal": context.principal,
        "profile": row["profile"],
        "label": context.label,
        "operation": context.operation,
        "tenant": row["tenant"],
        "service": row["service"],
        "peer": context.origin.peer,
        "correlation_id": context.correlation_id,
        "expires_at": row["expires_at"].isoformat(),
        "decided_by": row["decided_by"],
        "reason": row["reason"],
    }


async def _approve(connection: Connection, decision: Decision, caller: Caller) -> CommandResult:
    return await _decide(connection, decision, caller, "approved")


async def _reject(connection: Connection, decision: Decision, caller: Caller) -> CommandResult:
    return await _decide(connection, decision, caller, "rejected")


async def _decide(
    connection: Connection, decision: Decision, caller: Caller, state: str
) -> CommandResult:
    row = await connection.fetchrow(
        "select *, expires_at <= now() as over, now() as now from approval "
        "where approval_id = $1 for update",
        decision.id,
    )
    if row is None:
        raise Conflict("no request has this id", code="command.unknown")
    if row["over"]:
        raise Conflict("the request is over; its client must ask again", code="approval.expired")
    if row["state"] != "waiting":
        by = f" by {row['decided_by']}" if row["decided_by"] else ""
        raise Conflict(f"the request was {row['state']}{by} before", code="approval.decided")
    # What was decided is kept as long again as a request may wait, for the client to come back.
    until: dt.datetime = row["now"] + (row["expires_at"] - row["requested_at"])
    await connection.execute(
        "update approval set state = $2, decided_at = now(), decided_by = $3, reason = $4, "
        "expires_at = $5 where approval_id = $1",
        decision.id,
        state,
        caller.name,
        decision.reason,
        until,
    )
    context = decode(RequestFacts, row["context"].encode())
    facts: dict[str, JsonValue] = {"id": str(decision.id), "state": state}
    details = {"request_correlation_id": context.correlation_id}
    return CommandResult(
        {**facts, "subject": row["subject"]}, request_target(row, context), details
    )


def verbs() -> Verbs:
    """Return the verbs about requests that wait."""
    return table(
        Verb("request-list", _LOOKING, Listing, _list, reads=True),
        Verb("request-approve", _DECIDING, Decision, _approve),
        Verb("request-reject", _DECIDING, Decision, _reject),
    )
