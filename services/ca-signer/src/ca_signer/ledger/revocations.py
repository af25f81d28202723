"""Revocation of one certificate in the ledger: the committed row that everything else follows.

``revocation_seq`` counts the changes of one certificate, so that a change during a publication
is published as well.
"""

from __future__ import annotations

from typing import Any

from ca_signer.ledger import certificate_index
from estcore.runtime.database import Connection

HOLD, RELEASED = "certificateHold", "removeFromCRL"
COMPROMISED = "keyCompromise"
_FINISH_MEMBERS = """update campaign_member set finished_at = now()
where issuance_id = any($1::uuid[]) and finished_at is null"""
"""A campaign has nothing more to do for a certificate that is revoked for good."""


async def set_revocation(
    connection: Connection, issuance_id: str, reason: str | None, by: str | None
) -> None:
    """Set why a certificate is revoked, None for not at all; the row is the caller's.

    A certificate that was held keeps the moment since when it has not been good.
    """
    await connection.execute(
        "update issuance set revoked_at = case when $2::text is null then null "
        "else coalesce(revoked_at, now()) end, revocation_reason = $2, revoked_by = $3, "
        "revocation_seq = revocation_seq + 1, revocation_changed_at = now(), "
        "revocation_announced_at = null where issuance_id = $1",
        issuance_id,
        reason,
        by,
    )
    await certificate_index.note_revocation(connection, issuance_id, revoked=reason is not None)
    if reason not in {None, HOLD}:
        await connection.execute(_FINISH_MEMBERS, [issuance_id])


async def set_revocations(
    connection: Connection, issuance_ids: list[Any], reason: str, by: str
) -> None:
    """Revoke certificates whose rows are locked by the caller; as ``set_revocation`` for one."""
    if not issuance_ids:
        return
    await connection.execute(
        "update issuance set revoked_at = now(), revocation_reason = $2, revoked_by = $3, "
        "revocation_seq = revocation_seq + 1, revocation_changed_at = now(), "
        "revocation_announced_at = null where issuance_id = any($1::uuid[])",
        issuance_ids,
        reason,
        by,
    )
    await certificate_index.note_revocations(connection, issuance_ids)
    await connection.execute(_FINISH_MEMBERS, issuance_ids)
