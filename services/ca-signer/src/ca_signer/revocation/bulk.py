"""Bulk revocation: proposed by one operator, confirmed by another, carried out at a pace.

1. ``selecting``: an operator gives the selector, the reason and the pace. Nothing is revoked.
2. ``proposed``: the affected certificates are recorded and can be listed.
3. ``running``: another operator has confirmed their number. Some are revoked every second.
4. ``done``, ``stopped`` by an operator of the role, or ``expired`` after a day unconfirmed.

The certificates are fixed when they are selected, so both operators decide about the same ones.
Each signer runs the job; a row lock lets one at a time work on it. Certificates of operators and
OCSP responders are affected only if the selector names their profile: without operators no person
could stop it, without OCSP responders no relying party would learn of it.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Callable, Sequence
from typing import Any

import asyncpg
from pydantic import ValidationError

from ca_signer import metrics
from ca_signer.ledger import revocations
from ca_signer.ledger.selector import Selector
from ca_signer.pace import allowance
from ca_signer.publishing.audit_records import certificate_target
from ca_signer.publishing.outbox import OutboxSource
from ca_signer.publishing.publisher import EventPublisher
from estcore import ids
from estcore.errors import Unavailable
from estcore.messages.audit import Actor, AuditRecord, AuditRecordBuilder
from estcore.runtime.database import Connection, Database
from estcore.runtime.logs import fields
from estcore.runtime.notices import Notice

log = logging.getLogger(__name__)

LIFETIME = dt.timedelta(days=1)
_ANY_OPEN = (
    "select true from bulk_revocation where state in ('selecting', 'proposed', 'running') limit 1"
)
_BATCH = 200


class BulkRevocationJob:
    """The job: selects, revokes at the pace, lets proposals expire."""

    def __init__(
        self, database: Database, *, changed: Callable[[], None], notice: Notice | None = None
    ) -> None:
        """``changed`` is called when certificates were revoked and have to be published.

        ``notice`` comes when there is another bulk revocation, or one is in another state.
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
                log.warning("bulk revocation deferred", extra=fields(code=exc.code))

    async def step(self) -> bool:
        """Do what is due now for one bulk revocation, if another signer does not.

        Returns whether any is open, so that there will be more to do without a notice.

        Raises:
            Unavailable: the database is unavailable; what was begun is undone.
        """
        async with self._database.connection() as connection:
            if not await connection.fetchval(_ANY_OPEN):
                return False
        if await self._database.run(self._next):
            self._changed()
        return True

    async def _next(self, connection: Connection) -> bool:
        row = await connection.fetchrow(
            "select *, now() as moment from bulk_revocation where state = 'selecting' "
            # A slow one whose turn has not come keeps no other one back.
            "or (state = 'running' and paced_at <= now() - interval '1 minute' / per_minute) "
            "or (state = 'proposed' and proposed_at < now() - $1::interval) "
            "order by paced_at nulls first, proposed_at limit 1 for update skip locked",
            LIFETIME,
        )
        if row is None:
            return False
        if row["state"] == "selecting":
            await self._select(connection, row)
            return False
        if row["state"] == "proposed":
            await _end(connection, row["bulk_revocation_id"], "expired")
            return True
        return await self._revoke(connection, row)

    async def _select(self, connection: Connection, row: asyncpg.Record) -> None:
        try:
            selector = Selector.model_validate_json(row["selector"])
        except ValidationError:
            # Written by another version: it has to be proposed again.
            await _end(connection, row["bulk_revocation_id"], "stopped")
            return
        count = await _record_members(connection, row["bulk_revocation_id"], selector)
        await connection.execute(
            "update bulk_revocation set state = 'proposed', members = "
            "$2 where bulk_revocation_id = $1",
            row["bulk_revocation_id"],
            count,
        )
        log.info(
            "bulk revocation selected its certificates",
            extra=fields(bulk_revocation=str(row["bulk_revocation_id"]), count=count),
        )

    async def _revoke(self, connection: Connection, row: asyncpg.Record) -> bool:
        bulk_revocation_id = row["bulk_revocation_id"]
        allowed = allowance(row["moment"] - row["paced_at"], row["per_minute"])
        if allowed == 0:
            return False
        members = await connection.fetch(
            "select i.issuance_id, i.revoked_at is null and "
            "i.not_after > now() as good "
            "from issuance i where i.issuance_id in (select "
            "issuance_id from bulk_revocation_member "
            "where bulk_revocation_id = $1 and revoked_at is null and skipped_at is null limit $2) "
            "order by i.issuance_id for update",
            bulk_revocation_id,
            min(allowed, _BATCH),
        )
        good = [r["issuance_id"] for r in members if r["good"]]
        skipped = [r["issuance_id"] for r in members if not r["good"]]
        await revocations.set_revocations(
            connection, good, row["reason"], f"bulk-revocation:{bulk_revocation_id}"
        )
        await connection.execute(
            "update bulk_revocation_member set revoked_at = case when "
            "issuance_id = any($2::uuid[]) "
            "then now() end, skipped_at = case when issuance_id = any($3::uuid[]) then now() end "
            "where bulk_revocation_id = $1 and issuance_id = any($2::uuid[] || $3::uuid[])",
            bulk_revocation_id,
            good,
            skipped,
        )
        await connection.execute(
            "update bulk_revocation set revoked = revoked + $2, skipped = "
            "skipped + $3, paced_at = now() "
            "where bulk_revocation_id = $1",
            bulk_revocation_id,
            len(good),
            len(skipped),
        )
        metrics.BULK_REVOKED.inc(len(good))
        if len(members) < min(allowed, _BATCH):
            await _end(connection, bulk_revocation_id, "done")
        return True


