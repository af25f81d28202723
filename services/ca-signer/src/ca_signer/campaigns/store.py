"""Campaigns in the ledger: rows of ``campaign``, their states and the numbers of their members.

1. ``selecting``: an operator gives the selector, the reason, the pace and the window.
2. ``proposed``: the members are recorded. They are fixed from here on.
3. ``running``: an operator has confirmed their number. Renewals are requested at the pace.
   ``paused``: nothing is requested and nothing is revoked.
4. ``done``: every member is finished. ``stopped`` by an operator: nothing more is requested or
   revoked. ``expired``: a day unconfirmed.

A member is finished when a younger certificate of its slot is proven in use, or in a campaign that
revokes when it is revoked after that; and when it has expired, was revoked by other means, or was
not good any more when its turn came.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from ca_signer.ledger.selector import Selector
from estcore import ids
from estcore.errors import Conflict
from estcore.messages.events import EarlyReason
from estcore.pki.crl import RevocationReason
from estcore.runtime.database import Connection

LIFETIME = dt.timedelta(days=1)
"""A proposal that is not confirmed in this time expires."""
OPEN = ("selecting", "proposed", "running", "paused")
DEFAULT_PER_MINUTE = 600
_MEMBER_COUNTS = """select count(*) as members, count(m.announced_at) as requested,
  count(skipped_at) as skipped, count(renewed_at) as renewed, count(proven_at) as proven,
  count(revoked_at) as revoked, count(*) filter (
    where finished_at is null and renewed_at is null and c.renew_by < now()) as late
from campaign_member m join campaign c using (campaign_id) where campaign_id = $1"""
_SAME = """select * from campaign where state = any($1::text[]) and reason = $2
  and selector::jsonb = $3::jsonb order by proposed_at limit 1"""


@dataclass(frozen=True)
class NewCampaign:
    """What an operator wants renewed. ``revoke`` is why replaced certificates are revoked."""

    selector: Selector
    reason: EarlyReason
    per_minute: int = DEFAULT_PER_MINUTE
    starts_at: dt.datetime | None = None
    renew_by: dt.datetime | None = None
    explanation_url: str | None = None
    revoke: RevocationReason | None = None

    @property
    def selector_json(self) -> str:
        """The conditions that are given."""
        return self.selector.model_dump_json(exclude_none=True)


async def insert(
    connection: Connection, new: NewCampaign, by: str, *, confirmed: bool = False
) -> asyncpg.Record:
    """Insert a campaign and return its row; ``confirmed`` if it runs once it has its members.

    Raises:
        Conflict: the window ends before it begins, or has ended.
    """
    now = await connection.fetchval("select now()")
    if new.renew_by is not None and new.renew_by <= max(now, new.starts_at or now):
        raise Conflict("renew_by is not after the start of the campaign", code="campaign.window")
    campaign_id = ids.uuid7()
    await connection.execute(
        "insert into campaign (campaign_id, state, selector, reason, explanation_url, per_minute, "
        "starts_at, renew_by, revoke_reason, proposed_by, confirmed_by) "
        "values ($1, 'selecting', $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        campaign_id,
        new.selector_json,
        new.reason,
        new.explanation_url,
        new.per_minute,
        new.starts_at,
        new.renew_by,
        new.revoke,
        by,
        by if confirmed else None,
    )
    return await find(connection, UUID(campaign_id))


async def find(connection: Connection, campaign_id: UUID, *, lock: bool = True) -> asyncpg.Record:
    """Return the row of a campaign, with ``now``; locked where it is to be changed.

    Raises:
        Conflict: there is none.
    """
    query = "select *, now() as now from campaign where campaign_id = $1"
    row = await connection.fetchrow(f"{query} for update" if lock else query, campaign_id)
    if row is None:
        raise Conflict("there is no such campaign", code="command.unknown")
    return row


async def find_open(
    connection: Connection, reason: EarlyReason, selector: Selector
) -> asyncpg.Record | None:
    """Return the open campaign for this reason with this selector, if there is one."""
    wanted = selector.model_dump_json(exclude_none=True)
    return await connection.fetchrow(_SAME, list(OPEN), reason, wanted)


async def run(connection: Connection, campaign_id: UUID, by: str) -> None:
    """Let a proposed or paused campaign run; the pace begins anew."""
    await connection.execute(
        "update campaign set state = 'running', confirmed_by = coalesce(confirmed_by, $2), "
        "paused_by = null, paced_at = greatest(now(), starts_at), "
        "checked_at = coalesce(checked_at, proposed_at) where campaign_id = $1",
        campaign_id,
        by,
    )


async def pause(connection: Connection, campaign_id: UUID, by: str) -> None:
    """Pause a running campaign."""
    await connection.execute(
        "update campaign set state = 'paused', paused_by = $2 where campaign_id = $1",
        campaign_id,
        by,
    )


async def end(
    connection: Connection, campaign_id: UUID, state: str, *, by: str | None = None
) -> None:
    """End a campaign as ``done``, ``stopped`` or ``expired``."""
    await connection.execute(
        "update campaign set state = $2, stopped_by = $3, ended_at = now() where campaign_id = $1",
        campaign_id,
        state,
        by,
    )


async def member_counts(connection: Connection, campaign_id: UUID) -> dict[str, int]:
    """Return how many members there are, and how many have each step behind them."""
    row = await connection.fetchrow(_MEMBER_COUNTS, campaign_id)
    return dict(row) if row is not None else {}


def selector_text(row: asyncpg.Record) -> str:
    """Return the selector of a campaign as ``name=value,…``."""
    return ",".join(f"{name}={value}" for name, value in json.loads(row["selector"]).items())


def issuance_ids(rows: Sequence[asyncpg.Record]) -> list[UUID]:
    """Return the issuance ids of rows."""
    return [row["issuance_id"] for row in rows]
