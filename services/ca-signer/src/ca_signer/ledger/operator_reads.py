"""What operators list: approvals, submissions, fleet operations, rollovers (SQLAlchemy Core).

Every row has ``now``, the database's time, so that ages do not depend on the reader's clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import asyncpg
from sqlalchemy import func, or_, select, true

from ca_signer.ledger.tables import (
    approval,
    bulk_revocation,
    bulk_revocation_member,
    campaign,
    campaign_member,
    issuance,
    rollover,
    submission,
)
from estcore.runtime import statements
from estcore.runtime.database import Connection

_NOW = func.now().label("now")


async def approvals(
    connection: Connection,
    *,
    tenant: str | None,
    service: str | None,
    ended: bool,
    limit: int,
) -> Sequence[asyncpg.Record]:
    """Return requests awaiting approval, oldest first; with ``ended`` all others too."""
    row = approval.c
    waiting = (row.state == "waiting") & (row.expires_at > func.now())
    query = select(*row, _NOW).where(or_(true() if ended else waiting))
    if tenant is not None:
        query = query.where(row.tenant == tenant)
    if service is not None:
        query = query.where(row.service == service)
    return await statements.fetch(connection, query.order_by(row.requested_at).limit(limit))


async def submissions(
    connection: Connection, *, state: str, issuer_id: str | None, limit: int
) -> Sequence[asyncpg.Record]:
    """Return upstream submissions in a state, the longest unchanged first."""
    row = submission.c
    query = select(*row, _NOW).where(row.state == state)
    if issuer_id is not None:
        query = query.where(row.issuer_id == issuer_id)
    return await statements.fetch(connection, query.order_by(row.changed_at).limit(limit))


async def bulk_revocations(connection: Connection, *, limit: int) -> Sequence[asyncpg.Record]:
    """Return bulk revocations, newest first."""
    query = (
        select(*bulk_revocation.c, _NOW).order_by(bulk_revocation.c.proposed_at.desc()).limit(limit)
    )
    return await statements.fetch(connection, query)


async def bulk_revocation_owners(
    connection: Connection, bulk_revocation_id: UUID, *, limit: int
) -> Sequence[asyncpg.Record]:
    """Return how many certificates of each owner and profile a bulk revocation affects."""
    row, member = issuance.c, bulk_revocation_member.c
    count = func.count().label("count")
    owner = (row.tenant, row.service, row.profile)
    query = (
        select(*owner, count, func.count(member.revoked_at).label("revoked"))
        .select_from(bulk_revocation_member.join(issuance, member.issuance_id == row.issuance_id))
        .where(member.bulk_revocation_id == bulk_revocation_id)
        .group_by(*owner)
        .order_by(count.desc(), *owner)
        .limit(limit)
    )
    return await statements.fetch(connection, query)


async def bulk_revocation_members(
    connection: Connection, bulk_revocation_id: UUID, *, limit: int
) -> Sequence[asyncpg.Record]:
    """Return some of the certificates a bulk revocation affects."""
    row, member = issuance.c, bulk_revocation_member.c
    query = (
        select(row.issuer_id, row.serial_number, row.subject, row.not_after)
        .select_from(bulk_revocation_member.join(issuance, member.issuance_id == row.issuance_id))
        .where(member.bulk_revocation_id == bulk_revocation_id)
        .order_by(member.issuance_id)
        .limit(limit)
    )
    return await statements.fetch(connection, query)


async def campaigns(connection: Connection, *, limit: int) -> Sequence[asyncpg.Record]:
    """Return campaigns, newest first."""
    query = select(*campaign.c, _NOW).order_by(campaign.c.proposed_at.desc()).limit(limit)
    return await statements.fetch(connection, query)


async def campaign_owners(
    connection: Connection, campaign_id: UUID, *, limit: int
) -> Sequence[asyncpg.Record]:
    """Return how many certificates of each owner and profile a campaign has, and their steps."""
    row, member = issuance.c, campaign_member.c
    count = func.count().label("count")
    owner = (row.tenant, row.service, row.profile)
    query = (
        select(
            *owner,
            count,
            func.count(member.renewed_at).label("renewed"),
            func.count(member.proven_at).label("proven"),
        )
        .select_from(campaign_member.join(issuance, member.issuance_id == row.issuance_id))
        .where(member.campaign_id == campaign_id)
        .group_by(*owner)
        .order_by(count.desc(), *owner)
        .limit(limit)
    )
    return await statements.fetch(connection, query)


async def campaign_members(
    connection: Connection, campaign_id: UUID, *, limit: int
) -> Sequence[asyncpg.Record]:
    """Return some of the certificates of a campaign, those that are not finished first."""
    row, member = issuance.c, campaign_member.c
    query = (
        select(row.issuer_id, row.serial_number, row.subject, row.not_after)
        .select_from(campaign_member.join(issuance, member.issuance_id == row.issuance_id))
        .where(member.campaign_id == campaign_id)
        .order_by(member.finished_at.is_not(None), member.rank, member.issuance_id)
        .limit(limit)
    )
    return await statements.fetch(connection, query)


async def rollovers(connection: Connection, family: str, *, limit: int) -> Sequence[asyncpg.Record]:
    """Return the rollovers of an issuer, newest first."""
    query = (
        select(*rollover.c)
        .where(rollover.c.family == family)
        .order_by(rollover.c.planned_at.desc())
        .limit(limit)
    )
    return await statements.fetch(connection, query)
