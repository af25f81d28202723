"""How often: token buckets per source, identity and label; growing pauses after failures.

All of it is memory of this process. A front end that restarts forgets, several count by
themselves; what must hold across all of them (quotas, single use) is in the signer's ledger.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

from estcore.clock import monotonic_s
from estcore.errors import RequestRejected

_ENTRIES = 50_000


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

    def __init__(self, what: str, *, rate: float = 1, burst: float = 1) -> None:
        self._what = what
        self._rate, self._burst = rate, burst
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

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
            bucket = self._buckets[name] = _Bucket(burst, now)
            if len(self._buckets) > _ENTRIES:
                self._buckets.popitem(last=False)
        level = min(burst, bucket.level + (now - bucket.at) * rate)
        bucket.at = now
        if level < 1:
            bucket.level = level
            wait = max(1, math.ceil((1 - level) / rate))
            raise TooOften(f"too many requests of this {self._what}", wait)
        bucket.level = level - 1


@dataclass
class _Failures:
    count: int
    until: float


class Backoff:
    """Growing pauses after failed authentication, per account and source."""

    def __init__(self, *, free: int, longest_s: float) -> None:
        self._free, self._longest_s = free, longest_s
        self._failures: OrderedDict[str, _Failures] = OrderedDict()

    def check(self, *names: str) -> None:
        """See whether one of the names must pause; before anything costly is looked at.

        Raises:
            TooOften: retry later.
        """
        now = monotonic_s()
        for name in names:
            failures = self._failures.get(name)
            if failures is not None and failures.until > now:
                raise TooOften(
                    "too many failed attempts",
                    max(1, math.ceil(failures.until - now)),
                    code="auth.backoff",
                )

    def failed(self, *names: str) -> None:
        """Count a failure: the pause doubles with each one beyond the free ones."""
        now = monotonic_s()
        for name in names:
            failures = self._failures.pop(name, None)
            if failures is None or now - failures.until > 2 * self._longest_s:
                failures = _Failures(0, now)
            failures.count += 1
            excess = failures.count - self._free
            pause = 0.0 if excess <= 0 else min(self._longest_s, 2.0 ** min(excess - 1, 30))
            failures.until = now + pause
            self._failures[name] = failures
            if len(self._failures) > _ENTRIES:
                self._failures.popitem(last=False)

    def succeeded(self, *names: str) -> None:
        """Forget failures."""
        for name in names:
            self._failures.pop(name, None)
