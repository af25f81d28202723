"""Forward revocations to the upstream CA that issued, with retries.

The ledger's row counts from its commit, as for every issuer: front ends refuse the certificate at
once. Relying parties read the upstream CA's CRL, so it has to revoke as well. A hold is not
forwarded: upstream CAs can rarely release one.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Callable, Mapping

import asyncpg

from ca_signer.upstream import metrics
from ca_signer.upstream.issuer import UpstreamIssuer
from ca_signer.upstream.plugin import Refused, Retryable, Unknown
from estcore.errors import Unavailable
from estcore.runtime.database import Database
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop

log = logging.getLogger(__name__)

_LIMIT = 20
_FIRST_S, _LONGEST_S = 5, 3600
_OUTSTANDING = ("due", "refused", "impossible")

_COLLECT = """insert into upstream_revocation
  (certificate_sha256, issuance_id, issuer_id, certificate, reason)
select certificate_sha256, issuance_id, issuer_id, certificate, revocation_reason from issuance i
where issuer_id = any($1::text[]) and revoked_at is not null and certificate is not null
  and revocation_reason <> 'certificateHold' and not_after > now()
  and not exists (select 1 from upstream_revocation u
    where u.certificate_sha256 = i.certificate_sha256)
on conflict do nothing"""

_TAKE = """update upstream_revocation set attempts = attempts + 1, next_at = now() + $2::interval
where certificate_sha256 in (
  select certificate_sha256 from upstream_revocation
  where state = 'due' and issuer_id = any($1::text[]) and next_at <= now()
  order by next_at limit $3 for update skip locked)
returning *"""


class UpstreamRevocations:
    """Any number of processes may run it; a revocation made twice is one."""

    def __init__(
        self,
        database: Database,
        issuers: Mapping[str, UpstreamIssuer],
        *,
        lease_s: int,
        every_s: float,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._database = database
        self._issuers = issuers
        self._lease = dt.timedelta(seconds=lease_s)
        self._every_s = every_s
        self._changed = changed

    async def run(self, stop: asyncio.Event) -> None:
        """Pass revocations on until ``stop``; a job of its own, for upstream CAs are slow."""
        while not await sleep_or_stop(stop, self._every_s):
            try:
                await self.sweep()
            except Unavailable as exc:
                log.warning("upstream revocations deferred", extra=fields(code=exc.code))

    async def sweep(self) -> None:
        """Pass on everything that is due.

        Raises:
            LedgerUnavailable: later.
        """
        async with self._database.connection() as connection:
            await connection.execute(_COLLECT, list(self._issuers))
            rows = await connection.fetch(_TAKE, list(self._issuers), self._lease, _LIMIT)
        for row in rows:
            await self._pass_on(row)
        await self._count()

    async def _pass_on(self, row: asyncpg.Record) -> None:
        issuer = self._issuers[row["issuer_id"]]
        if not issuer.plugin.can_revoke:
            await self._end(row, "impossible", "upstream.cannot_revoke")
            return
        try:
            async with asyncio.timeout(issuer.settings.timeout_s):
                await issuer.plugin.revoke(row["certificate"], row["reason"])
        except Refused as exc:
            await self._end(row, "refused", exc.code, exc.reason)
        except (Retryable, Unknown) as exc:
            await self._nak_all(row, exc.code, exc.reason)
        except TimeoutError:
            await self._nak_all(row, "upstream.timeout", "no answer in time")
        except Exception as exc:  # Bulkhead: a plug-in's mistake must not end the sweeper.
            log.error("upstream plug-in failed", exc_info=exc)
            await self._nak_all(row, "upstream.plugin_failed", "see the log")
        else:
            await self._end(row, "done", None)

    async def _end(
        self, row: asyncpg.Record, state: str, code: str | None, reason: str = ""
    ) -> None:
        async with self._database.connection() as connection:
            await connection.execute(
                "update upstream_revocation set state = $2, code = $3, ended_at = now() "
                "where certificate_sha256 = $1 and state = 'due'",
                row["certificate_sha256"],
                state,
                code,
            )
        certificate = fields(issuer=row["issuer_id"], certificate=row["certificate_sha256"].hex())
        if state == "done":
            log.info("revoked upstream", extra=certificate)
        else:
            more = fields(state=state, code=code, reason=reason)
            log.error(
                "upstream revocation failed permanently, revoke manually", extra=certificate | more
            )
        self._changed()

    async def _nak_all(self, row: asyncpg.Record, code: str, reason: str) -> None:
        pause = min(_FIRST_S * 2 ** min(row["attempts"] - 1, 12), _LONGEST_S)
        async with self._database.connection() as connection:
            await connection.execute(
                "update upstream_revocation set next_at = now() + $2::interval, code = $3 "
                "where certificate_sha256 = $1 and state = 'due'",
                row["certificate_sha256"],
                dt.timedelta(seconds=pause),
                code,
            )
        log.warning(
            "upstream revocation deferred",
            extra=fields(issuer=row["issuer_id"], code=code, reason=reason, again_in_s=pause),
        )

    async def _count(self) -> None:
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "select issuer_id, state, count(*) as count from upstream_revocation "
                "where issuer_id = any($1::text[]) and state <> 'done' group by 1, 2",
                list(self._issuers),
            )
        counts = {(row["issuer_id"], row["state"]): row["count"] for row in rows}
        for issuer_id in self._issuers:
            for state in _OUTSTANDING:
                count = counts.get((issuer_id, state), 0)
                metrics.REVOCATIONS.labels(issuer_id, state).set(count)
