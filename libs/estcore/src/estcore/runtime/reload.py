"""Files that may change while a service runs: policy, profiles, certificates, users.

A loop looks at them. A good change is applied at once; a bad one is refused, told and audited,
and what was in force stays so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import Counter

from estcore.errors import ConfigurationError
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop

log = logging.getLogger(__name__)

_REASON_LIMIT = 300
Report = Callable[[str, dict[str, str]], Awaitable[None]]
"""Told (action, details) of every change: ``config.changed`` or ``config.refused``."""


@dataclass
class Watched:
    """Files that belong together, and how they are applied (raises ConfigurationError)."""

    what: str
    files: tuple[Path, ...]
    take: Callable[[], None]
    seen: tuple[tuple[int, int, int], ...] = ()

    def changed(self) -> bool:
        """Return whether a file is another one than at the last look."""
        now = tuple(_stamp(path) for path in self.files)
        if now == self.seen:
            return False
        self.seen = now
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
        for one in watched:
            one.changed()

    async def run(self, stop: asyncio.Event) -> None:
        """Look until ``stop``."""
        while not await sleep_or_stop(stop, self._every_s):
            for one in self._watched:
                if one.changed():
                    await self._take(one)

    async def _take(self, one: Watched) -> None:
        try:
            one.take()
        except ConfigurationError as exc:
            self._counter.labels(one.what, "refused").inc()
            log.error(
                "configuration change rejected", extra=fields(what=one.what, reason=exc.reason)
            )
            details = {"what": one.what, "reason": exc.reason[:_REASON_LIMIT]}
            await self._report("config.refused", details)
            return
        self._counter.labels(one.what, "taken").inc()
        log.info("configuration reloaded", extra=fields(what=one.what))
        await self._report("config.changed", {"what": one.what})


def _stamp(path: Path) -> tuple[int, int, int]:
    # Kubernetes swaps a link, editors rename: the inode says more than the time alone.
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_mtime_ns, found.st_size)