async def _end(connection: Connection, bulk_revocation_id: Any, state: str) -> None:
    await connection.execute(
        "update bulk_revocation set state = $2, ended_at = now() where bulk_revocation_id = $1",
        bulk_revocation_id,
        state,
    )
    log.warning(
        "bulk revocation ended", extra=fields(bulk_revocation=str(bulk_revocation_id), state=state)
    )


def bulk_revocation_records(publisher: EventPublisher) -> list[OutboxSource]:
    """Return the sources of records: each revoked certificate, and each end."""
    build = publisher.audit_records.build

    async def publish_members(rows: Sequence[asyncpg.Record]) -> None:
        await publisher.records([_member_record(build, row) for row in rows])

    async def publish_ends(rows: Sequence[asyncpg.Record]) -> None:
        await publisher.records([_end_record(build, row) for row in rows])

    return [
        OutboxSource(
            select="select m.bulk_revocation_id, m.revoked_at as member_revoked_at, n.reason, "
            "n.proposed_by, n.confirmed_by, i.tenant, i.service, i.issuance_id, i.issuer_id, "
            "i.profile, i.subject, i.serial_number, i.certificate_sha256, i.not_after "
            "from bulk_revocation_member m join bulk_revocation n using (bulk_revocation_id) "
            "join issuance i using (issuance_id) "
            "where m.revoked_at is not null and m.announced_at is null "
            "order by m.revoked_at limit $1",
            mark="update bulk_revocation_member m set announced_at = now() "
            "from unnest($1::uuid[], $2::uuid[]) as t(bulk_revocation, issuance) "
            "where m.bulk_revocation_id = t.bulk_revocation and m.issuance_id = t.issuance",
            keys=("bulk_revocation_id", "issuance_id"),
            publish=publish_members,
        ),
        OutboxSource(
            select="select bulk_revocation_id, state, ended_at, members, "
            "revoked, skipped from bulk_revocation "
            "where ended_at is not null and announced_at is null limit $1",
            mark="update bulk_revocation set announced_at = now() where "
            "bulk_revocation_id = any($1::uuid[])",
            keys=("bulk_revocation_id",),
            publish=publish_ends,
        ),
    ]


def _member_record(build: AuditRecordBuilder, row: asyncpg.Record) -> AuditRecord:
    bulk_revocation_id = str(row["bulk_revocation_id"])
    return build.success(
        "certificate.revoked",
        record_id=ids.record_id("bulk-revocation", bulk_revocation_id, str(row["issuance_id"])),
        at=row["member_revoked_at"],
        correlation_id=bulk_revocation_id,
        actor=Actor(type="system", subject=f"bulk-revocation:{bulk_revocation_id}"),
        target=certificate_target(row),
        details={
            "reason": row["reason"],
            "proposed_by": row["proposed_by"],
            "confirmed_by": row["confirmed_by"],
        },
    )


def _end_record(build: AuditRecordBuilder, row: asyncpg.Record) -> AuditRecord:
    bulk_revocation_id = str(row["bulk_revocation_id"])
    return build.success(
        f"bulk_revocation.{row['state']}",
        record_id=ids.record_id("bulk-revocation-end", bulk_revocation_id),
        at=row["ended_at"],
        correlation_id=bulk_revocation_id,
        actor=Actor(type="system", subject=f"bulk-revocation:{bulk_revocation_id}"),
        details={
            "members": row["members"] or 0,
            "revoked": row["revoked"],
            "skipped": row["skipped"],
        },
    )


async def _record_members(
    connection: Connection, bulk_revocation_id: str, selector: Selector
) -> int:
    from ca_signer.revocation.bulk_selection import select_members  # SQLAlchemy, when needed

    return await select_members(connection, bulk_revocation_id, selector)
