"""What may change while the front end runs: policy, users, server certificate.

A loop looks at the files. A good change is taken over at once, for new connections and
requests; a bad one is refused, told and audited, and what was in force stays so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from est_frontend import metrics
from est_frontend.trail import Trail
from estcore.errors import ConfigurationError
from estcore.policy.document import PolicyDocument
from estcore.runtime.logs import fields
from estcore.runtime.service import until

log = logging.getLogger(__name__)


@dataclass
class Live:
    """The policy in force."""

    policy: PolicyDocument


@dataclass
class Watched:
    """Files that belong together, and how they are taken over (raises ConfigurationError)."""

    what: str
    files: tuple[Path, ...]
    take: Callable[[], None]
    seen: tuple[tuple[int, int, int], ...] = ()

    def changed(self) -> bool:
        """Tell whether a file is another one than at the last look."""
        now = tuple(_stamp(path) for path in self.files)
        if now == self.seen:
            return False
        self.seen = now
        return True


class Reloader:
    """Looks at the files every few seconds."""

    def __init__(self, watched: list[Watched], trail: Trail, *, every_s: float) -> None:
        self._watched = watched
        self._trail = trail
        self._every_s = every_s
        for one in watched:
            one.changed()

    async def run(self, stop: asyncio.Event) -> None:
        """Look until ``stop``."""
        while not await until(stop, self._every_s):
            for one in self._watched:
                if one.changed():
                    self.take(one)

    def take(self, one: Watched) -> None:
        """Take one change over, or refuse it."""
        try:
            one.take()
        except ConfigurationError as exc:
            metrics.RELOADS.labels(one.what, "refused").inc()
            log.error("change refused", extra=fields(what=one.what, reason=exc.reason))
            self._trail.event("config.refused", what=one.what, reason=exc.reason[:300])
            return
        metrics.RELOADS.labels(one.what, "taken").inc()
        log.info("change taken over", extra=fields(what=one.what))
        self._trail.event("config.changed", what=one.what)


def _stamp(path: Path) -> tuple[int, int, int]:
    # Kubernetes swaps a link, editors rename: the inode says more than the time alone.
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_mtime_ns, found.st_size)
