"""Checks of the ledger inside the transaction that resolves a request.

Each raises the refusal. What they read is decided by unique indexes and locked rows, so two
signers never allow the same single-use credential or the same last place of a quota.
"""

from __future__ import annotations

from uuid import UUID

from ca_signer.issuance.decision_context import Candidate
from ca_signer.model import OPEN_SUBMISSIONS, IssuanceIntent
from estcore.errors import (
    Conflict,
    IssuerUnavailable,
    NotAuthenticated,
    NotAuthorized,
    RequestRejected,
    WeakKey,
)
from estcore.runtime.database import Connection


async def check_presented_certificate(connection: Connection, intent: IssuanceIntent) -> None:
    """Refuse a revoked certificate as a credential."""
    if intent.presented_sha256 is None:
        return
    revoked = await connection.fetchval(
        "select true from fingerprint join issuance using (issuance_id, certificate_sha256) "
        "where certificate_sha256 = $1 and revoked_at is not null",
        intent.presented_sha256,
    )
    if revoked:
        raise NotAuthenticated(
            "the presented certificate is revoked", code="auth.certificate_revoked"
        )


async def check_secret(connection: Connection, intent: IssuanceIntent) -> None:
    """Refuse a revoked or expired enrollment secret."""
    if intent.secret_id is None:
        return
    live = await connection.fetchval(
        "select true from secret where secret_id = $1 and revoked_at is null and not_after > now()",
        intent.secret_id,
    )
    if not live:
        raise NotAuthenticated("the secret is not valid any more", code="secret.invalid")


async def consume_single_use(connection: Connection, candidate: Candidate) -> None:
    """Consume the single-use credentials of a request (DPoP proofs, Digest nonces)."""
    for claim in candidate.message.claims:
        spent = await connection.fetchval(
            "insert into claim (kind, id, enrollment_id, state) "
            "values ($1, $2, $3, 'consumed') on conflict (kind, id) do update "
            "set state = 'consumed' where claim.enrollment_id = excluded.enrollment_id "
            "returning true",
            claim.kind,
            claim.id,
            # Good for this request, however often it is delivered, and for no other.
            UUID(candidate.intent.request_id).bytes,
        )
        if not spent:
            raise NotAuthenticated(f"the {claim.kind} proof was used before", code="auth.replayed")


async def check_quota(connection: Connection, candidate: Candidate) -> None:
    """Enforce the rule's number of certificates per owner and day."""
    intent, limit = candidate.intent, candidate.max_per_day
    if limit is None:
        return
    # One at a time per owner, so that two signers cannot both see the last place free.
    await connection.execute(
        "select pg_advisory_xact_lock(hashtextextended($1, 0))",
        f"quota/{intent.tenant}/{intent.service}",
    )
    count = await connection.fetchval(
        "select (select count(*) from issuance "  # noqa: S608 - our constant
        "where tenant = $1 and service = $2 "
        "and state <> 'abandoned' and created_at > now() - interval '1 day') "
        "+ (select count(*) from submission where tenant = $1 and service = $2 "
        f"and {OPEN_SUBMISSIONS})",
        intent.tenant,
        intent.service,
    )
    if count >= limit:
        raise NotAuthorized(
            f"{intent.tenant}/{intent.service} had its {limit} certificates of 24 hours",
            code="policy.quota",
        )


async def check_max_active(connection: Connection, candidate: Candidate) -> None:
    """Enforce the profile's number of live certificates per identity."""
    intent, limit = candidate.intent, candidate.max_active
    if limit is None:
        return
    await connection.execute(
        "select pg_advisory_xact_lock(hashtextextended($1, 0))", f"active/{intent.slot_id}"
    )
    count = await connection.fetchval(
        "select (select count(*) from issuance "  # noqa: S608 - our constant
        "where slot_id = $1 and state <> 'abandoned' "
        "and revoked_at is null and not_after > now()) "
        "+ (select count(*) from submission where slot_id = $1 "
        f"and {OPEN_SUBMISSIONS})",
        intent.slot_id,
    )
    if count >= limit:
        raise NotAuthorized(
            f"this identity has {count} certificates that are good, the most of profile "
            f"{intent.profile}; revoke one or wait",
            code="profile.max_active",
        )


async def why_not_recorded(
    connection: Connection, intent: IssuanceIntent
) -> RequestRejected | IssuerUnavailable:
    """Return the error for an intent that the ledger did not record."""
    state = await connection.fetchval(
        "select state from generation where issuer_id = $1", intent.issuer_id
    )
    if state not in {None, "signing"} and intent.context.operation != "ocsp":
        # Decided a moment before or after a switch: decided again, by who signs now.
        return IssuerUnavailable(
            f"issuer {intent.issuer_id} does not sign now", code="issuer.generation"
        )
    owner = await connection.fetchrow(
        "select tenant, service from key_binding where spki_sha256 = $1", intent.spki_sha256
    )
    if owner is not None and (owner["tenant"], owner["service"]) != (
        intent.tenant,
        intent.service,
    ):
        return Conflict("this key belongs to another owner", code="key.bound")
    lost = await connection.fetchval(
        "select true from issuance where spki_sha256 = $1 "
        "and revocation_reason = 'keyCompromise' limit 1",
        intent.spki_sha256,
    )
    if lost:
        return WeakKey("this key is known to be lost; make a new one", code="key.compromised")
    if intent.secret_id is not None:
        return NotAuthorized("the one-time secret is spent", code="secret.spent")
    return Conflict("the request collides with another one", code="request.conflict")
