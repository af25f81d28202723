"""Gauges of open campaigns: how many there are in each state, and how far their members are."""

from __future__ import annotations

import asyncio
import logging

from ca_signer import metrics
from ca_signer.campaigns.store import OPEN
from estcore.errors import Unavailable
from estcore.runtime.database import Database
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop

log = logging.getLogger(__name__)

_CAMPAIGNS = """select state, count(*) as count from campaign
where state in ('selecting', 'proposed', 'running', 'paused') group by state"""
_STEPS = ("waiting", "requested", "skipped", "renewed", "proven", "revoked", "ended", "late")
_MEMBERS = """select case when revoked_at is not null then 'revoked'
  when proven_at is not null then 'proven' when renewed_at is not null then 'renewed'
  when skipped_at is not null then 'skipped' when finished_at is not null then 'ended'
  when requested_at is not null then 'requested' else 'waiting' end as state,
  count(*) as count, count(*) filter (
    where finished_at is null and renewed_at is null and c.renew_by < now()) as late
from campaign_member join campaign c using (campaign_id)
where c.state in ('running', 'paused') group by 1"""


class CampaignGauges:
    """The job of one signer: all have the same numbers, so any of them can be asked."""

    def __init__(self, database: Database, *, every_s: float) -> None:
        self._database = database
        self._every_s = every_s

    async def run(self, stop: asyncio.Event) -> None:
        """Count now and every ``every_s`` until stopped."""
        stopping = False
        while not stopping:
            try:
                await self.count()
            except Unavailable as exc:
                log.warning("campaigns not counted", extra=fields(code=exc.code))
            stopping = await sleep_or_stop(stop, self._every_s)

    async def count(self) -> None:
        """Set the gauges to what the ledger holds.

        Raises:
            Unavailable: the database is unavailable, or too slow for it.
        """
        async with self._database.connection() as connection:
            campaigns = await connection.fetch(_CAMPAIGNS)
            members = await connection.fetch(_MEMBERS) if campaigns else []
        by_state = {row["state"]: row["count"] for row in campaigns}
        for state in OPEN:
            metrics.CAMPAIGNS.labels(state).set(by_state.get(state, 0))
        counts = {row["state"]: row["count"] for row in members}
        counts["late"] = sum(row["late"] for row in members)
        for state in _STEPS:
            metrics.CAMPAIGN_MEMBERS.labels(state).set(counts.get(state, 0))
