"""Operator commands for submissions with an unknown outcome.

The operator finds out at the upstream CA. ``retry`` sends it again where nothing was issued,
``adopt`` stores the certificate that was issued after the usual checks, ``abandon`` ends it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Annotated
from uuid import UUID

import asyncpg
from cryptography import x509
from pydantic import Field, JsonValue

from ca_signer.model import RequestFacts
from ca_signer.operators.verb import Caller, CommandResult, Verb, Verbs, table
from ca_signer.upstream import submissions
from ca_signer.upstream.audit_records import submission_target
from ca_signer.upstream.response_lint import UnexpectedCertificate
from ca_signer.upstream.submissions import COLUMNS, Submission, let_go, submission_of
from estcore import ids
from estcore.errors import Conflict, ProfileViolation, SerialNumberReused
from estcore.messages.envelope import decode
from estcore.pki.profile import StrictModel, Token
from estcore.policy.operators import Role
from estcore.runtime.database import Connection

_DECIDING: frozenset[Role] = frozenset({"approver"})
_LOOKING: frozenset[Role] = frozenset({"approver", "auditor"})
ResponseCheck = Callable[[Submission, bytes], x509.Certificate]
"""Step 8 for the submission's issuer; raises Conflict where another process serves it."""


class Listing(StrictModel):
    """Which submissions to list, oldest first; by default those with an unknown outcome."""

    issuer: Token | None = None
    state: Annotated[str, Field(pattern=r"^[a-z]{1,20}$")] | None = None
    limit: int = Field(default=50, ge=1, le=500)


class One(StrictModel):
    """Which submission, and why."""

    id: UUID
    reason: str | None = Field(default=None, min_length=1, max_length=200, pattern=r"^[ -~]*$")


class Adoption(One):
    """Which submission, and the certificate that was issued for it (DER, hexadecimal)."""

    certificate: str = Field(pattern=r"^([0-9a-f]{2}){100,8000}$")


async def _list(connection: Connection, listing: Listing, _: Caller) -> CommandResult:
    from ca_signer.ledger import operator_reads  # SQLAlchemy, at the first command

    rows = await operator_reads.submissions(
        connection,
        state=listing.state or "unknown",
        issuer_id=listing.issuer,
        limit=listing.limit,
    )
    return CommandResult({"submissions": [_facts(row) for row in rows]})


def _facts(row: asyncpg.Record) -> dict[str, JsonValue]:
    context = decode(RequestFacts, row["context"].encode())
    sent = row["submitted_at"]
    return {
        "id": str(row["issuance_id"]),
        "issuer": row["issuer_id"],
        "state": row["state"],
        "age_s": int((row["now"] - row["created_at"]).total_seconds()),
        "sent_at": sent.isoformat() if sent else None,
        "sendings": row["sendings"],
        "code": row["code"],
        "reason": row["reason"],
        "subject": row["subject"],
        "san": list(filter(None, row["san"].split("\n"))),
        "csr_sha256": row["csr_sha256"].hex(),
        "key_sha256": row["spki_sha256"].hex(),
        "tenant": row["tenant"],
        "service": row["service"],
        "profile": row["profile"],
        "correlation_id": context.correlation_id,
        "decided_by": row["decided_by"],
    }


async def _unknown(connection: Connection, reference: One) -> asyncpg.Record:
    row = await connection.fetchrow(
        f"select {COLUMNS}, csr_sha256 from submission "  # noqa: S608 - our constants
        "where issuance_id = $1 for update",
        reference.id,
    )
    if row is None:
        raise Conflict("no submission has this id", code="command.unknown")
    if row["state"] != "unknown":
        raise Conflict(f"the submission is {row['state']}", code="submission.resolved")
    return row


def verbs(check_response: ResponseCheck, *, retry_within: dt.timedelta) -> Verbs:
    """Return the verbs; ``retry_within`` is how long a client may take to come back."""

    async def retry(connection: Connection, reference: One, caller: Caller) -> CommandResult:
        row = await _unknown(connection, reference)
        await connection.execute(
            "update submission set state = 'recorded', fence = fence + 1, lease_until = now(), "
            "sign_before = now() + $2::interval, submitted_at = null, decided_by = $3, "
            "reason = $4, changed_at = now() where issuance_id = $1",
            reference.id,
            retry_within,
            caller.name,
            reference.reason,
        )
        return _result(row, "recorded")

    async def adopt(connection: Connection, adoption: Adoption, caller: Caller) -> CommandResult:
        row = await _unknown(connection, adoption)
        mine = submission_of(row)
        der = bytes.fromhex(adoption.certificate)
        try:
            certificate = check_response(mine, der)
            issued = await submissions.store(
                connection, mine, certificate, der, answered=False, by=caller.name
            )
        except UnexpectedCertificate as exc:
            raise ProfileViolation(f"{exc.check}: {exc.reason}", code=exc.code) from exc
        except SerialNumberReused as exc:
            raise Conflict(exc.reason, code="submission.serial_reused") from exc
        assert issued is not None  # noqa: S101 - the row is locked and unknown
        effect = _result(row, "issued")
        serial = ids.serial_hex(certificate.serial_number)
        return CommandResult({**effect.result, "serial": serial}, effect.target, {"serial": serial})

    async def abandon(connection: Connection, reference: One, caller: Caller) -> CommandResult:
        row = await _unknown(connection, reference)
        await connection.execute(
            "update submission set state = 'abandoned', fence = fence + 1, decided_by = $2, "
            "reason = $3, changed_at = now(), announced_at = now() where issuance_id = $1",
            reference.id,
            caller.name,
            reference.reason,
        )
        await let_go(connection, submission_of(row))
        return _result(row, "abandoned")

    return table(
        Verb("submission-list", _LOOKING, Listing, _list, reads=True),
        Verb("submission-retry", _DECIDING, One, retry),
        Verb("submission-adopt", _DECIDING, Adoption, adopt),
        Verb("submission-abandon", _DECIDING, One, abandon),
    )


def _result(row: asyncpg.Record, state: str) -> CommandResult:
    facts: dict[str, JsonValue] = {"id": str(row["issuance_id"]), "state": state}
    context = decode(RequestFacts, row["context"].encode())
    details = {"request_correlation_id": context.correlation_id}
    return CommandResult({**facts, "subject": row["subject"]}, submission_target(row), details)
