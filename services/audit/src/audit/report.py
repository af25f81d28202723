"""The activity report of a period from the running log, with a signed manifest."""

from __future__ import annotations

import asyncio
import datetime as dt

from audit import term_store
from audit.packed_leaf import LEAF, unpack
from audit.term_store import CHUNK_SPAN
from estcore.errors import Conflict, ESTSuiteError
from estcore.runtime.database import Connection
from estcore.tlog.activity import ActivityReport, Period
from estcore.tlog.checkpoint import parse_signed
from estcore.tlog.leaf import read_leaf

_LEAVES = f"""
select {LEAF} from record where log_index >= $1 and recorded_at >= $2 and recorded_at < $3
order by log_index
"""  # noqa: S608 - our own expression
_AT_ONCE = 100
_COVERED = "select note from checkpoint where size >= $1 order by size limit 1"


async def build(
    connection: Connection, origin: str, period: Period, now: dt.datetime
) -> tuple[dict[str, bytes], str]:
    """Return the files of a report, and the text of its manifest.

    Raises:
        Conflict: the period is not over, or no checkpoint covers it yet.
    """
    if period.until > now:
        raise Conflict("the period is not over", code="report.unsealed")
    report = ActivityReport(origin, period)
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        await connection.execute("set local statement_timeout = 0")
        first, count = await term_store.index_until(connection, period.since - CHUNK_SPAN), 0
        async for row in connection.cursor(
            _LEAVES, first, period.since, period.until, prefetch=1000
        ):
            count += 1
            if count % _AT_ONCE == 0:
                await asyncio.sleep(0)  # the writer has its turn
            try:
                report.add(read_leaf(unpack(row[0]).encode()))
            except ESTSuiteError:
                continue  # What a superuser wrote may be no record. Verification reports it.
        note = await connection.fetchval(_COVERED, max(report.end, 1))
    if note is None:
        raise Conflict(
            "no checkpoint covers the period yet; ask again in a minute", code="report.unsealed"
        )
    files = await asyncio.to_thread(report.files)
    return files, report.manifest(files, parse_signed(str(note)).checkpoint)
