"""Files that may change while a service runs: policy, profiles, certificates, users.

A loop polls them. A valid change is applied at once; an invalid one that is the same at the next
look is refused, logged and audited, and the previous content stays in force.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import Counter

from estcore.errors import ConfigurationError
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop

log = logging.getLogger(__name__)

_REASON_LIMIT = 300
Report = Callable[[str, dict[str, str]], Awaitable[None]]
"""Called with (action, details) of every change: ``config.changed`` or ``config.refused``."""
Stamps = tuple[tuple[int, int, int], ...]


@dataclass
class Watched:
    """Files that belong together, and how they are applied (raises ConfigurationError).

    ``stamps`` are those of the files before they were read first; without them, of now.
    """

    what: str
    files: tuple[Path, ...]
    take: Callable[[], None]
    stamps: Stamps = ()

    def changed(self) -> bool:
        """Return whether a file is another one than at the last look."""
        now = file_stamps(self.files)
        if now == self.stamps:
            return False
        self.stamps = now
        return True


class Reloader:
    """Looks at the files every few seconds."""

    def __init__(
        self, watched: list[Watched], report: Report, counter: Counter, *, every_s: float
    ) -> None:
        """``counter`` has the labels what and result."""
        self._watched = watched
        self._report = report
        self._counter = counter
        self._every_s = every_s
        self._doubtful: set[str] = set()
        """What could not be used at the last look."""
        for watch in watched:
            if not watch.stamps:
                watch.changed()

    async def run(self, stop: asyncio.Event) -> None:
        """Look until ``stop``."""
        while not await sleep_or_stop(stop, self._every_s):
            await self.look()

    async def look(self) -> None:
        """Look once, and take what has changed."""
        for watch in self._watched:
            changed = watch.changed()
            if changed or watch.what in self._doubtful:
                await self._take(watch, unchanged=not changed)

    async def _take(self, watch: Watched, *, unchanged: bool) -> None:
        """Take files; they are refused where they are the same for two looks (``unchanged``).

        A certificate and its key are replaced one after the other, and a look may come between.
        """
        doubtful = watch.what in self._doubtful
        self._doubtful.discard(watch.what)
        try:
            watch.take()
        except ConfigurationError as exc:
            if not (doubtful and unchanged):
                self._doubtful.add(watch.what)
                return
            self._counter.labels(watch.what, "refused").inc()
            log.error(
                "configuration change rejected", extra=fields(what=watch.what, reason=exc.reason)
            )
            details = {"what": watch.what, "reason": exc.reason[:_REASON_LIMIT]}
            await self._report("config.refused", details)
            return
        self._counter.labels(watch.what, "taken").inc()
        log.info("configuration reloaded", extra=fields(what=watch.what))
        await self._report("config.changed", {"what": watch.what})


def file_stamps(files: Iterable[Path]) -> Stamps:
    """Return what says that files are others; take it before they are read."""
    return tuple(_stamp(path) for path in files)


def _stamp(path: Path) -> tuple[int, int, int]:
    # Kubernetes swaps a link, editors rename: the inode says more than the time alone.
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_ino, status.st_mtime_ns, status.st_size)
