"""Which refusals get an audit record of their own, and how many did not (pure, bounded).

Refusals are caused by anybody, so they must never take the room of records about enrollments:

- of one source and code, the first few of ten seconds get records, the rest is counted;
- while there is no room for refusals, all are counted, by code.

Every count becomes one record that says how many, of which code, from how many sources.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

WINDOW_S = 10
_MOST_SOURCES = 10_000


@dataclass(frozen=True)
class Aggregated:
    """Refusals of one code without records of their own; ``source`` where it was a single one."""

    code: str
    count: int
    sources: int
    source: str | None = None

    @property
    def details(self) -> dict[str, int]:
        """The details of the audit record."""
        return {"aggregated": self.count, "sources": self.sources, "window_s": WINDOW_S}


class RefusalCounts:
    """The refusals of one window."""

    def __init__(self, per_source: int) -> None:
        self._per_source = per_source
        self._seen: Counter[tuple[str, str]] = Counter()
        self._unrecorded: Counter[str] = Counter()
        self._sources: defaultdict[str, set[str]] = defaultdict(set)
        self._remembered = 0

    def __bool__(self) -> bool:
        """Return whether there is anything to say at the end of the window."""
        return bool(self._seen or self._unrecorded)

    def records(self, source: str, code: str, *, room: bool) -> bool:
        """Count a refusal; returns whether it gets a record of its own."""
        key = (source, code)
        if not room or (key not in self._seen and len(self._seen) >= _MOST_SOURCES):
            self._add(source, code, 1)
            return False
        self._seen[key] += 1
        return self._seen[key] <= self._per_source

    def widen(self) -> None:
        """Let the window go on by another one, while nothing can be recorded."""
        for (source, code), count in self._seen.items():
            over = count - self._per_source
            if over > 0:
                self._add(source, code, over)
        self._seen.clear()

    def _add(self, source: str, code: str, count: int) -> None:
        self._unrecorded[code] += count
        if source not in self._sources[code] and self._remembered < _MOST_SOURCES:
            self._sources[code].add(source)
            self._remembered += 1

    def end_window(self) -> Iterator[Aggregated]:
        """Return what had no record of its own, and begin the next window."""
        seen, self._seen = self._seen, Counter()
        unrecorded, self._unrecorded = self._unrecorded, Counter()
        sources, self._sources = self._sources, defaultdict(set)
        self._remembered = 0
        for (source, code), count in seen.items():
            if count > self._per_source:
                yield Aggregated(code, count - self._per_source, 1, source)
        for code, count in unrecorded.items():
            yield Aggregated(code, count, len(sources[code]))
