"""Records whose content is absent from a verified log: purged, or beside an archive (pure).

Their leaf hashes are there, so the tree is whole; what compares records with one another cannot
see them. A gap that absent records may explain is no finding.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from estcore.tlog.findings import Finding

PURGE = "audit.purge"
RESTORE = "audit.restore"
_DISORDER = 1000
"""Records by which a producer's numbers may be out of order in the log."""


@dataclass(frozen=True)
class Absent:
    """Records [start, end), and when the ones beside them were recorded, if there are any."""

    start: int
    end: int
    after: str | None = None
    before: str | None = None

    def covers(self, moment: str) -> bool:
        """Return whether a record of this time may be among them, give or take an hour."""
        at, hour = dt.datetime.fromisoformat(moment), dt.timedelta(hours=1)
        late = self.after is None or at >= dt.datetime.fromisoformat(self.after) - hour
        return late and (self.before is None or at <= dt.datetime.fromisoformat(self.before) + hour)


def beside(absent: Sequence[Absent], first: int, last: int) -> bool:
    """Return whether records are absent between two of the log, or near one of them."""
    low, high = min(first, last) - _DISORDER, max(first, last) + _DISORDER
    return any(part.end > low and part.start < high for part in absent)


def soon_after(absent: Sequence[Absent], leaf: Mapping[str, Any], within: dt.timedelta) -> bool:
    """Return whether records that were recorded soon after one are absent."""
    limit = dt.datetime.fromisoformat(leaf["recorded_at"]) + within
    return any(
        part.start > leaf["log_index"]
        and (part.after is None or dt.datetime.fromisoformat(part.after) <= limit)
        for part in absent
    )


def merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ranges in order, adjacent ones as one."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def unrecorded(
    absent: Iterable[tuple[int, int]], leaves: Iterable[Mapping[str, Any]]
) -> Iterator[Finding]:
    """Return a finding for each range of absent records that no record of a purge covers.

    Only the log itself says that records were purged and not removed in an attacker's interest.
    """
    recorded = merged(_purges(leaves))
    for start, end in absent:
        if not any(first <= start and end <= last for first, last in recorded):
            yield Finding(
                "purge.unrecorded",
                f"records {start} to {end - 1}",
                "their content is not here, and no purge of them is on record",
            )


def _purges(leaves: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, int]]:
    for leaf in leaves:
        record = leaf["record"]
        if record.get("action") != PURGE or record["producer"]["service"] != "audit":
            continue
        details = record.get("details")
        first, end = (details or {}).get("first_index"), (details or {}).get("end_index")
        if isinstance(first, int) and isinstance(end, int):
            yield first, end
