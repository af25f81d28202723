"""Selection of the certificates of a bulk revocation, composed with SQLAlchemy Core."""

from __future__ import annotations

from sqlalchemy import literal, select
from sqlalchemy.dialects.postgresql import UUID

from ca_signer.ledger.selection import insert_members, matching
from ca_signer.ledger.selector import Selector
from ca_signer.ledger.tables import bulk_revocation_member, issuance
from estcore.runtime.database import Connection


async def select_members(
    connection: Connection, bulk_revocation_id: str, selector: Selector
) -> int:
    """Record which certificates are affected; returns how many."""
    chosen = select(literal(bulk_revocation_id, UUID), issuance.c.issuance_id).where(
        *matching(selector)
    )
    insert = bulk_revocation_member.insert()
    return await insert_members(
        connection, insert.from_select(["bulk_revocation_id", "issuance_id"], chosen)
    )
