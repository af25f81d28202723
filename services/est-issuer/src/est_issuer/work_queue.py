"""A queue of keys to process: each once at a time, again after a delay, newest state counts.

A key that is added while it is processed is processed again afterwards. A delay never postpones a
key that is due earlier.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

from estcore.clock import monotonic_s

K = TypeVar("K", bound=Hashable)


class WorkQueue(Generic[K]):
    """Keys with the moment from which they may be processed."""

    def __init__(self) -> None:
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._number = 0
        self._processing: set[K] = set()
        self._again: dict[K, float] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._due) + len(self._processing)

    def add(self, key: K, after_s: float = 0) -> None:
        """Let a key be processed after a delay, or earlier if it was to be."""
        due = monotonic_s() + max(after_s, 0)
        if key in self._processing:
            self._again[key] = min(due, self._again.get(key, due))
            return
        if due >= self._due.get(key, due + 1):
            return
        self._due[key] = due
        self._number += 1
        heapq.heappush(self._heap, (due, self._number, key))
        self._changed.set()

    async def get(self) -> K:
        """Return the next key, which is in process until ``done``."""
        while True:
            now = monotonic_s()
            while self._heap:
                due, _, key = self._heap[0]
                if self._due.get(key) != due:
                    heapq.heappop(self._heap)  # it was added again, for an earlier moment
                    continue
                if due > now:
                    break
                heapq.heappop(self._heap)
                del self._due[key]
                self._processing.add(key)
                return key
            self._changed.clear()
            wait = self._heap[0][0] - now if self._heap else None
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def done(self, key: K) -> None:
        """End the processing of a key."""
        self._processing.discard(key)
        due = self._again.pop(key, None)
        if due is not None:
            self.add(key, due - monotonic_s())
