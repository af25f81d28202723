"""Revoke for good, hold, release: what operators do to certificates."""

from __future__ import annotations

from typing import Any

from ca_signer.ledger import revocations
from ca_signer.operators.verb import Caller, CommandResult, Verb, Verbs, table
from ca_signer.operators.verbs.certificates import One, facts, find
from ca_signer.publishing.audit_records import certificate_target
from estcore.errors import Conflict
from estcore.pki.crl import RevocationReason
from estcore.policy.operators import Role
from estcore.runtime.database import Connection

_REVOKING: frozenset[Role] = frozenset({"revoker"})


class Revocation(One):
    """Which certificate, and why."""

    reason: RevocationReason


async def _revoke(connection: Connection, revocation: Revocation, caller: Caller) -> CommandResult:
    row = await find(connection, revocation, lock=True)
    before = row["revocation_reason"] if row["revoked_at"] else None
    for_good = row["revoked_at"] is not None and before != revocations.HOLD
    if for_good and before == revocation.reason:
        return _result(row, changed=False)
    if for_good and revocation.reason != revocations.COMPROMISED:
        # That a key was lost may turn out later; any other second reason is a mistake.
        raise Conflict(f"the certificate is revoked ({before})", code="revocation.final")
    return await _changed(connection, row, revocation.reason, caller)


async def _hold(connection: Connection, reference: One, caller: Caller) -> CommandResult:
    row = await find(connection, reference, lock=True)
    if row["revoked_at"] is None:
        return await _changed(connection, row, revocations.HOLD, caller)
    if row["revocation_reason"] == revocations.HOLD:
        return _result(row, changed=False)
    raise Conflict("a certificate revoked for good is not held", code="revocation.final")


async def _unhold(connection: Connection, reference: One, caller: Caller) -> CommandResult:
    row = await find(connection, reference, lock=True)
    if row["revoked_at"] is None:
        raise Conflict("the certificate is not held", code="revocation.not_held")
    if row["revocation_reason"] != revocations.HOLD:
        raise Conflict("a certificate revoked for good stays so", code="revocation.final")
    return await _changed(connection, row, None, caller)


async def _changed(
    connection: Connection, row: Any, reason: str | None, caller: Caller
) -> CommandResult:
    await revocations.set_revocation(connection, row["issuance_id"], reason, caller.name)
    now = await find(connection, One(fingerprint=row["certificate_sha256"].hex()))
    return _result(now, changed=True)


def _result(row: Any, *, changed: bool) -> CommandResult:
    return CommandResult(
        {**facts(row), "changed": changed}, certificate_target(row), {"changed": changed}
    )


def verbs() -> Verbs:
    """Return the verbs that change whether a certificate is good."""
    return table(
        Verb("certificate-revoke", _REVOKING, Revocation, _revoke),
        Verb("certificate-hold", _REVOKING, One, _hold),
        Verb("certificate-unhold", _REVOKING, One, _unhold),
    )
