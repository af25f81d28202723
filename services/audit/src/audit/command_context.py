"""What a verb of est-audit needs: the database, and a record of what it is about to do."""

from __future__ import annotations

import asyncio
import os
import pwd
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from audit.self_records import SelfRecords
from audit.settings import SCHEMA, SERVICE, Settings
from estcore.clock import SystemClock
from estcore.errors import BusUnavailable, LedgerUnavailable
from estcore.messages.audit import Actor, AuditBatch, Phase
from estcore.messages.envelope import encode
from estcore.messages.topics import audit_issue_topic
from estcore.runtime.boot import Detail
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.database import Database

_DEADLINE_S = 15


async def audited(
    settings: Settings, action: str, *, phase: Phase = "outcome", **details: Detail
) -> None:
    """Have the writer put on record what is about to be done, and by which user of this host.

    Raises:
        BusUnavailable: it cannot be put on record, so it is not done.
    """
    own = SelfRecords(settings.instance, SystemClock())
    record = own.record(action, details, phase=phase, severity="notice").model_copy(
        update={"actor": Actor(type="human", subject=local_user(), auth_method="local")}
    )
    message = Outgoing(
        audit_issue_topic(SERVICE), encode(AuditBatch(records=(record,))), record.record_id
    )
    try:
        async with asyncio.timeout(_DEADLINE_S):
            bus = await Bus.connect(settings.bus, SERVICE, settings.instance)
            try:
                await bus.publish_confirmed([message])
            finally:
                await bus.close()
    except TimeoutError as exc:
        raise BusUnavailable("the bus is unavailable, so this command cannot be audited") from exc


def local_user() -> str:
    """Return the user of this process as the host knows it: ``os:<name>``, or its number."""
    uid = os.getuid()
    try:
        return f"os:{pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"os:{uid}"


@asynccontextmanager
async def opened_database(settings: Settings) -> AsyncIterator[Database]:
    """Connect to the database for the length of a verb.

    Raises:
        LedgerUnavailable: PostgreSQL does not answer.
    """
    try:
        async with asyncio.timeout(_DEADLINE_S):
            database = await Database.connect(settings.database, SERVICE, SCHEMA)
    except TimeoutError as exc:
        raise LedgerUnavailable("PostgreSQL does not answer") from exc
    try:
        yield database
    finally:
        await database.close()
