"""Track which slots have downloaded the new CA certificates during a rollover.

Front ends report in batches. The reports are unsigned: at most a slot counts as reached that is
not, which the operator weighs before the switch; nothing is issued because of them.
"""

from __future__ import annotations

import asyncio
import logging

from ca_signer.settings import SERVICE
from estcore.errors import MalformedRequest, Unavailable
from estcore.messages.envelope import decode, encode
from estcore.messages.state import TrustFetchCounted, TrustFetched
from estcore.messages.topics import FETCHED_TOPIC
from estcore.runtime.bus import Bus, Incoming
from estcore.runtime.database import Database
from estcore.runtime.logs import fields

log = logging.getLogger(__name__)

_COUNT = """with seen as (
  insert into trust_seen (rollover_id, slot_id)
  select distinct r.rollover_id, i.slot_id
  from fingerprint f join issuance i using (issuance_id)
    join generation g using (issuer_id) join rollover r using (family)
  where r.rollover_id = $1 and r.state in ('published', 'signing')
    and f.certificate_sha256 = any($2::bytea[])
  on conflict do nothing returning slot_id)
select count(*) from seen"""


class TrustAdoptionTracker:
    """Runs in every signer; any of them takes a message."""

    def __init__(self, bus: Bus, database: Database) -> None:
        self._bus = bus
        self._database = database

    async def run(self, stop: asyncio.Event) -> None:
        """Count until ``stop``."""
        await self._bus.subscribe(FETCHED_TOPIC, self._arrived, queue=SERVICE)
        await stop.wait()

    async def _arrived(self, message: Incoming) -> None:
        try:
            new = await self.count(decode(TrustFetched, message.payload))
            await self._bus.answer(message, encode(TrustFetchCounted(new=new)))
        except (MalformedRequest, Unavailable) as exc:
            # Not answered: the front end reports again.
            log.warning("CA certificate downloads not counted", extra=fields(code=exc.code))

    async def count(self, fetched: TrustFetched) -> int:
        """Record the slots of these certificates; returns how many are new.

        Certificates the ledger does not have, or of other issuers, count for nothing.

        Raises:
            LedgerUnavailable: PostgreSQL is unavailable.
        """
        async with self._database.connection() as connection:
            new: int = await connection.fetchval(
                _COUNT, fetched.rollover, [bytes.fromhex(f) for f in fetched.fingerprints]
            )
        return new
