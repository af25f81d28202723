"""Follows the stream of renewal information and keeps it in the store.

The stream is read by direct gets, from where the store ends, and every message is verified. A
marker on the stream says that everything of an epoch is there; a different epoch means that
renewal filled the stream again, so it is read from its start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace

from est_frontend import metrics
from est_frontend.renewal_info.store import (
    Progress,
    RenewalInfoStore,
    StoreDamaged,
    StoredEntry,
    StoreFull,
)
from est_frontend.settings import RenewalInfoSettings
from estcore.clock import Clock, monotonic_s
from estcore.errors import BusUnavailable, MalformedRequest, Unavailable
from estcore.messages.envelope import decode
from estcore.messages.renewal_info import RenewalInfoComplete, RenewalInfoEntry, decode_entries
from estcore.messages.topics import (
    PKI_RENEWAL_INFO,
    RENEWAL_INFO_COMPLETE_TOPIC,
    RENEWAL_INFO_TOPICS,
)
from estcore.runtime.bus import Bus
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop
from estcore.runtime.stored_messages import Stored, last_sequence, last_values, stored_from

log = logging.getLogger(__name__)

_MESSAGES = 16
"""Messages fetched at once, each of at most 256 KiB."""
_ENTRIES_AT_ONCE = 2000
_LOOKS = 10
"""So many looks only ask what is new; then whether it is still the stream that was read."""
_COUNT_EVERY_S = 300
_DAY_S = 86_400


class RenewalInfoFollower:
    """Keeps the store as new as the stream, and finds entries in it."""

    def __init__(
        self, bus: Bus, store: RenewalInfoStore, settings: RenewalInfoSettings, clock: Clock
    ) -> None:
        self._bus, self._store, self._settings, self._clock = bus, store, settings, clock
        self._progress: Progress | None = None
        self._complete = False
        self._damage: StoreDamaged | None = None
        self._fault: str | None = None
        self._compared_at: float | None = None
        self._looks = 0
        self._counted_at: float | None = None
        self._searched = b""
        metrics.RENEWAL_INFO_AGE.set_function(self._age_s)

    @property
    def complete(self) -> bool:
        """Everything of the stream was read once, so what is not here is unknown."""
        return self._complete and self._damage is None

    async def find(self, key: bytes) -> StoredEntry | None:
        """Return the entry of a key.

        Raises:
            StoreDamaged: the store cannot be read; it is rebuilt.
            StoreClosed: it is not open yet.
        """
        try:
            return await self._store.find(key)
        except StoreDamaged as exc:
            self._damage = exc  # seen by the next step, which rebuilds the store
            raise

    async def run(self, stop: asyncio.Event) -> None:
        """Follow until stopped. No fault ends it: others are served without."""
        try:
            while not stop.is_set():
                await self._step(stop)
                await sleep_or_stop(stop, self._settings.poll_s)
        finally:
            with contextlib.suppress(Unavailable):
                await self._store.close()
            self._store.stop()

    async def _step(self, stop: asyncio.Event) -> None:
        try:
            await self._open()
            if not self._bus.connected:
                return  # the bus reports that itself; what is here is answered
            await self.catch_up(stop)
            if not self._looks:
                await self._clean()
        except StoreDamaged as exc:
            self._damage = exc
            self._report(exc)
        except StoreFull as exc:
            self._complete = False
            self._report(exc)
        except BusUnavailable as exc:
            self._report(exc)
        else:
            if self._fault is not None:
                log.info("renewal information is followed again")
            self._fault = None

    async def _open(self) -> None:
        """Open the store, or make a damaged one anew.

        Raises:
            StoreDamaged: it cannot be created.
        """
        if self._damage is None and self._progress is not None:
            return
        self._complete = False
        try:
            self._progress = await (self._store.rebuild() if self._damage else self._store.open())
        except StoreDamaged as exc:
            self._report(exc)
            self._progress = await self._store.rebuild()
        self._damage = None

    async def catch_up(self, stop: asyncio.Event) -> None:
        """Read the stream from the store's position to its end.

        Raises:
            BusUnavailable: the stream does not answer.
            StoreDamaged, StoreFull: the entries cannot be kept.
        """
        self._looks = (self._looks + 1) % _LOOKS
        if self._complete and self._looks:
            while await self._read_batch() and not stop.is_set():
                pass
            self._compared_at = monotonic_s()
            return
        marker = await self._marker()
        end = await last_sequence(self._bus, PKI_RENEWAL_INFO, RENEWAL_INFO_TOPICS)
        self._begin(marker)
        while not stop.is_set():
            lag = end - self._known.position
            metrics.RENEWAL_INFO_LAG.set(max(lag, 0))
            if lag <= 0 or not await self._read_batch():
                break
        self._complete = marker is not None and self._known.epoch == str(marker.epoch)
        self._compared_at = monotonic_s()

    @property
    def _known(self) -> Progress:
        assert self._progress is not None  # noqa: S101 - opened before anything is read
        return self._progress

    def _begin(self, marker: RenewalInfoComplete | None) -> None:
        """Read from the start where the stream is of an epoch that is new here."""
        epoch = None if marker is None else str(marker.epoch)
        if epoch is not None and epoch not in (self._known.epoch, self._known.reading):
            log.info("renewal information is read from the start", extra=fields(epoch=epoch))
            self._progress = self._known.restart(epoch)

    async def _marker(self) -> RenewalInfoComplete | None:
        values = await last_values(self._bus, PKI_RENEWAL_INFO, RENEWAL_INFO_COMPLETE_TOPIC)
        return _marker_in(values[0]) if values else None

    async def _read_batch(self) -> bool:
        """Read and keep one batch of messages; False where there is nothing more."""
        stored, following = await stored_from(
            self._bus,
            PKI_RENEWAL_INFO,
            RENEWAL_INFO_TOPICS,
            self._known.position + 1,
            batch=_MESSAGES,
        )
        progress, entries = self._known, list[RenewalInfoEntry]()
        for message in stored:
            marker = _marker_in(message)
            if marker is not None:
                progress = replace(progress, epoch=str(marker.epoch), reading=None)
            entries += _entries_in(message)
            progress = replace(progress, position=message.sequence)
            if len(entries) >= _ENTRIES_AT_ONCE:
                await self._keep(entries, progress)
                entries = []
        if not following:
            return False
        await self._keep(entries, replace(progress, position=following - 1))
        return True

    async def _keep(self, entries: list[RenewalInfoEntry], progress: Progress) -> None:
        await self._store.put(entries, progress)
        self._progress = progress
        metrics.RENEWAL_INFO_APPLIED.inc(len(entries))

    async def _clean(self) -> None:
        """Drop what expired long ago from a part of the store, and count the entries."""
        kept_s = self._settings.expired_days * _DAY_S
        before = int(self._clock.now().timestamp()) // _DAY_S * _DAY_S - kept_s
        self._searched = await self._store.drop_expired(self._searched, before)
        now = monotonic_s()
        if self._counted_at is None or now - self._counted_at > _COUNT_EVERY_S:
            self._counted_at = now
            metrics.RENEWAL_INFO_ENTRIES.set(await self._store.count())

    def _report(self, error: Unavailable) -> None:
        """Log a fault once."""
        if self._fault != error.reason:
            level = logging.WARNING if isinstance(error, BusUnavailable) else logging.ERROR
            text = "renewal information not followed"
            log.log(level, text, extra=fields(reason=error.reason, code=error.code))
        self._fault = error.reason

    def _age_s(self) -> float:
        return -1 if self._compared_at is None else monotonic_s() - self._compared_at


def _marker_in(message: Stored) -> RenewalInfoComplete | None:
    if message.topic != RENEWAL_INFO_COMPLETE_TOPIC:
        return None
    try:
        return decode(RenewalInfoComplete, message.payload)
    except MalformedRequest as exc:
        _refused(message, exc)
        return None


def _entries_in(message: Stored) -> list[RenewalInfoEntry]:
    if message.topic == RENEWAL_INFO_COMPLETE_TOPIC:
        return []
    try:
        return decode_entries(message.topic.rsplit(".", 1)[1], message.payload)
    except MalformedRequest as exc:
        _refused(message, exc)
        return []


def _refused(message: Stored, error: MalformedRequest) -> None:
    log.error(
        "renewal information refused",
        extra=fields(topic=message.topic[:200], sequence=message.sequence, error=error.reason),
    )
