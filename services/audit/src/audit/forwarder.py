"""Delivery to one sink: reads the log behind a cursor, at least once, in order.

The table is the queue: a sink that is unavailable costs nothing but lag, and replay is moving its
cursor back. The cursor moves when the transport returns: the receiver has acknowledged the entries,
or, where it acknowledges nothing, they are on their way and no alert or EOF was read. Since that
proves no delivery, the last entries are sent again after every reconnect, under the same record
ids. What a receiver refuses for good is a dead letter, found by halving the batch, and the cursor
moves on. Each sink has a job of its own and stalls no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import logging
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from audit import metrics, store
from audit.chain import spell
from audit.formats.entry import Entry
from audit.self_records import SelfRecords
from audit.sink_settings import SinkSettings, SyslogSink
from audit.transports.transport import BatchRefused, Outcome, Prepared, SinkBusy, Transport
from estcore.clock import Clock, monotonic_s
from estcore.errors import LedgerUnavailable
from estcore.runtime.database import Database
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop
from estcore.runtime.tracing import Tracing

log = logging.getLogger(__name__)

_POLL_S = 0.5
_SPANS = 32
_TRACE_ID = re.compile(r'"trace_id":"([0-9a-f]{32})"')
_CURSOR_S = 2.0
"""How soon an idle sink notices that an operator moved its cursor."""
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

    def __init__(  # noqa: PLR0913 - the parts of the service, joined in main
        self,
        sink: SinkSettings,
        *,
        instance: str,
        database: Database,
        own: SelfRecords,
        clock: Clock,
        writer: Log,
        connect: Callable[[SinkSettings], Transport],
        tracing: Tracing | None = None,
    ) -> None:
        """``connect`` returns a transport that is not open yet."""
        self._tracing = tracing
        self.sink, self._instance, self._database = sink, instance, database
        self._connect = connect
        self._resend = sink.resend if isinstance(sink, SyslogSink) else 0
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
                await sleep_or_stop(stop, self._pause(exc, failures))
        metrics.SINK_CONNECTED.labels(self.sink.name).set(0)

    def _pause(self, exc: OSError, failures: int) -> float:
        wished = exc.retry_after_s if isinstance(exc, SinkBusy) else None
        if wished is not None:
            return min(wished, self.sink.backoff_max_s)
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
        connection = self._connect(self.sink)
        try:
            await connection.open()
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
            await connection.close()

    async def _resume(self) -> store.Cursor:
        """Go back by what the last connection may have lost."""
        async with self._database.connection() as database:
            cursor = await store.cursor(database, self.sink.name)
            sealed = await store.checkpoint_before(
                database, cursor.checkpoint_size, _CHECKPOINTS_AGAIN
            )
        self._position = max(0, cursor.next_index - self._resend)
        self._sealed = sealed if self._resend else cursor.checkpoint_size
        return cursor

    async def _step(self, connection: Transport, cursor: store.Cursor) -> store.Cursor:
        async with self._database.connection() as database:
            rows = await store.records_from(database, self._position, self.sink.batch)
            end = rows[-1][0] + 1 if rows else self._position
            points = await store.checkpoints_between(database, self._sealed, end, _CHECKPOINTS)
        prepared = [p for p in [await self._record(connection, *row) for row in rows] if p]
        prepared += [self._checkpoint(connection, *point) for point in points]
        if prepared:
            with self._spans([leaf for _, leaf in rows]):
                outcome = await _deliver(connection, prepared)
            await self._bury(prepared, outcome)
            metrics.SINK_SENT.labels(self.sink.name).inc(len(prepared) - len(outcome.refused))
        self._position = end
        self._sealed = points[-1][0] if points else self._sealed
        self._backlog(rows[-1][1] if rows else None)
        return await self._keep(cursor)

    @contextlib.contextmanager
    def _spans(self, leaves: Sequence[str]) -> Iterator[None]:
        """Record the delivery in the traces of the records, at most so many at once."""
        with contextlib.ExitStack() as spans:
            if self._tracing is not None and self._tracing.recording:
                found = [m.group(1) for leaf in leaves for m in _TRACE_ID.finditer(leaf)]
                for trace_id in list(dict.fromkeys(found))[:_SPANS]:
                    spans.enter_context(
                        self._tracing.in_trace("siem deliver", trace_id, sink=self.sink.name)
                    )
            yield

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
        self, connection: Transport, cursor: store.Cursor, stop: asyncio.Event
    ) -> store.Cursor:
        """Wait until there is something to send, which the writer beside it says without a query.

        Returns the cursor, another one where an operator moved it.
        """
        looked_at = monotonic_s()
        while self._writer.leading and not stop.is_set() and not self._behind():
            await connection.watch(_POLL_S)
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

    async def _record(self, connection: Transport, log_index: int, leaf: str) -> Prepared | None:
        try:
            prepared = connection.prepare(Entry.of_record(log_index, leaf))
        except Exception as exc:  # noqa: BLE001 - Bulkhead: it must not hold up those behind it.
            await self._dead(log_index, f"{type(exc).__name__}: {exc}"[:300])
            return None
        if prepared.omitted:
            metrics.SINK_TRIMMED.labels(self.sink.name).inc()
        if "all" in prepared.omitted:
            await self._dead(log_index, "sent as its envelope: larger than a message may be")
        return prepared

    def _checkpoint(
        self, connection: Transport, size: int, note: str, signed_at: dt.datetime
    ) -> Prepared:
        entry = Entry.of_checkpoint(size, note, spell(signed_at), self._instance)
        return connection.prepare(entry)

    async def _bury(self, prepared: Sequence[Prepared], outcome: Outcome) -> None:
        """Note what the receiver refused for good."""
        for one in prepared:
            reason = outcome.refused.get(one.key)
            if reason is not None and one.log_index is not None:
                await self._dead(one.log_index, f"refused by the receiver: {reason}"[:300])

    async def _dead(self, log_index: int, reason: str) -> None:
        metrics.SINK_DEAD.labels(self.sink.name).inc()
        log.error(
            "record not delivered whole",
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


async def _deliver(connection: Transport, prepared: Sequence[Prepared]) -> Outcome:
    """Deliver entries in order; a batch that is refused is halved until the entry is found.

    Raises:
        OSError: the receiver cannot be reached, or not now.
    """
    try:
        return await connection.deliver(prepared)
    except BatchRefused as exc:
        if len(prepared) == 1:
            return Outcome({prepared[0].key: str(exc)})
    middle = len(prepared) // 2
    first = await _deliver(connection, prepared[:middle])
    second = await _deliver(connection, prepared[middle:])
    return Outcome({**first.refused, **second.refused})
