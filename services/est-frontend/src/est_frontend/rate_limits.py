"""How often: token buckets per source, identity and label; growing pauses after failures.

All of it is memory of this process. A front end that restarts forgets, several count by
themselves; what must hold across all of them (quotas, single use) is in the signer's ledger.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field

from est_frontend.fair_table import FairTable, network_of
from estcore.clock import monotonic_s
from estcore.errors import RequestRejected

_ENTRIES = 50_000
_MOST_WAITING = 100


class TooOften(RequestRejected):
    """Rate limit exceeded; ``retry_after_s`` are the seconds until the next attempt."""

    default_code = "rate.limited"

    def __init__(self, reason: str, retry_after_s: int, *, code: str = "rate.limited") -> None:
        super().__init__(reason, code=code)
        self.retry_after_s = retry_after_s


@dataclass
class _Bucket:
    level: float
    at: float


class Buckets:
    """Token buckets by name: ``rate`` a second, ``burst`` at once."""

    def __init__(
        self, what: str, *, rate: float = 1, burst: float = 1, capacity: int = _ENTRIES
    ) -> None:
        self._what = what
        self._rate, self._burst = rate, burst
        self._buckets: FairTable[_Bucket] = FairTable(capacity)

    def take(self, name: str, rate: float | None = None) -> None:
        """Count one request; ``rate`` is that of this name, with two seconds' worth at once.

        Raises:
            TooOften: the bucket is empty.
        """
        now = monotonic_s()
        burst = self._burst if rate is None else max(1.0, 2 * rate)
        rate = rate or self._rate
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = _Bucket(burst, now)
            self._buckets.put(name, network_of(name), bucket)
        level = min(burst, bucket.level + (now - bucket.at) * rate)
        bucket.at = now
        if level < 1:
            bucket.level = level
            wait = max(1, math.ceil((1 - level) / rate))
            raise TooOften(f"too many requests of this {self._what}", wait)
        bucket.level = level - 1


@dataclass(eq=False)
class _Failures:
    network: str
    count: int = 0
    until: float = 0.0
    """No attempt before."""
    running: int = 0
    waiting: list[asyncio.Future[None]] = field(default_factory=list)


@dataclass(eq=False)
class Attempt:
    """An attempt under way, counted as a failure until it has succeeded."""

    backoff: Backoff
    name: str
    _open: bool = field(default=True, init=False)

    def failed(self) -> None:
        """Wrong credentials: the pause doubles with each failure beyond the free ones."""
        self._end(failed=True)

    def withdrawn(self) -> None:
        """Right credentials, or nothing was tried; earlier failures still count."""
        self._end(failed=False)

    def forgive(self) -> None:
        """Right credentials: forget the failures of this name as well."""
        self._end(failed=False)
        self.backoff.forget(self.name)

    def _end(self, *, failed: bool) -> None:
        if self._open:
            self._open = False
            self.backoff.end(self.name, failed=failed)


class Backoff:
    """Growing pauses after failed authentication, by name (an account at a source, a source).

    An attempt counts from its beginning: of many guesses at once, no more are tried than one after
    the other would have been. Where the free ones are all under way, one more waits for them:
    clients that know the secret do not get in one another's way.

    Names that must pause are kept apart from the others, and each kind in a ``FairTable``: a pause
    is not forgotten because many others fail for the first time.
    """

    def __init__(self, *, free: int, longest_s: float, capacity: int = _ENTRIES) -> None:
        self._free, self._longest_s = free, longest_s
        self._few: FairTable[_Failures] = FairTable(capacity)
        self._many: FairTable[_Failures] = FairTable(capacity)
        self._under_way: dict[str, _Failures] = {}

    def check(self, name: str) -> None:
        """See whether a name must pause; before anything costly is looked at.

        Raises:
            TooOften: retry later.
        """
        failures = self._known(name)
        if failures is not None and failures.until > (now := monotonic_s()):
            raise _too_often(failures.until - now)

    async def begin(self, name: str, source: str) -> Attempt:
        """Begin an attempt; waits while as many are under way as may still fail.

        Raises:
            TooOften: the name must pause, or too many wait.
        """
        while not self._may_begin(name, source):
            failures = self._under_way[name]
            if len(failures.waiting) >= _MOST_WAITING:
                raise _too_often(1)
            waiting = asyncio.get_running_loop().create_future()
            failures.waiting.append(waiting)
            await waiting
        return self._begin(name, source)

    def begin_now(self, name: str, source: str) -> Attempt:
        """Begin an attempt.

        Raises:
            TooOften: the name must pause, or as many are under way as may still fail.
        """
        if not self._may_begin(name, source):
            raise _too_often(1)
        return self._begin(name, source)

    def _may_begin(self, name: str, source: str) -> bool:
        self.check(name)
        failures = self._entry(name, source)
        return failures.running == 0 or failures.count + failures.running < self._free

    def _begin(self, name: str, source: str) -> Attempt:
        failures = self._entry(name, source)
        failures.running += 1
        self._under_way[name] = failures
        return Attempt(self, name)

    def end(self, name: str, *, failed: bool) -> None:
        """End an attempt that began; ``Attempt`` calls this once."""
        failures = self._under_way[name]
        failures.running -= 1
        if failures.running == 0:
            del self._under_way[name]
        if failed:
            self._count(name, failures)
        waiting, failures.waiting = failures.waiting, []
        for one in waiting:
            if not one.done():
                one.set_result(None)

    def forget(self, name: str) -> None:
        """Forget the failures of a name."""
        for table in (self._few, self._many):
            table.pop(name)
        if name in self._under_way:
            self._under_way[name].count = 0

    def _count(self, name: str, failures: _Failures) -> None:
        failures.count += 1
        excess = failures.count - self._free
        pause = 0.0 if excess <= 0 else min(self._longest_s, 2.0 ** min(excess - 1, 30))
        failures.until = max(failures.until, monotonic_s() + pause)
        if excess > 0:
            self._few.pop(name)
            self._many.put(name, failures.network, failures)
        else:
            self._few.put(name, failures.network, failures)

    def _known(self, name: str) -> _Failures | None:
        return self._under_way.get(name) or self._many.get(name) or self._few.get(name)

    def _entry(self, name: str, source: str) -> _Failures:
        failures = self._known(name)
        if failures is None:
            return _Failures(network_of(source))
        if not failures.running and monotonic_s() - failures.until > 2 * self._longest_s:
            self.forget(name)
            return _Failures(failures.network)
        return failures


def _too_often(wait_s: float) -> TooOften:
    return TooOften("too many failed attempts", max(1, math.ceil(wait_s)), code="auth.backoff")
