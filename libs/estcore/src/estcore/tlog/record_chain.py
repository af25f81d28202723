"""The records of an export in the order of the log: index, hash chain and tree (pure).

One change of an export is one finding. After a fault the check goes on with what is confirmed by
the records behind it: a record whose content was changed keeps its logged hash in chain and tree,
one whose ``prev_hash`` was changed keeps the chain, lines out of order are put in order. Where
records are missing, the chain begins anew, and no tree can be computed from there on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from estcore.tlog.export import GENESIS, chain_hash
from estcore.tlog.findings import Report
from estcore.tlog.tree import HASH_BYTES, Frontier, Tree

LINES_IN_ONE = 2
"""A line that cannot be read may be two, where the line end between them was changed."""
_ANY = b""
"""In place of a chain hash: whatever the next record says."""


@dataclass(frozen=True)
class Line:
    """A record of the export. ``leaf`` is None where its content cannot be relied on.

    ``hashed`` is the hash of the leaf; ``claimed`` and ``prev_hash`` are what the line says.
    """

    place: str
    index: int
    hashed: bytes
    claimed: bytes
    prev_hash: bytes
    leaf: dict[str, Any] | None


@dataclass(frozen=True)
class _End:
    """How the chain may go on: its hash, and the leaf that is last in the tree then."""

    chain: bytes
    leaf: bytes | None = None


class RecordChain:
    """Takes lines as they come; ``keep`` is called with each record, in the order of the log."""

    def __init__(self, report: Report, keep: Callable[[Line], None]) -> None:
        self.tree = Tree()
        self.size = 0
        """Log index after the last record."""
        self.cut: int | None = None
        """From this record on no tree can be computed."""
        self.lost: list[tuple[int, int]] = []
        """Ranges of records, end excluded, that are not here or cannot be relied on."""
        self.missing = self.again = 0
        self.out_of_order: tuple[str, str] | None = None
        """The first record that is not in its place, and what to say of it."""
        self._report, self._keep = report, keep
        self._ends = [_End(GENESIS)]
        self._last = -1
        self._waiting: dict[int, Line] = {}
        self._breaks: list[tuple[str, int, int]] = []
        self._repeated: list[Line] = []
        self._unreadable: Counter[int] = Counter()

    def begin_archive(self, first: int) -> None:
        """Begin at a record; of the chain before it only that record knows."""
        self.size, self._last, self._ends = first, first - 1, [_End(_ANY)]

    def begin_at_edge(self, edge: Frontier) -> None:
        """Begin with the tree before the first record."""
        self.tree = Tree(edge=edge)

    def add_unreadable(self) -> None:
        """Take a line that cannot be read: it may be the record expected here."""
        self._unreadable[self._last + 1] += 1

    def add(self, line: Line) -> None:
        """Take a record."""
        if line.index < self.size or line.index in self._waiting:
            self._repeated.append(line)
            return
        if line.index != self._last + 1:
            self._breaks.append((line.place, self._last + 1, line.index))
        self._last = line.index
        self._waiting[line.index] = line
        while self.size in self._waiting:
            self._place(self._waiting.pop(self.size))

    def add_purged(self, place: str, index: int, hashes: Sequence[bytes]) -> None:
        """Take the hashes of records whose content is not here."""
        self._flush_waiting()
        if index < self.size:
            self._report.add("record.index", place, f"log_index {self.size} is expected here")
            return
        if index > self.size:
            self._report_missing(place, index)
            self._leave_out(index)
        for hashed in hashes:
            end = self._ends[0]
            self._flush(end)
            self._ends = [_End(_next(end.chain, hashed), hashed)]
        self.size = index + len(hashes)
        self._last = self.size - 1

    def pass_over(self, place: str, index: int, end: int) -> None:
        """Go on after hashes [index, end) that cannot be read, which is a finding of its own."""
        self._flush_waiting()
        if index > self.size:
            self._report_missing(place, index)
        if end > self.size:
            self._leave_out(end)
            self._last = end - 1

    def finish(self, roots: Mapping[int, bytes]) -> None:
        """Report what is missing or here twice; ``roots`` are those of checkpoints by size."""
        self._flush_waiting()
        unread = max(roots, default=0) - self.size
        if 0 < unread <= LINES_IN_ONE * self._unreadable[self.size]:
            self.missing += unread
            self._leave_out(self.size + unread)  # the last lines could not be read
            return
        self._find_order()
        end = self._ends[0]
        if len({one.leaf for one in self._ends}) > 1 and self.cut is None:
            end = self._by_root(roots.get(self.tree.size + 1))
        self._flush(end)

    def _by_root(self, root: bytes | None) -> _End:
        """Return the end whose leaf a checkpoint confirms: no record behind it does."""
        for end in self._ends:
            assert end.leaf is not None  # noqa: S101 - a record was placed
            self.tree.append(end.leaf)
            fits = self.tree.root() == root
            self.tree.pop()
            if fits:
                return end
        return self._ends[0]

    def _place(self, line: Line) -> None:
        fitting = [end for end in self._ends if end.chain in {line.prev_hash, _ANY}]
        bases = [line.prev_hash]
        if not fitting:
            self._report.add("record.prev_hash", line.place, "prev_hash does not chain")
            bases = [end.chain for end in self._ends] + bases
        self._flush((fitting or self._ends)[0])
        hashes = dict.fromkeys(h for h in (line.hashed, line.claimed) if len(h) == HASH_BYTES)
        self._ends = [_End(_next(base, h), h) for base in bases for h in hashes]
        self.size = line.index + 1
        if line.leaf is None:
            self.lost.append((line.index, self.size))
        self._keep(line)

    def _flush(self, end: _End) -> None:
        if end.leaf is not None and self.cut is None:
            self.tree.append(end.leaf)

    def _flush_waiting(self) -> None:
        """Place what waits for records that did not come."""
        for index in sorted(self._waiting):
            line = self._waiting.pop(index)
            if index != self.size:
                self._report_missing(line.place, index)
                self._leave_out(index)
            self._place(line)

    def _leave_out(self, index: int) -> None:
        """Go on at a record; those before it are not here."""
        self._flush(self._ends[0])
        self.lost.append((self.size, index))
        self.cut = self.size if self.cut is None else self.cut
        self.size, self._ends = index, [_End(_ANY)]

    def _report_missing(self, place: str, index: int) -> None:
        count = index - self.size
        self.missing += count
        if count <= LINES_IN_ONE * self._unreadable.pop(self.size, 0):
            return  # the lines that cannot be read are findings of their own
        what = f"record {self.size} is"
        if count > 1:
            what = f"records {self.size} to {index - 1} are"
        rest = "" if self.cut is not None else "; checkpoints after that cannot be compared"
        self._report.add("record.index", place, f"{what} missing before it{rest}")

    def _find_order(self) -> None:
        self.again = len(self._repeated)
        if self._repeated:
            first = self._repeated[0]
            more = f", and {self.again - 1} more" if self.again > 1 else ""
            sentence = f"record {first.index} is here again{more}"
            self._report.add("record.index", first.place, sentence)
        for place, expected, index in self._breaks:
            if not self._is_lost(expected, index):
                sentence = f"record {index} in place of record {expected}: out of order"
                self.out_of_order = place, sentence
                return

    def _is_lost(self, start: int, end: int) -> bool:
        return any(first <= start and end <= last for first, last in self.lost)


def _next(chain: bytes, hashed: bytes) -> bytes:
    return _ANY if chain == _ANY else chain_hash(chain, hashed)
