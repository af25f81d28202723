"""Selection of the members of a campaign, composed with SQLAlchemy Core.

A member is the newest good certificate of its slot, and only if that one matches. While old and
new certificate of a slot overlap, the slot therefore has one member at most, and none where the
new certificate is none of those to renew.
"""

from __future__ import annotations

from sqlalchemy import JSON, SmallInteger, case, cast, func, literal, select, tuple_
from sqlalchemy.dialects.postgresql import UUID

from ca_signer.ledger.selection import insert_members, matching
from ca_signer.ledger.selector import Selector
from ca_signer.ledger.tables import campaign_member, issuance
from estcore.pki.profile import PRIORITIES
from estcore.runtime.database import Connection


async def select_members(connection: Connection, campaign_id: str, selector: Selector) -> int:
    """Record the certificates that a campaign renews; returns how many."""
    row, younger = issuance.c, issuance.alias("younger")
    newer = select(younger.c.issuance_id).where(
        younger.c.slot_id == row.slot_id,
        younger.c.state == "issued",
        younger.c.revoked_at.is_(None),
        younger.c.not_after > func.now(),
        tuple_(younger.c.issued_at, younger.c.issuance_id) > tuple_(row.issued_at, row.issuance_id),
    )
    priority = cast(row.context, JSON)["priority"].as_string()
    ranks = {name.value: rank for rank, name in enumerate(PRIORITIES)}
    rank = cast(case(ranks, value=priority, else_=len(ranks)), SmallInteger)
    chosen = select(
        literal(campaign_id, UUID), row.issuance_id, row.slot_id, rank, row.not_after
    ).where(*matching(selector), ~newer.correlate(issuance).exists())
    columns = ["campaign_id", "issuance_id", "slot_id", "rank", "not_after"]
    return await insert_members(connection, campaign_member.insert().from_select(columns, chosen))
