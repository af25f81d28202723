"""Notices of PostgreSQL (LISTEN, NOTIFY): jobs look at tables that seldom change when they did.

A trigger sends the name of the table on the channel ``<schema>_changed`` when a transaction that
changed it commits. One connection of each process listens. A notice is a hint, never a promise: it
is lost while that connection is lost, and where a pooler shares sessions. So a job looks once a
second while no connection listens, and every 15 seconds in any case.
"""

from __future__ import annotations

import asyncio
import logging

import asyncpg

from estcore.runtime.database import UNAVAILABLE, connection_options
from estcore.runtime.service import event_or_stop, sleep_or_stop
from estcore.runtime.settings import DatabaseSettings

log = logging.getLogger(__name__)

LOOK_EVERY_S = 15.0
"""Seconds between two looks where no notice came."""
LOOK_AGAIN_S = 1.0
"""Seconds between two looks while work is open, or no connection listens."""
_CHECK_EVERY_S = 15.0
_CHECK_TIMEOUT_S = 5.0


class Notice:
    """Wakes the job of one table; several notices between two looks are one."""

    def __init__(self) -> None:
        self.listening = False
        """Whether a connection listens."""
        self._changed = asyncio.Event()

    def set(self) -> None:
        """Say that the table may be another now."""
        self._changed.set()

    async def wait(
        self, stop: asyncio.Event, *, work_open: bool = False, again_s: float = LOOK_AGAIN_S
    ) -> bool:
        """Wait until it is time to look; returns whether to stop.

        ``again_s`` seconds while ``work_open``, or while no connection listens.
        """
        pause = LOOK_EVERY_S if self.listening and not work_open else again_s
        stopping = await event_or_stop(stop, self._changed, pause)
        self._changed.clear()
        return stopping


class Notices:
    """The connection that listens, and the notices of the tables that have a trigger."""

    def __init__(self, settings: DatabaseSettings, service: str, schema: str) -> None:
        self._settings, self._service = settings, service
        self._channel = f"{schema}_changed"
        self._notices: dict[str, Notice] = {}

    def of(self, *tables: str) -> Notice:
        """Return the notice of some tables; one for each that asks."""
        notice = Notice()
        for table in tables:
            if table in self._notices:
                raise ValueError(f"{table} has a notice")
            self._notices[table] = notice
        return notice

    async def run(self, stop: asyncio.Event) -> None:
        """Listen until ``stop``; a connection that is lost is made again."""
        while not stop.is_set():
            try:
                await self._listen(stop)
            except (*UNAVAILABLE, asyncpg.PostgresError) as exc:
                log.debug("no notices", extra={"error": type(exc).__name__})
            finally:
                self._wake(listening=False)
            await sleep_or_stop(stop, LOOK_AGAIN_S)

    async def _listen(self, stop: asyncio.Event) -> None:
        connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
            **connection_options(self._settings, f"{self._service}-notices")
        )
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())
        try:
            await connection.add_listener(self._channel, self._received)
            # What changed before this connection listened.
            self._wake(listening=True)
            while not (stop.is_set() or lost.is_set()):
                await event_or_stop(stop, lost, _CHECK_EVERY_S)
                if not stop.is_set() and not lost.is_set():
                    # A connection that ended unseen would leave every job with long pauses.
                    await connection.fetchval("select 1", timeout=_CHECK_TIMEOUT_S)
        finally:
            connection.terminate()

    def _received(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        if notice := self._notices.get(str(payload)):
            notice.set()

    def _wake(self, *, listening: bool) -> None:
        for notice in set(self._notices.values()):
            notice.listening = listening
            notice.set()
