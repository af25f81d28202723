"""Delivery to one sink: reads the log behind a cursor, at least once, in order.

The table is the queue: a sink that is unavailable costs nothing but lag, and replay is moving its
cursor back. The cursor moves when the octets are on their way and no alert or EOF was read;
since even that proves no delivery, the last records are sent again after every reconnect, under
the same record ids. Each sink has a job of its own and stalls no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import logging
import random
from dataclasses import replace
from typing import Protocol

from audit import metrics, store, syslog
from audit.chain import spell
from audit.self_records import SelfRecords
from audit.settings import SinkSettings
from audit.syslog_tls import SyslogConnection
from estcore.clock import Clock, monotonic_s
from estcore.errors import LedgerUnavailable
from estcore.runtime.database import Database
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop

log = logging.getLogger(__name__)

_POLL_S = 0.5
_CURSOR_S = 2.0
"""How soon an idle sink notices that an operator moved its cursor."""
_GREETING_S = 0.2
_ALERT_WAIT_S = 0.02
_CHECKPOINTS = 50
_CHECKPOINTS_AGAIN = 3
_FIRST_BACKOFF_S = 0.25


class Log(Protocol):
    """What a forwarder knows of the writer beside it."""

    @property
    def leading(self) -> bool:
        """This process writes."""
        ...

    @property
    def size(self) -> int:
        """Records in the log."""
        ...

    @property
    def sealed(self) -> int:
        """Size of the newest checkpoint."""
        ...


class Forwarder:
    """The job of one sink; works only beside the writer, so two replicas do not both send."""

    def __init__(
        self,
        sink: SinkSettings,
        *,
        instance: str,
        database: Database,
        own: SelfRecords,
        clock: Clock,
        writer: Log,
    ) -> None:
        self.sink, self._instance, self._database = sink, instance, database
        self._own, self._clock, self._writer = own, clock, writer
        self._up: bool | None = None
        self._position = self._sealed = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until ``stop``; a sink that is unavailable is tried again with growing delays."""
        failures = 0
        while not stop.is_set():
            if not self._writer.leading:
                await sleep_or_stop(stop, _POLL_S)
                continue
            try:
                failures = await self._session(stop, failures)
            except LedgerUnavailable:
                await sleep_or_stop(stop, 1.0)
            except OSError as exc:
                failures += 1
                self._fault(exc)
                await self._measure()
                await sleep_or_stop(stop, self._backoff(failures))
        metrics.SINK_CONNECTED.labels(self.sink.name).set(0)

    def _backoff(self, failures: int) -> float:
        ceiling = min(self.sink.backoff_max_s, _FIRST_BACKOFF_S * 2 ** min(failures, 16))
        return random.uniform(ceiling / 2, ceiling)  # noqa: S311 - jitter

    def _fault(self, exc: OSError) -> None:
        reason = f"{type(exc).__name__}: {exc}"[:300]
        metrics.SINK_CONNECTED.labels(self.sink.name).set(0)
        metrics.SINK_FAULTS.labels(self.sink.name).inc()
        if self._up is False:
            return
        self._up = False
        log.warning("sink unavailable", extra=fields(sink=self.sink.name, error=reason))
        self._own.note(
            "audit.sink_fault",
            phase="error",
            severity="warning",
            reason=("sink.unavailable", reason),
            sink=self.sink.name,
        )

    def _recovered(self) -> None:
        metrics.SINK_CONNECTED.labels(self.sink.name).set(1)
        if self._up is False:
            log.info("sink available again", extra=fields(sink=self.sink.name))
            self._own.note("audit.sink_recovered", sink=self.sink.name)
        self._up = True

    async def _session(self, stop: asyncio.Event, failures: int) -> int:
        connection = await SyslogConnection.open(self.sink)
        try:
            await connection.await_loss(_GREETING_S)
            cursor = await self._resume()
            while not stop.is_set() and self._writer.leading:
                moved = await self._step(connection, cursor)
                if moved != cursor:
                    failures = 0
                cursor = moved
                self._recovered()
                cursor = await self._idle(connection, cursor, stop)
            return failures
        finally:
            await connection.close(1.0)

    async def _resume(self) -> store.Cursor:
        """Go back by what the last connection may have lost."""
        async with self._database.connection() as database:
            cursor = await store.cursor(database, self.sink.name)
            sealed = await store.checkpoint_before(
                database, cursor.checkpoint_size, _CHECKPOINTS_AGAIN
            )
        self._position = max(0, cursor.next_index - self.sink.resend)
        self._sealed = sealed if self.sink.resend else cursor.checkpoint_size
        return cursor

    async def _step(self, connection: SyslogConnection, cursor: store.Cursor) -> store.Cursor:
        async with self._database.connection() as database:
            rows = await store.records_from(database, self._position, self.sink.batch)
            end = rows[-1][0] + 1 if rows else self._position
            points = await store.checkpoints_between(database, self._sealed, end, _CHECKPOINTS)
        frames = [f for f in [await self._format(i, leaf) for i, leaf in rows] if f]
        frames += [
            syslog.checkpoint(size, note, spell(at), self._instance, self.sink.facility)
            for size, note, at in points
        ]
        if frames:
            await connection.send(b"".join(frames), self.sink.timeout_s)
            await connection.await_loss(_ALERT_WAIT_S)
            metrics.SINK_SENT.labels(self.sink.name).inc(len(frames))
        self._position = end
        self._sealed = points[-1][0] if points else self._sealed
        self._backlog(rows[-1][1] if rows else None)
        return await self._keep(cursor)

    async def _keep(self, cursor: store.Cursor) -> store.Cursor:
        advanced = replace(
            cursor,
            next_index=max(cursor.next_index, self._position),
            checkpoint_size=max(cursor.checkpoint_size, self._sealed),
        )
        if advanced == cursor:
            return cursor
        async with self._database.connection() as database:
            if await store.move_cursor(database, self.sink.name, advanced):
                return advanced
            return self._moved_by_operator(await store.cursor(database, self.sink.name))

    def _moved_by_operator(self, cursor: store.Cursor) -> store.Cursor:
        log.info("sink cursor moved", extra=fields(sink=self.sink.name, to=cursor.next_index))
        self._position, self._sealed = cursor.next_index, cursor.checkpoint_size
        return cursor

    async def _idle(
        self, connection: SyslogConnection, cursor: store.Cursor, stop: asyncio.Event
    ) -> store.Cursor:
        """Wait until there is something to send, which the writer beside it says without a query.

        Returns the cursor, another one where an operator moved it.
        """
        looked_at = monotonic_s()
        while self._writer.leading and not stop.is_set() and not self._behind():
            await connection.await_loss(_POLL_S)
            if monotonic_s() - looked_at < _CURSOR_S:
                continue
            looked_at = monotonic_s()
            async with self._database.connection() as database:
                now = await store.cursor(database, self.sink.name)
            if now.epoch != cursor.epoch:
                return self._moved_by_operator(now)
        return cursor

    def _behind(self) -> bool:
        return self._position < self._writer.size or self._sealed < self._writer.sealed

    async def _format(self, log_index: int, leaf: str) -> bytes | None:
        try:
            formatted = syslog.record(leaf, self.sink.facility)
        except Exception as exc:  # noqa: BLE001 - Bulkhead: it must not hold up those behind it.
            await self._dead(log_index, f"{type(exc).__name__}: {exc}"[:300])
            return None
        if formatted.omitted:
            metrics.SINK_TRIMMED.labels(self.sink.name).inc()
        if formatted.omitted == "details":
            await self._dead(log_index, "sent without details: larger than a message may be")
        return formatted.frame

    async def _dead(self, log_index: int, reason: str) -> None:
        metrics.SINK_DEAD.labels(self.sink.name).inc()
        log.error(
            "record truncated for the sink",
            extra=fields(sink=self.sink.name, log_index=log_index, reason=reason),
        )
        async with self._database.connection() as database:
            await store.add_dead_letter(database, self.sink.name, log_index, reason)

    async def _measure(self) -> None:
        """Measure what waits while there is no connection."""
        with contextlib.suppress(LedgerUnavailable):
            async with self._database.connection() as database:
                cursor = await store.cursor(database, self.sink.name)
                rows = await store.records_from(database, cursor.next_index, 1)
            self._position = cursor.next_index
            self._backlog(rows[0][1] if rows else None)

    def _backlog(self, leaf: str | None) -> None:
        lag = max(0, self._writer.size - self._position)
        age = 0.0
        if lag and leaf is not None:
            recorded = dt.datetime.fromisoformat(json.loads(leaf)["recorded_at"])
            age = max(0.0, (self._clock.now() - recorded).total_seconds())
        metrics.SINK_LAG.labels(self.sink.name).set(lag)
        metrics.SINK_AGE.labels(self.sink.name).set(age)
