"""Campaign job: selects members, requests renewals at the pace, follows progress, ends campaigns.

Each signer runs it. A row lock lets one signer at a time work on a campaign. The pace holds for
all signers together; the time of a pause, of the signers or of the bus, is not made up for.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Callable

import asyncpg
from pydantic import ValidationError

from ca_signer import metrics
from ca_signer.campaigns import progress, store
from ca_signer.ledger.selector import Selector
from ca_signer.pace import allowance
from estcore.errors import Unavailable
from estcore.runtime import faults
from estcore.runtime.database import Connection, Database
from estcore.runtime.logs import fields
from estcore.runtime.notices import Notice

log = logging.getLogger(__name__)

_SHORTEST = dt.timedelta(seconds=0.5)
"""Between two requests of a campaign, so that a fast one leaves time for the others."""
_CHECK = dt.timedelta(seconds=5)
_BATCH = 500
_CAMPAIGNS = 20
"""Campaigns one step works on; more wait for the next one."""
_UNPUBLISHED = dt.timedelta(seconds=10)
"""Requests that are unpublished for longer let the pace wait: the bus is unavailable."""
_NEXT = """select *, now() as now, checked_at <= now() - $2::interval as check_due,
  paced_at <= now() - greatest(interval '1 minute' / per_minute, $3::interval) as pace_due
from campaign where state = 'selecting'
  or (state = 'proposed' and proposed_at < now() - $1::interval)
  or (state = 'running'
    and paced_at <= now() - greatest(interval '1 minute' / per_minute, $3::interval))
  or (state in ('running', 'paused') and checked_at <= now() - $2::interval)
order by checked_at nulls first, proposed_at limit 1 for update skip locked"""
_WAITING = f"""select m.issuance_id, o.revoked_at is null and o.not_after > now() as good,
  (select min(n.issued_at) from issuance n where {progress.SUCCEEDS}
    and n.revoked_at is null and n.not_after > now()) as renewed_at
from (select campaign_id, issuance_id, rank from campaign_member
    where campaign_id = $1 and requested_at is null and skipped_at is null
    order by rank, issuance_id limit $2) m
  join campaign c using (campaign_id) join issuance o using (issuance_id)
order by m.rank, m.issuance_id"""  # noqa: S608 - constants
_REQUEST = """update campaign_member set requested_at = now()
where campaign_id = $1 and issuance_id = any($2::uuid[])"""
_SKIP = """update campaign_member m set skipped_at = now(),
  renewed_at = coalesce(m.renewed_at, t.renewed_at),
  finished_at = coalesce(m.finished_at, case when not t.good then now() end)
from unnest($2::uuid[], $3::timestamptz[], $4::boolean[]) as t(issuance_id, renewed_at, good)
where m.campaign_id = $1 and m.issuance_id = t.issuance_id"""
_UNPUBLISHED_SQL = """select true from campaign_member where requested_at < now() - $1::interval
and announced_at is null and campaign_id = $2 limit 1"""


class CampaignJob:
    """The job of one signer."""

    def __init__(
        self, database: Database, *, changed: Callable[[], None], notice: Notice | None = None
    ) -> None:
        """``changed`` is called when there is something to publish.

        ``notice`` comes when there is another campaign, or one is in another state.
        """
        self._database = database
        self._changed = changed
        self._notice = notice or Notice()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop``."""
        any_open = True
        while not await self._notice.wait(stop, work_open=any_open):
            try:
                any_open = await self.step()
            except Unavailable as exc:
                any_open = True
                log.warning("campaign deferred", extra=fields(code=exc.code))

    async def step(self) -> bool:
        """Do what is due now for every campaign that no other signer works on.

        Returns whether any is open, so that there will be more to do without a notice.

        Raises:
            Unavailable: the database is unavailable; what was begun is undone.
        """
        async with self._database.connection() as connection:
            if not await progress.any_open(connection):
                return False
        for _ in range(_CAMPAIGNS):
            if not await self._database.run(self._next):
                break
            faults.hit("signer.campaign")
            self._changed()
        return True

    async def _next(self, connection: Connection) -> bool:
        row = await connection.fetchrow(_NEXT, store.LIFETIME, _CHECK, _SHORTEST)
        if row is None:
            return False
        if row["state"] == "selecting":
            await self._select(connection, row)
        elif row["state"] == "proposed":
            await _end(connection, row, "expired")
        else:
            if row["state"] == "running" and row["pace_due"]:
                await self._request(connection, row)
            if row["check_due"]:
                await self._check(connection, row)
        return True

    async def _select(self, connection: Connection, row: asyncpg.Record) -> None:
        campaign_id = row["campaign_id"]
        try:
            selector = Selector.model_validate_json(row["selector"])
        except ValidationError:
            # Written by another version: it has to be proposed again.
            await _end(connection, row, "stopped")
            return
        from ca_signer.campaigns.selection import select_members  # SQLAlchemy, when needed

        count = await select_members(connection, str(campaign_id), selector)
        await connection.execute(
            "update campaign set state = 'proposed', members = $2 where campaign_id = $1",
            campaign_id,
            count,
        )
        log.info(
            "campaign selected its certificates",
            extra=fields(campaign=str(campaign_id), count=count),
        )
        if count == 0:
            await _end(connection, row, "done")
        elif row["confirmed_by"] is not None:
            await store.run(connection, campaign_id, row["confirmed_by"])

    async def _request(self, connection: Connection, row: asyncpg.Record) -> None:
        campaign_id = row["campaign_id"]
        await connection.execute(
            "update campaign set paced_at = now() where campaign_id = $1", campaign_id
        )
        if await connection.fetchval(_UNPUBLISHED_SQL, _UNPUBLISHED, campaign_id):
            return
        allowed = min(allowance(row["now"] - row["paced_at"], row["per_minute"]), _BATCH)
        rows = await connection.fetch(_WAITING, campaign_id, allowed)
        asked = [r for r in rows if r["good"] and r["renewed_at"] is None]
        skipped = [r for r in rows if not r["good"] or r["renewed_at"] is not None]
        await connection.execute(_REQUEST, campaign_id, store.issuance_ids(asked))
        await connection.execute(
            _SKIP,
            campaign_id,
            store.issuance_ids(skipped),
            [r["renewed_at"] for r in skipped],
            [r["good"] for r in skipped],
        )
        metrics.CAMPAIGN_REQUESTED.inc(len(asked))

    async def _check(self, connection: Connection, row: asyncpg.Record) -> None:
        campaign_id = row["campaign_id"]
        await progress.find_renewals(connection, row)
        if row["state"] == "running" and row["revoke_reason"] is not None:
            metrics.CAMPAIGN_REVOKED.inc(await progress.revoke_replaced(connection, row))
        await progress.finish_expired(connection, campaign_id)
        await connection.execute(
            "update campaign set checked_at = now() where campaign_id = $1", campaign_id
        )
        if await progress.all_finished(connection, campaign_id):
            await _end(connection, row, "done")


async def _end(connection: Connection, row: asyncpg.Record, state: str) -> None:
    await store.end(connection, row["campaign_id"], state)
    log.info("campaign ended", extra=fields(campaign=str(row["campaign_id"]), state=state))
