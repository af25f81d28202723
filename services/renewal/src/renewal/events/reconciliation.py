"""Reconciliation of renewal's certificates with the ledger, window by window."""

from __future__ import annotations

import datetime as dt
import logging

from estcore.clock import SystemClock
from estcore.messages.events import WINDOW_DIGEST_SQL, WindowSum
from estcore.runtime.bus import Bus
from estcore.runtime.database import Database
from estcore.runtime.logs import fields
from estcore.runtime.reconciliation import LedgerComparison, Verdict, WindowComparison
from renewal.metrics import (
    WINDOWS_CHECKED,
    WINDOWS_DIFFERENT,
    WINDOWS_GIVEN_UP,
    WINDOWS_REQUESTED,
)
from renewal.settings import SERVICE, WindowSettings

log = logging.getLogger(__name__)

_SUM = f"""
select count(*) as count, {WINDOW_DIGEST_SQL} as digest
from certificate where issued_at >= $1 and issued_at < $2
"""  # noqa: S608 - our constant


def window_comparison(settings: WindowSettings, database: Database, bus: Bus) -> WindowComparison:
    """Return the comparison of the table of certificates with the ledger's windows."""

    async def count_and_digest(start: dt.datetime, end: dt.datetime) -> tuple[int, str]:
        async with database.connection() as connection:
            row = await connection.fetchrow(_SUM, start, end)
        assert row is not None  # noqa: S101 - an aggregate has one row
        return row["count"], row["digest"].bytes.hex() if row["count"] else ""

    return WindowComparison(
        bus=bus,
        requester=SERVICE,
        count_and_digest=count_and_digest,
        patience=settings.patience,
        max_requests=settings.max_requests,
    )


def ledger_comparison(settings: WindowSettings, database: Database, bus: Bus) -> LedgerComparison:
    """Return the job that asks for the sums of all windows."""
    comparison = window_comparison(settings, database, bus)
    return LedgerComparison(
        bus=bus,
        database=database,
        clock=SystemClock(),
        requester=SERVICE,
        rows="certificate",
        handle=lambda window: check_window(comparison, window),
        every_s=settings.ledger_every_s,
        recheck_s=settings.recheck_s,
    )


async def check_window(comparison: WindowComparison, window: WindowSum) -> bool:
    """Compare a window and count what came of it; True when it is done.

    Raises:
        Unavailable: database or ca-signer unavailable.
    """
    WINDOWS_CHECKED.inc()
    verdict, _ = await comparison.compare(window)
    if verdict is not Verdict.EQUAL:
        WINDOWS_DIFFERENT.inc()
    if verdict is Verdict.REQUESTED:
        WINDOWS_REQUESTED.inc()
    if verdict is Verdict.GIVEN_UP:
        WINDOWS_GIVEN_UP.inc()
        log.error(
            "reconciliation window differs from the ledger",
            extra=fields(start=window.start.isoformat()),
        )
    return verdict.final
